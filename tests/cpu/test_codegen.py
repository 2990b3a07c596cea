"""What the machine code of each target is made of, and that other machines' code can be emitted here."""

from __future__ import annotations

import re
from functools import cache

import pytest

from rlx import config
from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.codegen import assembly, compile_module, emit_module
from rlx.backends.cpu.kernels.registry import KERNELS
from rlx.backends.cpu.target import NAMES, Host, available, describe, resolve
from rlx.compiler import compile_graph
from rlx.errors import OptionError
from rlx.lir.program import Kernel
from tests.cpu.compiling import TARGETS
from tests.cpu.test_kernels import case_of
from tests.ops.sample_inputs import CASES

ARM = ("neon", "i8mm", "apple")


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


@pytest.mark.parametrize("target", ARM)
def test_code_for_another_machine_is_emitted_here(target: str) -> None:
    """AArch64; `test_emulated.py` runs it."""
    text = assembly(sample_kernels(), describe(target, X86_HOST))
    assert "fmla" in text
    assert "yield" in text  # the pause of the spin loops
    assert "rlx_run" in text
    assert re.search(r"fcvtl?2?\s+(v\d+\.4s, v\d+\.4h|s\d+, h\d+)", text)  # half to float32
    assert ("usdot" in text) == (target == "i8mm")
    assert "sdot" in text
    called = set(re.findall(r"\bblr?\s+([A-Za-z_][\w.@]*)", text)) - {"x" + str(i) for i in range(32)}
    assert called <= {"memset", "memcpy", "rlx_run_steps"}
    assert compile_module(kernels_of("iota"), describe(target, X86_HOST))[:4] == b"\x7fELF"


def test_the_256_bit_form_of_vnni_is_emitted_here() -> None:
    text = assembly(kernels_of("linear", "integer"), describe("avxvnni", X86_HOST))
    assert re.search(r"vpdpbusd.*ymm", text)
    assert "zmm" not in text


X86_HOST = Host("x86_64-unknown-linux-gnu", "znver4", frozenset(describe("avx512").flags))
ARM_HOST = Host("aarch64-unknown-linux-gnu", "neoverse-n1", frozenset(describe("neon").flags))
GRAVITON = Host("aarch64-unknown-linux-gnu", "neoverse-v1", frozenset({*describe("i8mm").flags, "sve"}))
M1 = Host("arm64-apple-darwin23.1.0", "apple-m1", frozenset())
M4 = Host("arm64-apple-darwin24.1.0", "apple-m4", frozenset())
LAKE = Host("x86_64-pc-windows-msvc", "alderlake", frozenset(describe("avxvnni").flags))
RAPIDS = Host("x86_64-unknown-linux-gnu", "sapphirerapids", frozenset(describe("amx").flags))


@pytest.mark.parametrize(
    ("machine", "names"),
    [
        (X86_HOST, ("avx512", "avx2", "portable")),
        (LAKE, ("avxvnni", "avx2", "portable")),
        (RAPIDS, ("amx", "avx512", "avx2", "portable")),
        (ARM_HOST, ("neon", "portable")),
        (GRAVITON, ("i8mm", "neon", "portable")),
        (M1, ("apple", "neon", "portable")),
        (M4, ("i8mm", "apple", "neon", "portable")),
        (Host("riscv64-unknown-linux-gnu", "generic", frozenset()), ("portable",)),
    ],
    ids=lambda value: value.cpu if isinstance(value, Host) else "",
)
def test_a_machine_gets_the_targets_that_it_has_the_instructions_for(machine: Host, names: tuple[str, ...]) -> None:
    assert available(machine) == names
    assert all(describe(name, machine).triple == machine.triple for name in names)


def test_the_names_of_targets_are_those_of_the_configuration() -> None:
    assert NAMES == config.TARGETS


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
