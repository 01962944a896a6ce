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

from flatbench.optim import fused, kernels, rule  # noqa: E402

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
    "products": "*fp32",
    "squares": "*fp32",
    "norm_out": "*fp32",
    "momentum_norm": "*fp32",
    "spoilt": "*fp32",
    "share": "fp32",
    "found_inf": "*fp32",
    "n_chunks": "i32",
}
FP32, BF16 = tl.float32, tl.bfloat16
PLAIN = {"GRAD": FP32, "FRIENDLY": False}
STEP = {"GRAD": FP32, "FIRST": FP32, "MIX": 0, "SINGLE": False, "LOOK": False}
MOMENTUM = {**STEP, "ADAM": False, "MOMENTS": 1}
FRIENDLY = {**PLAIN, "FRIENDLY": True}
ADAM = {**STEP, "ADAM": True, "MOMENTS": 2}
# name, constants, and the streams over the parameters that a full chunk loads and stores, in
# each of the kernel's full-chunk branches: for "step", those of the step, and those of putting
# back and of the check.
VARIANTS = {
    "norm": ("norm_partials", {**PLAIN, "ANY_ADAPTIVE": False}, 1, 0),
    "norm-asam": ("norm_partials", {**PLAIN, "ANY_ADAPTIVE": True}, 2 + 1, 0),
    "perturb-sgd": ("perturb", {**PLAIN, "ADAM": False}, 2, 2),
    "perturb-adam": ("perturb", {**PLAIN, "ADAM": True}, 2, 2),
    "step-sgd": ("restore_and_step", {**STEP, "ADAM": False, "MOMENTS": 0}, 2 + 2, 1 + 1),
    "step-momentum": ("restore_and_step", MOMENTUM, 3 + 2, 2 + 1),
    "step-adam": ("restore_and_step", ADAM, 4 + 2, 3 + 1),
    "norm-friendly": ("norm_partials", {**FRIENDLY, "ANY_ADAPTIVE": False}, 2, 0),
    "norm-friendly-asam": ("norm_partials", {**FRIENDLY, "ANY_ADAPTIVE": True}, 3 + 2, 0),
    "perturb-friendly": ("perturb", {**FRIENDLY, "ADAM": True}, 3, 3),
    "single": ("restore_and_step", {**ADAM, "SINGLE": True}, 4 + 2, 3 + 1),
    "gsam": ("restore_and_step", {**MOMENTUM, "MIX": rule.GSAM}, 4 + 3, 2 + 1),
    "gsam-adam": ("restore_and_step", {**ADAM, "MIX": rule.GSAM}, 5 + 3, 3 + 1),
    "looksam-keep": ("restore_and_step", {**ADAM, "MIX": rule.KEEP}, 5 + 4, 4 + 2),
    "looksam-add": ("restore_and_step", {**ADAM, "MIX": rule.ADD, "SINGLE": True}, 5 + 3, 3 + 1),
    "momentum-sam": ("restore_and_step", {**ADAM, "SINGLE": True, "LOOK": True}, 4 + 2, 3 + 1),
    "look-ahead": ("look_ahead", {"ADAM": True}, 2, 2),
    "end-part": ("end_part", {"GRAD": FP32}, 3, 2),
}
HALF = {  # bf16 gradients: half as many bytes of them, the other streams as above
    "norm-asam-bf16": ("norm_partials", {**PLAIN, "GRAD": BF16, "ANY_ADAPTIVE": True}),
    "perturb-bf16": ("perturb", {**PLAIN, "GRAD": BF16, "ADAM": True}),
    "step-adam-bf16": ("restore_and_step", {**ADAM, "GRAD": BF16}),
    "perturb-friendly-bf16": ("perturb", {**FRIENDLY, "GRAD": BF16, "ADAM": True}),
    "gsam-bf16": (
        "restore_and_step",
        {**ADAM, "GRAD": BF16, "FIRST": BF16, "MIX": rule.GSAM},
    ),
    "end-part-bf16": ("end_part", {"GRAD": BF16}),
}
targets = pytest.mark.parametrize("target", [80, 90])


def compile_kernel(name, constants, target):
    kernel = getattr(kernels, name)
    constants = {**constants, "BLOCK": fused.BLOCK}
    if "PARTIALS" in kernel.arg_names:
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


@pytest.mark.parametrize("name", [n for n in kernels.__all__ if n.islower()])
def test_the_binder_of_triton_takes_the_parameters_of_a_kernel(name):
    """It makes a Python function of them, beside names of its own: a launch's first step."""
    kernel = getattr(kernels, name)
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    numbers = {"n_chunks": 16, "share": 0.5}
    arguments = {p.name: numbers.get(p.name, torch.zeros(4)) for p in kernel.params}
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
    # sums that every program folds: the norm's, or the two products'
    folds = 1 if name == "perturb" else 2 if constants.get("MIX") else 0
    fold = fused.PARTIALS * 4 // (16 * 32 * kernels.LAUNCH["num_warps"]) * folds
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
@pytest.mark.parametrize("variant", ["gsam", "looksam-keep", "looksam-add"])
def test_products_are_stored_before_a_verdict_and_read_after_all(variant, target):
    name, constants, *_ = VARIANTS[variant]
    ptx = compile_kernel(name, constants, target).asm["ptx"]
    verdict = r"\b(?:atom|red)(?:\.\w+)*\.release(?:\.\w+)*\s"
    given = re.search(verdict, ptx)
    assert given is not None
    # all threads of the program have stored before one of them gives the verdict
    stored = [m.start() for m in re.finditer(r"\bst\.global", ptx[: given.start()])]
    assert "bar.sync" in ptx[stored[-1] : given.start()]
    assert re.search(r"\b(?:ld|atom)(?:\.\w+)*\.acquire(?:\.\w+)*\s", ptx)
    # products come from the second-level cache, which all programs share
    assert len(re.findall(r"\bld\.global\.cg\b", ptx)) >= 2


@targets
@pytest.mark.parametrize("variant", [*VARIANTS, *HALF])
def test_division_and_square_root_are_ieee_and_nothing_is_contracted(variant, target):
    name, constants, *_ = {**VARIANTS, **HALF}[variant]
    ptx = compile_kernel(name, constants, target).asm["ptx"]
    both = ["div.rn.f32", "sqrt.rn.f32"]
    rounded = {"perturb": both, "look_ahead": both}
    if constants.get("MOMENTS") == 2:
        rounded["restore_and_step"] = both
    elif constants.get("MIX"):
        rounded["restore_and_step"] = ["div.rn.f32"]
    ptx = ptx.replace(".ftz", "")  # triton 3.5 flushes denormals to zero; later ones do not
    assert sorted(set(re.findall(r"\b(?:div|sqrt)\.[\w.]+", ptx))) == rounded.get(name, [])
    assert not re.search(r"\b(?:fma\.\w+\.f32|(?:rcp|rsqrt|ex2|lg2)\.approx\.f32)", ptx)
