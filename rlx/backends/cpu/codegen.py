"""LIR kernels -> LLVM IR -> object code, one function for each distinct kernel.

What is compiled is kept on disk by content: the kernels, the target, the version of LLVM and of this backend. Next:
`object_cache.py`, `module.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rlx.backends.cpu import kernels, llvm
from rlx.backends.cpu.emit import I64, PTR, Emit, Val, ir, set_width
from rlx.backends.cpu.kernels.registry import Body, find
from rlx.backends.cpu.native import emit_runtime
from rlx.backends.cpu.native_code import function_name
from rlx.backends.cpu.target import Target, runs_here
from rlx.core.text import print_attrs
from rlx.lir.program import Kernel

_ = kernels.FAMILIES  # importing them fills the table


def emit_module(
    kernels_: Sequence[Kernel], target: Target, *, traced: bool = False, builder: Callable[[Any], Any] | None = None
) -> str:
    """The LLVM IR of all kernels and of the native runtime, before optimisation.

    Args:
        kernels_: in the order of their program.
        target: what they are emitted for.
        traced: as in `emit_runtime`.
        builder: makes the builder of a kernel, at a block; `llvmlite.ir.IRBuilder` by default.
    """
    module: Any = ir.Module("rlx", context=ir.Context())
    module.triple = target.triple
    for index, kernel in enumerate(kernels_):
        _emit_kernel(module, function_name(index, kernel), kernel, target, builder or ir.IRBuilder)
    emit_runtime(module, target, traced=traced)
    # without it LLVM makes calls to memset and memcpy of loops, and an object that needs another library is not linked
    return re.sub(r"^(define .*?)( !dbg !\d+)?$", r'\1 "no-builtins"\2', str(module), flags=re.MULTILINE)


def _emit_kernel(module: Any, name: str, kernel: Kernel, target: Target, builder: Callable[[Any], Any]) -> None:
    type_ = ir.FunctionType(ir.VoidType(), [PTR, PTR, I64, I64, PTR])
    function = ir.Function(module, type_, name)
    set_width(function, target)
    entry, start = function.append_basic_block("entry"), function.append_basic_block("start")
    e = Emit(module, builder(start), target, entry)
    body = Body(e, *(Val(e, argument) for argument in function.args))
    find(kernel.op, kernel.variant).build(body, kernel.settings)
    e.b.ret_void()
    with e.b.goto_block(entry):
        e.b.branch(start)


@cache
def backend_version() -> str:
    """A digest of LLVM's version and of the sources that decide the code: this backend, the formats and the ops."""
    digest = hashlib.sha256(llvm.versions().encode())
    package = Path(__file__).parents[2]
    for folder in (Path(__file__).parent, package / "core", package / "ops"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_key(kernels_: Sequence[Kernel], target: Target, *, traced: bool = False) -> str:
    """The content address of the object that `compile_module` gives, or `compile_traced_runtime`."""
    text = "traced\n" * traced + "\n".join(f"{k.op}.{k.variant} {print_attrs(k.settings)}" for k in kernels_)
    return hashlib.sha256(f"{backend_version()}\n{target.key}\n{text}".encode()).hexdigest()[:32]


def target_machine(target: Target) -> Any:
    """LLVM's machine for a target."""
    library = llvm.binding()
    library.initialize_native_target()
    library.initialize_native_asmprinter()
    if not runs_here(target):
        library.initialize_all_targets()
        library.initialize_all_asmprinters()
    description = library.Target.from_triple(target.triple)
    return description.create_target_machine(cpu=target.cpu, features=target.features, opt=2, jit=True, reloc="pic")


def optimise(text: str, machine: Any) -> Any:
    """LLVM's module after its optimiser. Kernels are vectors already, so the vectorisers are off."""
    library = llvm.binding()
    module = library.parse_assembly(text)
    module.verify()
    options = library.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    passes = library.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def compile_module(kernels_: Sequence[Kernel], target: Target) -> bytes:
    """Object code for the kernels."""
    machine = target_machine(target)
    return bytes(machine.emit_object(optimise(emit_module(kernels_, target), machine)))


def compile_traced_runtime(target: Target) -> bytes:
    """Object code for the runtime that keeps a log, without kernels."""
    machine = target_machine(target)
    return bytes(machine.emit_object(optimise(emit_module((), target, traced=True), machine)))


def assembly(kernels_: Sequence[Kernel], target: Target) -> str:
    """The machine code as text."""
    machine = target_machine(target)
    return str(machine.emit_assembly(optimise(emit_module(kernels_, target), machine)))
