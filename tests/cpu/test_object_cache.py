"""The cache of compiled objects: damage is found, an unwritable folder does no harm, a warm load compiles nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rlx.backends.cpu import codegen, object_cache
from rlx.backends.cpu.backend import CpuBackend
from rlx.backends.cpu.codegen import cache_key
from rlx.backends.cpu.module import CpuModule
from rlx.backends.cpu.target import resolve
from rlx.compiler import compile_graph
from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.graph import Graph
from rlx.core.type import tensor
from rlx.lir.program import Kernel
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, one_op

KEY = "0123456789abcdef0123456789abcdef"
BODY = bytes(range(256)) * 40


def graph() -> Graph:
    return one_op("tanh", {"x": tensor(f32, Dim("n"))})


def loaded(cache: Path | None) -> Executable:
    target = resolve(TARGETS[0])
    program, stages = compile_graph(graph(), CpuBackend(target))
    return Executable(graph(), program, stages, CpuModule(program, None, target, 1, cache))


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "objects").iterdir())


def check_runs(exe: Executable) -> None:
    x = np.linspace(-2, 2, 37).astype(np.float32)
    # tanh is within 1.5 ulp of a value below 1
    assert np.abs(exe(x=x)["y0"] - np.tanh(x.astype(np.float64))).max() <= 1.5 * 2.0**-24
    exe.close()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert object_cache.load(tmp_path, KEY) is None
    assert object_cache.save(tmp_path, KEY, BODY)
    assert object_cache.load(tmp_path, KEY) == BODY
    assert entries(tmp_path) == [f"{KEY}.o"]


@pytest.mark.parametrize("cut", [0, 1, 31, 32, 33, 5000, len(BODY) + 31])
def test_a_truncated_entry_is_thrown_away(tmp_path: Path, cut: int) -> None:
    object_cache.save(tmp_path, KEY, BODY)
    path = tmp_path / "objects" / f"{KEY}.o"
    path.write_bytes(path.read_bytes()[:cut])
    assert object_cache.load(tmp_path, KEY) is None
    assert not path.exists()


@pytest.mark.parametrize("at", [0, 31, 32, 4000, len(BODY) + 31])
def test_a_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    object_cache.save(tmp_path, KEY, BODY)
    path = tmp_path / "objects" / f"{KEY}.o"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    assert object_cache.load(tmp_path, KEY) is None


def test_a_damaged_entry_is_compiled_anew(tmp_path: Path) -> None:
    check_runs(loaded(tmp_path))
    (path,) = (tmp_path / "objects").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    exe = loaded(tmp_path)
    assert not exe.module.cached
    check_runs(exe)
    again = loaded(tmp_path)
    assert again.module.cached
    check_runs(again)


def test_a_warm_load_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = loaded(tmp_path)
    assert not cold.module.cached
    assert cold.module.compile_seconds > 0
    cold.close()

    def refuse(*_: object) -> bytes:
        raise AssertionError("a warm load went to the compiler")

    monkeypatch.setattr(codegen, "compile_module", refuse)
    warm = loaded(tmp_path)
    assert warm.module.cached
    assert warm.module.compile_seconds == 0.0
    check_runs(warm)


def test_an_unwritable_folder_is_done_without(tmp_path: Path) -> None:
    """A file stands where the folder should be (permissions do not stop the superuser)."""
    (tmp_path / "objects").write_text("in the way")
    assert not object_cache.save(tmp_path, KEY, BODY)
    exe = loaded(tmp_path)
    assert not exe.module.cached
    check_runs(exe)
    check_runs(loaded(None))


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    assert not object_cache.save(tmp_path, KEY, BODY)
    assert entries(tmp_path) == []


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        object_cache.save(tmp_path, KEY, BODY)
    assert entries(tmp_path) == []


def test_the_key_depends_on_all_that_decides_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [Kernel("iota", "scalar", ()), Kernel("cast", "scalar", (("to", "f32"),))]
    target = resolve("portable")
    variants = {
        cache_key(kernels, target),
        cache_key(kernels[:1], target),
        cache_key(kernels[::-1], target),
        cache_key([kernels[0], Kernel("cast", "scalar", (("to", "i32"),))], target),
        *(cache_key(kernels, resolve(name)) for name in TARGETS if name != "portable"),
    }
    assert len(variants) == 4 + len(TARGETS) - 1
    from rlx.backends.cpu import codegen

    monkeypatch.setattr(codegen, "backend_version", lambda: "another version")
    assert cache_key(kernels, target) not in variants
