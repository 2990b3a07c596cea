"""Linking objects without LLVM: the same code at other addresses, and a clean refusal of everything else."""

from __future__ import annotations

import platform
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.backends.cpu import native_code
from rlx.backends.cpu.codegen import compile_module
from rlx.backends.cpu.image import CodeImage, NotLinkable, linked
from rlx.backends.cpu.native_code import RUNTIME
from rlx.backends.cpu.target import resolve
from tests.cpu.compiling import TARGETS
from tests.cpu.test_codegen import kernels_of
from tests.cpu.test_object_cache import loaded

pytestmark = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="links x86-64 objects")


@pytest.fixture(scope="module")
def code() -> bytes:
    return compile_module(kernels_of("rms_norm"), resolve(TARGETS[0]))


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_of_every_target_are_linked(target: str) -> None:
    kernels = kernels_of("rms_norm") + kernels_of("tanh") + kernels_of("paged_attention")
    image, offsets = linked(compile_module(kernels, resolve(target)), RUNTIME)
    assert set(offsets) == set(RUNTIME)
    assert all(0 <= offset < len(image) for offset in offsets.values())


def test_the_result_is_that_of_llvms_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.linspace(-9, 9, 1001).astype(np.float32)
    ours = loaded(tmp_path)
    assert isinstance(ours.module.code.library, CodeImage)

    def refuse(*_: object) -> CodeImage:
        raise NotLinkable("not today")

    monkeypatch.setattr(native_code, "CodeImage", refuse)
    theirs = loaded(tmp_path)
    assert theirs.module.cached
    assert not isinstance(theirs.module.code.library, CodeImage)
    assert np.array_equal(ours(x=x)["y0"], theirs(x=x)["y0"])
    ours.close()
    theirs.close()


def test_code_outlives_everything_but_its_owner(tmp_path: Path) -> None:
    """The memory is held by the module and its threads, not by whoever linked."""
    exe = loaded(tmp_path)
    for _ in range(3):
        loaded(tmp_path).close()
    assert np.isfinite(exe(x=np.ones(5, np.float32))["y0"]).all()
    exe.close()


def test_a_missing_symbol_is_told(code: bytes) -> None:
    with pytest.raises(NotLinkable, match="does not define no_such_name"):
        linked(code, ["rlx_run", "no_such_name"])


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"MZ" + bytes(200), bytes(64)])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(NotLinkable):
        linked(content, RUNTIME)


def test_another_machine_is_refused(code: bytes) -> None:
    aarch64 = bytearray(code)
    struct.pack_into("<H", aarch64, 18, 183)
    with pytest.raises(NotLinkable, match="x86-64"):
        linked(bytes(aarch64), RUNTIME)


@given(st.data())
@settings(max_examples=300)
def test_damage_is_linked_or_refused(code: bytes, data: st.DataObject) -> None:
    """A cache entry has a checksum; this is about never reading or writing outside of the object."""
    damaged = bytearray(code)
    for _ in range(data.draw(st.integers(1, 4))):
        # the tables at the end say where everything is
        at = data.draw(st.one_of(st.integers(0, 63), st.integers(len(code) // 2, len(code) - 1)))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(code)), st.integers(0, len(code))))
    try:
        image, offsets = linked(bytes(damaged[:cut]), RUNTIME)
    except NotLinkable:
        return
    assert all(0 <= offset <= len(image) for offset in offsets.values())


def test_a_system_that_forbids_it_links_with_llvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlx.backends.cpu import image

    def forbid(address: int, nbytes: int) -> None:
        raise NotLinkable("memory may not be executed")

    monkeypatch.setattr(image, "_make_executable", forbid)
    exe = loaded(tmp_path)
    assert np.isfinite(exe(x=np.ones(5, np.float32))["y0"]).all()
    exe.close()
