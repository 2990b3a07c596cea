"""Files of CTranslate2: what is in them, and that no lie in them is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from rlx.errors import FileFormatError, RlxError, UnsupportedModelError
from rlx.io.ctranslate2 import CTranslate2Folder, open_ctranslate2
from rlx.io.reference import open_model
from tests.io.ctranslate2_writer import ctranslate2_bytes, text

TENSORS = {
    "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "a/bias": np.array([1.5, -2.0], np.float32),
    "heads": np.array(8, np.int16),
    "flag": np.array(1, np.int8),
}
WHOLE = ctranslate2_bytes("SomeSpec", TENSORS, {"b/weight": "a/weight"})


def opened(folder: Path, raw: bytes) -> CTranslate2Folder:
    (folder / "model.bin").write_bytes(raw)
    return open_ctranslate2(folder)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"suppress_ids": [1]}')
    folder = opened(tmp_path, WHOLE)
    assert folder.specification == "SomeSpec"
    assert folder.metadata == {"suppress_ids": [1], "specification": "SomeSpec"}
    for name, alias in (("a/weight", "b/weight"), ("a/bias", "a/bias")):
        for found in (folder.data(name), folder.data(alias)):
            assert found.tobytes() == TENSORS[name].tobytes()
        assert folder.tensors[alias].shape == TENSORS[name].shape
    assert (folder.number("heads"), folder.number("flag"), folder.number("none")) == (8, 1, None)
    with pytest.raises(FileFormatError):
        folder.number("a/bias")
    assert open_model(tmp_path).kind == "ctranslate2"
    assert folder.identity() == open_ctranslate2(tmp_path).identity()


def test_no_prefix_is_a_file(tmp_path: Path) -> None:
    without_aliases = len(WHOLE) - 4 - len(text("b/weight")) - len(text("a/weight"))
    for length in range(1, len(WHOLE)):
        if length == without_aliases:  # the list of second names may be missing
            continue
        with pytest.raises(RlxError):
            opened(tmp_path, WHOLE[:length])


NAME = WHOLE.index(text("a/weight"))
ENTRY = NAME + len(text("a/weight"))
LIES = {
    "rank": (ENTRY, b"\xff"),
    "shape": (ENTRY + 1, struct.pack("<I", 2**31)),
    "type": (ENTRY + 9, b"\x63"),
    "bytes": (ENTRY + 10, struct.pack("<I", 2**32 - 1)),
    "count": (4 + len(text("SomeSpec")) + 4, struct.pack("<I", 2**32 - 1)),
    "name": (NAME, struct.pack("<H", 0xFFFF)),
}


@pytest.mark.parametrize("name", LIES)
def test_a_length_that_lies(name: str, tmp_path: Path) -> None:
    place, raw = LIES[name]
    with pytest.raises(FileFormatError):
        opened(tmp_path, WHOLE[:place] + raw + WHOLE[place + len(raw) :])


MISFITS = {
    "rest": WHOLE + b"x",
    "alias_of_nothing": ctranslate2_bytes("S", TENSORS, {"b": "none"}),
    "alias_twice": ctranslate2_bytes("S", TENSORS, {"flag": "heads"}),
}


@pytest.mark.parametrize("raw", MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_together(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        opened(tmp_path, raw)


def test_another_version(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="version"):
        opened(tmp_path, ctranslate2_bytes("S", TENSORS, {}, version=5))
