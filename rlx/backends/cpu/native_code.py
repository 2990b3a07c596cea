"""The machine code of a program, in memory and ready to call.

In: the kernels of a program and a target, or the key under which an earlier start kept the object. Out: the address of
every function. Nothing here needs LLVM when the object is in the cache and `image.py` can link it. Next: `codegen.py`
for how the object is made, `object_cache.py` for where it is kept, `module.py` for who calls it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.backends.cpu import disk_cache, object_cache
from rlx.backends.cpu.image import CodeImage, NotLinkable

if TYPE_CHECKING:
    from rlx.backends.cpu.target import Target
    from rlx.lir.program import Kernel

RUNTIME = ("rlx_run", "rlx_worker")
CLOCK = "rlx_clock"
"""Of a traced runtime; gives the ticks now."""


@dataclass(frozen=True, slots=True)
class NativeCode:
    """Loaded code.

    Attributes:
        key: its content address in the object cache.
        addresses: of every kernel by `function_name`, and of `RUNTIME`.
        library: keeps the code in memory.
        cached: whether it came from the object cache.
        seconds: time spent in code generation and LLVM, 0 if it was cached.
    """

    key: str
    addresses: dict[str, int]
    library: object
    cached: bool
    seconds: float


def function_name(index: int, kernel: Kernel) -> str:
    """The symbol of a kernel."""
    return f"k{index}_{kernel.op}_{kernel.variant}"


def load_code(kernels: Sequence[Kernel], target: Target, cache: Path | None, cache_limit: int | None) -> NativeCode:
    """The code of the kernels: from the cache, or compiled now and kept there.

    Args:
        kernels: in the order of the program.
        target: what to compile for; the host has to run it.
        cache: the folder of the caches, None to do without.
        cache_limit: most bytes of the caches, None for any.
    """
    from rlx.backends.cpu import codegen

    start = time.perf_counter()
    key = codegen.cache_key(kernels, target)
    found = cached_code(kernels, target, cache, key) if cache else None
    if found is not None:
        return found
    code = codegen.compile_module(kernels, target)
    if cache and object_cache.save(cache, key, code) and cache_limit is not None:
        disk_cache.trim(cache, cache_limit)
    seconds = time.perf_counter() - start
    addresses, library = _link(code, key, target, _symbols(kernels))
    return NativeCode(key, addresses, library, False, seconds)


def cached_code(kernels: Sequence[Kernel], target: Target, cache: Path, key: str) -> NativeCode | None:
    """The code that was kept under a key, or None if it is not there or not whole."""
    code = object_cache.load(cache, key)
    if code is None:
        return None
    addresses, library = _link(code, key, target, _symbols(kernels))
    return NativeCode(key, addresses, library, True, 0.0)


def load_traced_runtime(target: Target, cache: Path | None) -> NativeCode:
    """The runtime that keeps a log of each thread (`native_trace.py`), with `CLOCK`; compiled when first asked for."""
    from rlx.backends.cpu import codegen

    start = time.perf_counter()
    key = codegen.cache_key((), target, traced=True)
    code = object_cache.load(cache, key) if cache else None
    found = code is not None
    if code is None:
        code = codegen.compile_traced_runtime(target)
        if cache:
            object_cache.save(cache, key, code)
    addresses, library = _link(code, key, target, [*RUNTIME, CLOCK])
    return NativeCode(key, addresses, library, found, time.perf_counter() - start)


def _symbols(kernels: Sequence[Kernel]) -> list[str]:
    return [*(function_name(i, kernel) for i, kernel in enumerate(kernels)), *RUNTIME]


def _link(code: bytes, key: str, target: Target, symbols: list[str]) -> tuple[dict[str, int], object]:
    try:
        image = CodeImage(code, symbols)
    except NotLinkable:
        return _link_with_llvm(code, key, target, symbols)
    return image.symbols, image


def _link_with_llvm(code: bytes, key: str, target: Target, symbols: list[str]) -> tuple[dict[str, int], object]:
    """Load object code through ORC."""
    from rlx.backends.cpu import codegen, llvm

    library: Any = llvm.binding()
    jit = library.create_lljit_compiler(codegen.target_machine(target))
    builder = library.JITLibraryBuilder().add_object_img(code).add_current_process()
    for symbol in symbols:
        builder.export_symbol(symbol)
    linked = builder.link(jit, f"rlx_{key}")
    return {symbol: int(linked[symbol]) for symbol in symbols}, (jit, linked)
