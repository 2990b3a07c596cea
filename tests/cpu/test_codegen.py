"""What the machine code of each target is made of, and that other machines' code can be emitted here."""

from __future__ import annotations

import re
from functools import cache

import pytest

from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.codegen import assembly, compile_module, emit_module
from rlx.backends.cpu.kernels.registry import KERNELS
from rlx.backends.cpu.target import Target, resolve
from rlx.compiler import compile_graph
from rlx.errors import OptionError
from rlx.lir.program import Kernel
from tests.cpu.compiling import TARGETS
from tests.cpu.test_kernels import case_of
from tests.ops.sample_inputs import CASES

AARCH64 = Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon", 128, True, False, False, False)


@cache
def sample_kernels() -> tuple[Kernel, ...]:
    """One kernel of each op and variant that the samples lead to."""
    found: dict[tuple[str, str], Kernel] = {}
    for index in range(len(CASES)):
        case = case_of(index)
        program, _ = compile_graph(case.graph, CpuBackend(resolve(TARGETS[0])), precision="exact")
        for kernel in program.kernels:
            found.setdefault((kernel.op, kernel.variant), kernel)
    return tuple(found.values())


def kernels_of(op: str, variant: str | None = None) -> list[Kernel]:
    return [k for k in sample_kernels() if k.op == op and variant in (None, k.variant)]


def test_the_samples_reach_every_kernel() -> None:
    """A kernel that no sample leads to would be tested by nothing here."""
    defined = {(definition.op, definition.variant) for group in KERNELS.values() for definition in group}
    assert defined == {(kernel.op, kernel.variant) for kernel in sample_kernels()}


@pytest.mark.parametrize(("target", "instruction"), [("avx512", "vpdpbusd"), ("avx2", "vpmaddubsw")])
def test_the_integer_product_uses_the_instruction_made_for_it(target: str, instruction: str) -> None:
    if target not in TARGETS:
        pytest.skip(f"this machine cannot run {target}")
    text = assembly(kernels_of("linear", "integer"), resolve(target))
    assert instruction in text
    registers = "zmm" if target == "avx512" else "ymm"
    assert registers in text


def test_the_float_product_uses_fused_multiply_add_where_there_is_one() -> None:
    for target in TARGETS:
        text = assembly(kernels_of("linear", "float"), resolve(target))
        assert ("vfmadd" in text) == resolve(target).fma
        # a call per lane to a library's fma would be a hundred times slower
        assert not re.search(r"call\S*\s+fmaf?\b", text)


@pytest.mark.parametrize("target", TARGETS)
def test_no_pointer_is_made_of_an_integer(target: str) -> None:
    text = emit_module(sample_kernels(), resolve(target))
    assert "inttoptr" not in text
    assert "ptrtoint" not in text
    assert "getelementptr" in text


@pytest.mark.parametrize("target", TARGETS)
def test_no_kernel_calls_out_of_the_module(target: str) -> None:
    """Everything is inline: a call of libm per lane would be slow, and other bits on another system."""
    text = assembly(sample_kernels(), resolve(target))
    called = set(re.findall(r"\bcallq?\s+([A-Za-z_][\w.@]*)", text))
    assert {name.split("@")[0] for name in called} <= {"memset", "memcpy", "rlx_run_steps"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_kernels_give_the_same_object(target: str) -> None:
    """The object cache goes by content, so that code generation must not depend on anything else."""
    kernels = kernels_of("rms_norm") + kernels_of("linear")
    assert compile_module(kernels, resolve(target)) == compile_module(kernels, resolve(target))


def test_code_for_another_machine_is_emitted_here() -> None:
    """AArch64, as a check that nothing outside of the target tests assumes x86."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        llvm.Target.from_triple(AARCH64.triple)
    except RuntimeError:
        pytest.skip("this build of llvmlite has no AArch64")
    text = assembly(sample_kernels(), AARCH64)
    assert "fmla" in text
    assert "yield" in text  # the pause of the spin loops
    assert "rlx_run" in text
    assert compile_module(kernels_of("iota"), AARCH64)[:4] == b"\x7fELF"


def test_targets_are_resolved_or_refused() -> None:
    assert resolve("native").name == TARGETS[0]
    with pytest.raises(OptionError, match="unknown target"):
        resolve("mips")
    for name in ("avx512", "avx2"):
        if name not in TARGETS:
            with pytest.raises(OptionError, match="cannot run"):
                resolve(name)
    keys = {resolve(name).key for name in TARGETS}
    assert len(keys) == len(TARGETS)
