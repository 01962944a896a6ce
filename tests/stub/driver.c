/* A CUDA driver without a GPU: every call succeeds, and every launch is told to an observer.
 *
 * Built as libcuda.so.1, it lets Triton's own binder, compiler and launcher run for real. Only the
 * calls that Triton's launching code makes are here; whatever else asks for a driver (torch's CUDA
 * runtime) misses its own calls and finds no device.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Address;

struct Launch { /* the head of CUlaunchConfig in cuda.h */
    unsigned grid[3];
    unsigned block[3];
    unsigned shared;
};

/* kernel: the handle that loading it gave; arguments: one address of a value each */
typedef int (*Observer)(const char *kernel, const struct Launch *launch, void **arguments);
static Observer observer;
static unsigned long launches;

void stub_observe(Observer new_observer) { observer = new_observer; }
unsigned long stub_launches(void) { return launches; }

Result cuLaunchKernelEx(const struct Launch *launch, const char *kernel, void **arguments, void **extra) {
    launches++;
    return observer ? observer(kernel, launch, arguments) : 0;
}

/* A handle of its own for each loaded kernel: its name, which nobody frees. */
Result cuModuleGetFunction(char **kernel, void *module, const char *name) {
    *kernel = strdup(name);
    return *kernel ? 0 : 2;
}

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MAX_THREADS_PER_BLOCK = 0 };

Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == CAPABILITY_MAJOR ? 9 : attribute == CAPABILITY_MINOR ? 0 : 232448;
    return 0;
}
Result cuFuncGetAttribute(int *value, int attribute, void *kernel) {
    *value = attribute == MAX_THREADS_PER_BLOCK ? 1024 : 0;
    return 0;
}

/* Memory is the process's own: a tensor's address is its address on the device. */
Result cuPointerGetAttribute(Address *value, int attribute, Address p) { *value = p; return 0; }
Result cuPointerGetAttributes(unsigned n, int *attributes, void **values, Address p) {
    for (unsigned i = 0; i < n; i++) *(Address *)values[i] = p;
    return 0;
}

static int context, module;
Result cuInit(unsigned flags) { return 0; }
Result cuGetErrorString(Result error, const char **text) { *text = "the observer refused"; return 0; }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
Result cuDeviceGetCount(int *count) { *count = 1; return 0; }
Result cuDevicePrimaryCtxRetain(void **c, int device) { *c = &context; return 0; }
Result cuCtxGetCurrent(void **c) { *c = &context; return 0; }
Result cuCtxSetCurrent(void *c) { return 0; }
Result cuCtxGetDevice(int *device) { *device = 0; return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
Result cuModuleLoadData(void **m, const void *image) { *m = &module; return 0; }
Result cuModuleUnload(void *m) { return 0; }
Result cuFuncSetAttribute(void *kernel, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void *kernel, int config) { return 0; }
Result cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Result cuOccupancyMaxActiveClusters(int *n, void *kernel, const void *launch) { *n = 1; return 0; }
Result cuTensorMapEncodeTiled(void) { return 1; }
Result cuTensorMapEncodeIm2col(void) { return 1; }
