"""Models in several GGUF files: read as one, refused when a file is missing, exchanged or foreign."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlx.errors import FileFormatError, ModelNotFoundError, RlxError
from rlx.io.reference import open_model, resolve
from rlx.io.split_gguf import is_a_model, split_names
from tests.io.gguf_writer import Raw, Tensor, gguf_bytes

COUNT = 3


def part(
    index: int, *, count: int = COUNT, number: int | None = None, total: int = 6, first: int | None = None
) -> bytes:
    """File `index` of a model of 3 x 2 tensors, as llama.cpp's gguf-split writes it: u16 numbers, i32 total."""
    metadata: dict[str, object] = {"general.architecture": "llama"} if index == 0 else {}
    metadata["split.no"] = Raw(2, (index if number is None else number).to_bytes(2, "little"))
    metadata["split.count"] = Raw(2, count.to_bytes(2, "little"))
    metadata["split.tensors.count"] = Raw(5, total.to_bytes(4, "little"))
    start = 2 * index if first is None else first
    tensors = {f"t{name}": Tensor((4,), 0, np.full(4, name, np.float32).tobytes()) for name in range(start, start + 2)}
    return gguf_bytes(metadata, tensors)


def name_of(index: int) -> str:
    return f"m-{index + 1:05d}-of-{COUNT:05d}.gguf"


def written(folder: Path, **changed: bytes) -> Path:
    for index in range(COUNT):
        (folder / name_of(index)).write_bytes(changed.get(f"file{index}", part(index)))
    return folder / name_of(0)


@pytest.mark.parametrize("opened", range(COUNT))
def test_any_file_opens_the_whole_model(tmp_path: Path, opened: int) -> None:
    written(tmp_path)
    model = open_model(tmp_path / name_of(opened))
    assert model.kind == "gguf"
    assert model.path == tmp_path / name_of(0)
    assert model.metadata["general.architecture"] == "llama"
    assert list(model.tensors) == [f"t{index}" for index in range(6)]
    for index in range(6):
        assert model.data(f"t{index}").tobytes() == np.full(4, index, np.float32).tobytes()
        model.release(f"t{index}")
    assert model.file_size == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_a_folder_with_a_split_model_is_that_model(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "mmproj-m-f16.gguf").write_bytes(part(0))
    assert resolve(tmp_path) == tmp_path / name_of(0)


def test_the_identity_depends_on_every_file(tmp_path: Path) -> None:
    first = open_model(written(tmp_path)).identity()
    changed = bytearray(part(2))
    changed[-16:] = np.full(4, 9, np.float32).tobytes()
    (tmp_path / name_of(2)).write_bytes(bytes(changed))
    assert open_model(tmp_path / name_of(0)).identity().digest != first.digest


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    first = written(tmp_path)
    (tmp_path / name_of(1)).unlink()
    with pytest.raises(ModelNotFoundError, match=name_of(1)):
        open_model(first)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (1, part(2), "not the one that its name says"),
        (2, part(2, count=4), "not the one that its name says"),
        (0, part(0, number=1), "not the one that its name says"),
        (0, part(0, total=7), "do not hold all of its tensors"),
        (2, part(2, first=0), "the same tensor"),
        (1, part(1)[:-8], "past the end"),
        (1, b"", "empty"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, file: int, content: bytes, message: str) -> None:
    first = written(tmp_path, **{f"file{file}": content})
    with pytest.raises(FileFormatError, match=message):
        open_model(first)


def test_a_renamed_file_is_not_taken_for_the_model(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(part(0))
    with pytest.raises(FileFormatError, match="name does not say which"):
        open_model(tmp_path / "m.gguf")


@given(data=st.data())
def test_any_damage_is_one_error_or_none(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed or cut anywhere in the heads of the files; values of tensors may change without notice."""
    folder = tmp_path_factory.mktemp("split")
    first = written(folder)
    path = folder / name_of(data.draw(st.integers(0, COUNT - 1)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), *range(0, len(content), 7)]))]))
    try:
        model = open_model(first)
    except RlxError:
        return
    for name, info in model.tensors.items():
        try:
            assert model.data(name).size == info.nbytes
        except RlxError:
            continue


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m.gguf", True),
        ("m-00001-of-00003.gguf", True),
        ("m-00002-of-00003.gguf", False),
        ("m-00001-of-00001.gguf", True),
        ("mmproj-model-f16.gguf", False),
        ("model.imatrix.gguf", False),
        ("m.safetensors", False),
    ],
)
def test_which_files_are_models(name: str, expected: bool) -> None:
    assert is_a_model(name) == expected


@pytest.mark.parametrize(
    "name", ["m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-3.gguf", "m-00001-of-99999.gguf"]
)
def test_numbers_that_make_no_split(name: str) -> None:
    assert split_names(name) is None
