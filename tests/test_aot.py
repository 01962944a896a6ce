"""What the compiler makes of the kernels for sm_80 and sm_90: read from PTX and cubin, no GPU."""

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("nothing compiles under TRITON_INTERPRET=1", allow_module_level=True)

import torch  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource, make_backend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

from flatbench.optim import fused, kernels  # noqa: E402

NVIDIA = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    "chunks": "*i32",
    "tensors": "*i64",
    "gradients": "*i64",
    "ascent_gradients": "*i64",
    "skipped_steps": "*i64",
    "settings": "*fp64",
    "schedule": "*fp32",
    "partials": "*fp32",
    "counters": "*i32",
    "norm_out": "*fp32",
    "found_inf": "*fp32",
    "n_chunks": "i32",
}
FP32, BF16 = tl.float32, tl.bfloat16
# name, constants, and the streams over the parameters that a full chunk loads and stores, in
# each of the kernel's full-chunk branches: for "step", those of the step, and those of putting
# back and of the check.
VARIANTS = {
    "norm": ("norm_partials", {"GRAD": FP32, "ANY_ADAPTIVE": False}, 1, 0),
    "norm-asam": ("norm_partials", {"GRAD": FP32, "ANY_ADAPTIVE": True}, 2 + 1, 0),
    "perturb-sgd": ("perturb", {"GRAD": FP32, "ADAM": False}, 2, 2),
    "perturb-adam": ("perturb", {"GRAD": FP32, "ADAM": True}, 2, 2),
    "step-sgd": ("restore_and_step", {"GRAD": FP32, "ADAM": False, "MOMENTS": 0}, 2 + 2, 1 + 1),
    "step-momentum": (
        "restore_and_step",
        {"GRAD": FP32, "ADAM": False, "MOMENTS": 1},
        3 + 2,
        2 + 1,
    ),
    "step-adam": ("restore_and_step", {"GRAD": FP32, "ADAM": True, "MOMENTS": 2}, 4 + 2, 3 + 1),
}
HALF = {  # bf16 gradients: half as many bytes of them, the other streams as above
    "norm-asam-bf16": ("norm_partials", {"GRAD": BF16, "ANY_ADAPTIVE": True}),
    "perturb-bf16": ("perturb", {"GRAD": BF16, "ADAM": True}),
    "step-adam-bf16": ("restore_and_step", {"GRAD": BF16, "ADAM": True, "MOMENTS": 2}),
}
targets = pytest.mark.parametrize("target", [80, 90])


def compile_kernel(name, constants, target):
    kernel = getattr(kernels, name)
    constants = {**constants, "BLOCK": fused.BLOCK}
    if name == "perturb":
        constants["PARTIALS"] = fused.PARTIALS
    signature = {a: "constexpr" if a in constants else TYPES[a] for a in kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, a in enumerate(kernel.arg_names)
        if signature[a].startswith("*")
    }
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible),
        target=GPUTarget("cuda", target, 32),
        options=kernels.LAUNCH,
    )


