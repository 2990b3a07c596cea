"""The GGUF reader: what it reads, against the `gguf` package; and that damage never gets past it."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.core import dtype
from rlx.core.storage import decode
from rlx.errors import (
    FileFormatError,
    MissingTensorError,
    ModelNotFoundError,
    RlxError,
    UnsupportedModelError,
)
from rlx.io.gguf import GGUFFile, open_gguf
from rlx.io.string_array import StringArray
from tests.io.gguf_writer import ARRAY, BOOL, STRING, UINT64, Raw, Tensor, array, gguf_bytes, string, write_gguf

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "flag": True,
    "words": ["one", "", "zwei", "три", "x" * 300],
    "counts": [1, 2, 3],
}
TENSORS = {
    "a.weight": Tensor((64, 2), 3, bytes(range(80))),
    "b.weight": Tensor((3,), 0, struct.pack("<3f", 1.0, -2.0, 0.5)),
    "c.weight": Tensor((256, 1), 15, bytes(292)),
}
GOOD = gguf_bytes(METADATA, TENSORS)


def opened(tmp_path: Path, content: bytes) -> GGUFFile:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return open_gguf(path)


def use_everything(file: GGUFFile) -> None:
    """Touch all that a reader of the file could touch."""
    for item in file.metadata.values():
        if isinstance(item, StringArray):
            assert len(item.decoded()) == len(item)
        elif isinstance(item, np.ndarray):
            item.sum()
    for name, info in file.tensors.items():
        if info.dtype.name in dtype.DTYPES:
            assert file.data(name).size == info.nbytes
            file.data(name).sum()
            file.release(name)


def test_reads_what_was_written(tmp_path: Path) -> None:
    file = opened(tmp_path, GOOD)
    assert (file.kind, file.version, file.alignment, file.file_size) == ("gguf", 3, 32, len(GOOD))
    metadata = dict(file.metadata)
    words, counts = metadata.pop("words"), metadata.pop("counts")
    assert isinstance(words, StringArray)
    assert list(words) == words.decoded() == METADATA["words"]
    assert words[1:3] == ["", "zwei"]
    np.testing.assert_array_equal(counts, [1, 2, 3])  # pyright: ignore[reportArgumentType]
    assert metadata == {key: METADATA[key] for key in metadata}
    assert file.tensors["a.weight"].shape == (2, 64)
    assert file.tensors["a.weight"].dtype is dtype.q4_1
    assert file.data("a.weight").tobytes() == bytes(range(80))
    np.testing.assert_array_equal(file.data("b.weight").view(np.float32), [1.0, -2.0, 0.5])


def test_version_2_is_read(tmp_path: Path) -> None:
    file = opened(tmp_path, gguf_bytes(METADATA, TENSORS, version=2))
    assert file.version == 2
    use_everything(file)


def test_alignment_of_the_file_is_used(tmp_path: Path) -> None:
    content = gguf_bytes({"general.alignment": 64}, TENSORS, alignment=64)
    file = opened(tmp_path, content)
    assert file.alignment == 64
    assert all(info.offset % 64 == 0 for info in file.tensors.values())
    assert file.data("a.weight").tobytes() == bytes(range(80))


def test_a_type_that_is_only_listed_can_be_inspected_but_not_used(tmp_path: Path) -> None:
    file = opened(tmp_path, GOOD)
    info = file.tensors["c.weight"]
    assert (info.dtype.name, info.shape, info.nbytes) == ("q8_k", (1, 256), 292)
    with pytest.raises(UnsupportedModelError, match=r"c\.weight"):
        file.data("c.weight")
    with pytest.raises(MissingTensorError, match="nothing"):
        file.data("nothing")


def test_every_ggml_type_has_the_size_gguf_gives_it(tmp_path: Path) -> None:
    from rlx.io.ggml_types import GGML_TYPES

    sizes = {kind.value: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    sizes[9] = (32, 36)  # q8_1 is never stored; its scales are halves in ggml-common.h, the package says floats
    assert {kind: (entry.block_size, entry.block_bytes) for kind, entry in GGML_TYPES.items()} == sizes
    assert all(entry.name == gguf.GGMLQuantizationType(kind).name.lower() for kind, entry in GGML_TYPES.items())


def test_a_file_of_the_gguf_package_is_read(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer: Any = gguf.GGUFWriter(path, "llama")
    writer.add_uint64("big", 2**40)
    writer.add_int8("small", -5)
    writer.add_float64("double", 0.1)
    writer.add_bool("flag", False)
    writer.add_array("flags", [True, False])
    writer.add_array("nested", [[1, 2], [3]])
    writer.add_array("words", ["a", "bc"])
    weights = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    packed = gguf.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("plain", weights)
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(path)
    assert [file.metadata[key] for key in ("big", "small", "double", "flag")] == [2**40, -5, 0.1, False]
    assert np.asarray(file.metadata["flags"]).tolist() == [True, False]
    nested: Any = file.metadata["nested"]
    assert [part.tolist() for part in nested] == [[1, 2], [3]]
    np.testing.assert_array_equal(decode(dtype.f32, file.data("plain"), (4, 64)), weights)
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(decode(dtype.q8_0, file.data("packed"), file.tensors["packed"].shape), expected)


def test_default_model_is_read_as_the_gguf_package_reads_it(smollm2_path: Path) -> None:
    file, reference = open_gguf(smollm2_path), gguf.GGUFReader(smollm2_path)
    assert len(file.tensors) == len(reference.tensors) == 272
    for tensor in reference.tensors:
        info = file.tensors[tensor.name]
        assert info.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
    for key, field in reference.fields.items():
        if not key.startswith("GGUF."):
            found: Any = file.metadata[key]
            expected = field.contents()
            assert (list(found) if isinstance(expected, list) else found) == expected
    first = reference.tensors[2]
    np.testing.assert_array_equal(file.data(first.name), first.data.view(np.uint8).reshape(-1))


def test_strings_with_zero_bytes_are_read_one_by_one(tmp_path: Path) -> None:
    words = ["\0", "a\0" * 9, "", "b"]
    found = opened(tmp_path, gguf_bytes({"words": words})).metadata["words"]
    assert isinstance(found, StringArray)
    assert found.decoded() == words


def test_merges_are_split_at_their_space(tmp_path: Path) -> None:
    file = opened(tmp_path, gguf_bytes({"good": ["a b", "Ġ t"], "odd": ["a b c", "d e"], "bad": ["a b", "cd"]}))
    good, odd, bad = (file.metadata[key] for key in ("good", "odd", "bad"))
    assert isinstance(good, StringArray)
    assert isinstance(odd, StringArray)
    assert isinstance(bad, StringArray)
    assert good.pairs() == [("a", "b"), ("Ġ", "t")]
    assert odd.pairs() == [("a", "b c"), ("d", "e")]
    with pytest.raises(FileFormatError, match="merge 1"):
        bad.pairs()


HUGE = 2**64 - 1
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "three bytes": b"GGU",
    "wrong magic": b"GGML" + GOOD[4:],
    "version 1": GOOD[:4] + struct.pack("<I", 1) + GOOD[8:],
    "big endian": GOOD[:4] + struct.pack(">I", 3) + GOOD[8:],
    "huge tensor count": GOOD[:8] + struct.pack("<Q", HUGE) + GOOD[16:],
    "huge value count": GOOD[:16] + struct.pack("<Q", HUGE) + GOOD[24:],
    "huge key length": GOOD[:24] + struct.pack("<Q", HUGE) + GOOD[32:],
    "huge string": gguf_bytes({"k": Raw(STRING, struct.pack("<Q", HUGE) + b"abc")}),
    "huge string in array": gguf_bytes({"k": array(STRING, [struct.pack("<Q", 2**63) + b"abc", string("d")])}),
    "wrapping strings in array": gguf_bytes({"k": array(STRING, [struct.pack("<Q", HUGE - 7), string("d")])}),
    "huge array": gguf_bytes({"k": Raw(ARRAY, struct.pack("<IQ", UINT64, 2**61))}),
    "huge array of strings": gguf_bytes({"k": Raw(ARRAY, struct.pack("<IQ", STRING, 2**61))}),
    "huge array of arrays": gguf_bytes({"k": Raw(ARRAY, struct.pack("<IQ", ARRAY, 2**40))}),
    "deep arrays": gguf_bytes({"k": Raw(ARRAY, struct.pack("<IQ", ARRAY, 1) * 4000 + bytes(12))}),
    "unknown value type": gguf_bytes({"k": Raw(13, b"")}),
    "unknown element type": gguf_bytes({"k": Raw(ARRAY, struct.pack("<IQ", 99, 0))}),
    "truth value 2": gguf_bytes({"k": Raw(BOOL, b"\2")}),
    "truth value 2 in array": gguf_bytes({"k": array(BOOL, [b"\2"])}),
    "key not UTF-8": GOOD.replace(b"general.architecture", b"general.architectur\xff"),
    "alignment 3": gguf_bytes({"general.alignment": 3}, TENSORS),
    "alignment 0": gguf_bytes({"general.alignment": 0}, TENSORS),
    "alignment is text": gguf_bytes({"general.alignment": "32"}, TENSORS),
    "five dimensions": gguf_bytes({}, {"t": Tensor((1, 1, 1, 1, 1), 0, bytes(4))}),
    "overflowing sizes": gguf_bytes({}, {"t": Tensor((2**32, 2**32, 2**32, 2**32), 0, bytes(4))}),
    "sizes that wrap to zero": gguf_bytes({}, {"t": Tensor((2**32, 2**32), 0, bytes(4))}),
    "unknown tensor type": gguf_bytes({}, {"t": Tensor((1,), 4, bytes(4))}),
    "broken block": gguf_bytes({}, {"t": Tensor((33,), 3, bytes(40))}),
    "not aligned": gguf_bytes({}, {"t": Tensor((1,), 0, bytes(40), offset=4)}),
    "past the end": gguf_bytes({}, {"t": Tensor((1,), 0, bytes(4), offset=64)}),
    "offset near the top": gguf_bytes({}, {"t": Tensor((1,), 0, bytes(4), offset=2**64 - 32)}),
    "overlap": gguf_bytes({}, {"t": Tensor((16,), 0, bytes(64)), "u": Tensor((16,), 0, bytes(64), offset=32)}),
    "duplicate key": gguf_bytes({"key1": 1, "key2": 2}).replace(b"key2", b"key1"),
    "duplicate tensor": gguf_bytes({}, {"t1": TENSORS["b.weight"], "t2": TENSORS["b.weight"]}).replace(b"t2", b"t1"),
    "missing last byte": GOOD[:-1],
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_little_memory(tmp_path: Path, case: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"model\.gguf"):
            opened(tmp_path, BROKEN[case])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000  # the files are a few kilobytes; pytest's own machinery is in this number


def test_message_says_where(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="at byte 16") as caught:
        opened(tmp_path, GOOD[:8] + struct.pack("<Q", HUGE) + GOOD[16:20])
    assert caught.value.fix


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="folder"):
        open_gguf(tmp_path)
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        open_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFoundError):
        open_gguf("a\0b")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", {})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelNotFoundError, match="Permission denied"):
        open_gguf(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in (*range(300), *range(300, len(GOOD), 5), len(GOOD) - 1):
        with pytest.raises(FileFormatError):
            opened(tmp_path, GOOD[:length])


@given(st.lists(st.integers(0, len(GOOD) * 8 - 1), min_size=1, max_size=8))
def test_bit_flips_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, flips: list[int]) -> None:
    content = bytearray(GOOD)
    for bit in flips:
        content[bit // 8] ^= 1 << bit % 8
    folder = tmp_path_factory.getbasetemp()
    with contextlib.suppress(RlxError):
        use_everything(opened(folder, bytes(content)))


@given(st.binary(max_size=400))
def test_any_bytes_after_the_magic(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    head = b"GGUF" + struct.pack("<I", 3)
    with contextlib.suppress(RlxError):
        use_everything(opened(tmp_path_factory.getbasetemp(), head + tail))