def cuobjdump(cubin, tmp_path, *flags):
    file = tmp_path / "kernel.cubin"
    file.write_bytes(cubin)
    return subprocess.run(
        [NVIDIA / "cuobjdump", *flags, file], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("name", ["norm_partials", "perturb", "restore_and_step", "trial"])
def test_the_binder_of_triton_takes_the_parameters_of_a_kernel(name):
    """It makes a Python function of them, beside names of its own: a launch's first step."""
    kernel = getattr(kernels, name)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments = {p.name: 16 if p.name == "n_chunks" else torch.zeros(4) for p in kernel.params}
    bound, _, launch = binder(**arguments, **kernels.LAUNCH)
    assert list(bound) == kernel.arg_names
    assert launch == kernels.LAUNCH


@targets
@pytest.mark.parametrize("variant", [*VARIANTS, *HALF])
def test_no_spills_and_no_local_memory(variant, target, tmp_path):
    name, constants, *_ = {**VARIANTS, **HALF}[variant]
    cubin = compile_kernel(name, constants, target).asm["cubin"]
    usage = cuobjdump(cubin, tmp_path, "--dump-resource-usage")
    used = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assert used.keys() == {"REG", "STACK", "LOCAL"}
    assert used["STACK"] == used["LOCAL"] == 0
    # Two blocks of 8 warps fit the 65,536 registers of a multiprocessor.
    assert used["REG"] <= 128
    assert not re.search(r"\b(LDL|STL)\b", cuobjdump(cubin, tmp_path, "--dump-sass"))


@targets
@pytest.mark.parametrize("variant", VARIANTS)
def test_full_chunks_move_128_bits_at_a_time_and_what_the_plan_counts(variant, target, tmp_path):
    name, constants, loads, stores = VARIANTS[variant]
    compiled = compile_kernel(name, constants, target)
    # A thread moves 16 bytes an access, so a stream over a chunk of fp32 is this many of them.
    accesses = fused.BLOCK * 4 // (16 * 32 * kernels.LAUNCH["num_warps"])
    sass = cuobjdump(compiled.asm["cubin"], tmp_path, "--dump-sass")
    fold = fused.PARTIALS * 4 // (16 * 32 * kernels.LAUNCH["num_warps"]) * (name == "perturb")
    assert len(re.findall(r"LDG\.E\.128", sass)) == loads * accesses + fold
    assert len(re.findall(r"STG\.E\.128", sass)) == stores * accesses
    vector = r"global(?:\.\w+)*\.v4\.[bf]32"
    ptx = compiled.asm["ptx"]
    assert len(re.findall(rf"\bld\.{vector}", ptx)) == loads * accesses + fold
    assert len(re.findall(rf"\bst\.{vector}", ptx)) == stores * accesses


@targets
@pytest.mark.parametrize("variant", ["step-sgd", "step-adam"])
def test_gradients_are_checked_before_any_stepper_goes_on(variant, target):
    """Without its x - x the check finds nothing; a read before the loop alone waits forever."""
    name, constants, *_ = VARIANTS[variant]
    ptx = compile_kernel(name, constants, target).asm["ptx"]
    assert re.search(r"\bsub(?:\.\w+)*\.f32\s+%\w+, (%\w+), \1;", ptx)
    # the verdicts, once before the loop and once in it; triton makes a load of adding 0
    read = r"\b(?:ld|atom)(?:\.\w+)*\.relaxed(?:\.\w+)*\s+%\w+, \[ %\w+ \+ 0 \];"
    assert len(re.findall(read, ptx)) == 2
    loops = [
        ptx[ptx.index(f"\n{jump[1]}:") : jump.end()]
        for jump in re.finditer(r"\bbra(?:\.uni)?\s+(\$\w+);", ptx)
        if f"\n{jump[1]}:" in ptx[: jump.start()]
    ]
    assert any(re.search(read, loop) for loop in loops)


@targets
@pytest.mark.parametrize("variant", [*VARIANTS, *HALF])
def test_division_and_square_root_are_ieee_and_nothing_is_contracted(variant, target):
    name, constants, *_ = {**VARIANTS, **HALF}[variant]
    ptx = compile_kernel(name, constants, target).asm["ptx"]
    rounded = {"perturb": ["div.rn.f32", "sqrt.rn.f32"]}
    if constants.get("MOMENTS") == 2:
        rounded["restore_and_step"] = ["div.rn.f32", "sqrt.rn.f32"]
    ptx = ptx.replace(".ftz", "")  # triton 3.5 flushes denormals to zero; later ones do not
    assert sorted(set(re.findall(r"\b(?:div|sqrt)\.[\w.]+", ptx))) == rounded.get(name, [])
    assert not re.search(r"\b(?:fma\.\w+\.f32|(?:rcp|rsqrt|ex2|lg2)\.approx\.f32)", ptx)
