"""The cache of packed weights: the same bits, damage found, nothing partial, a bound, a start that packs nothing.

The expected content of an entry is always the arrays that were saved, and of a model its logits when nothing is kept.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlx.backends.cpu import background, disk_cache, weight_cache, weight_file
from rlx.backends.cpu.kernels import formats
from rlx.backends.cpu.kernels.formats import FORMATS, pack_rows16
from rlx.backends.cpu.weight_cache import PackedTensor, entry_key, load, packing_version, save
from rlx.backends.cpu.weight_file import PAGE, WINDOW
from rlx.core.dtype import q4_1
from rlx.io.gguf import open_gguf
from rlx.io.identity import Identity
from tests.integration.command import environment
from tests.integration.small_gguf import CASE, small_gguf

KEY = "0123456789abcdef0123456789abcdef"
TENSORS = [PackedTensor("a", "q4_1", (64, 64), "rows16"), PackedTensor("b", "f32", (16, 8), "rows16")]


def arrays(seed: int = 1) -> list[np.ndarray]:
    """Sizes that end on a cache line, off it, in several windows, and in none."""
    random = np.random.default_rng(seed)
    sizes = (64, 3 * WINDOW + 17, 0, 1, 2 * WINDOW, 12345)
    return [random.integers(0, 256, size, dtype=np.uint8) for size in sizes]


def path_of(folder: Path, key: str = KEY) -> Path:
    return folder / "weights" / f"{key}.bin"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "weights").glob("*")) if (folder / "weights").is_dir() else []


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


# ---- entries ----


def test_what_is_saved_is_mapped(tmp_path: Path) -> None:
    assert load(tmp_path, KEY, 6) is None
    assert save(tmp_path, KEY, "model.gguf", arrays())
    assert files(tmp_path) == [f"{KEY}.bin"]
    loaded = load(tmp_path, KEY, 6)
    assert loaded is not None
    for found, expected in zip(loaded, arrays(), strict=True):
        assert np.array_equal(found, expected)
        assert not found.flags.writeable
        assert not found.size or found.ctypes.data % 64 == 0
    head = weight_file.file_head(path_of(tmp_path))
    assert head is not None
    assert head.source == "model.gguf"
    assert weight_file.is_whole(path_of(tmp_path))


def test_a_mapping_outlives_the_entry(tmp_path: Path) -> None:
    save(tmp_path, KEY, "model", arrays())
    loaded = load(tmp_path, KEY, 6)
    assert disk_cache.remove(path_of(tmp_path))
    save(tmp_path, KEY, "model", arrays(2))
    assert loaded is not None
    assert np.array_equal(loaded[1], arrays()[1])


SIZE = 5 * WINDOW + PAGE


@pytest.mark.parametrize("cut", [0, 1, 55, 56, 57, 400, PAGE, PAGE + 1, SIZE, -1])
def test_a_truncated_entry_is_thrown_away(tmp_path: Path, cut: int) -> None:
    save(tmp_path, KEY, "model", arrays())
    path = path_of(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    assert not weight_file.is_whole(path)
    assert load(tmp_path, KEY, 6) is None
    assert not path.exists()


def test_a_longer_entry_is_thrown_away(tmp_path: Path) -> None:
    save(tmp_path, KEY, "model", arrays())
    path = path_of(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    assert load(tmp_path, KEY, 6) is None
    assert not path.exists()


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, 23, 24, 55, 56, 100, 300])
def test_a_flipped_bit_in_the_head_is_found(tmp_path: Path, at: int) -> None:
    save(tmp_path, KEY, "model", arrays())
    flip(path_of(tmp_path), at)
    assert not weight_file.is_whole(path_of(tmp_path))
    assert load(tmp_path, KEY, 6) is None
    assert not path_of(tmp_path).exists()


def test_a_lost_range_of_two_windows_is_found_at_load(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    for start in (PAGE, PAGE + WINDOW // 2, PAGE + 3 * WINDOW - 1):
        save(tmp_path, KEY, "model", arrays())
        content = bytearray(path.read_bytes())
        content[start : start + 2 * WINDOW] = bytes(2 * WINDOW)
        path.write_bytes(bytes(content))
        assert load(tmp_path, KEY, 6) is None


def test_one_flipped_bit_in_the_content_is_found_by_verify(tmp_path: Path) -> None:
    save(tmp_path, KEY, "model", arrays())
    flip(path_of(tmp_path), PAGE + WINDOW - 1)  # the sample of the first window is its first page
    assert load(tmp_path, KEY, 6) is not None, "samples do not see all; if they do now, say so in weight_file.py"
    assert not weight_file.is_whole(path_of(tmp_path))
    flip(path_of(tmp_path), PAGE)
    assert load(tmp_path, KEY, 6) is None


def test_an_entry_under_another_name_is_thrown_away(tmp_path: Path) -> None:
    save(tmp_path, KEY, "model", arrays())
    other = KEY[::-1]
    path_of(tmp_path).rename(path_of(tmp_path, other))
    assert not weight_file.is_whole(path_of(tmp_path, other))
    assert load(tmp_path, other, 6) is None


def test_an_entry_of_another_count_is_thrown_away(tmp_path: Path) -> None:
    save(tmp_path, KEY, "model", arrays())
    assert load(tmp_path, KEY, 5) is None


def test_samples_do_not_depend_on_the_pieces() -> None:
    content = np.random.default_rng(3).integers(0, 256, 4 * WINDOW + 999, dtype=np.uint8)
    digests: set[str] = set()
    for step in (content.size, WINDOW, PAGE + 1, 100_003):
        samples = weight_file.Samples()
        for first in range(0, content.size, step):
            samples.update(content[first : first + step])
        digests.add(samples.hexdigest())
    assert len(digests) == 1


# ---- writing that does not work ----


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    assert not save(tmp_path, KEY, "model", arrays())
    assert files(tmp_path) == []


def test_the_last_space_is_left_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = sum(array.nbytes for array in arrays())
    usage = shutil.disk_usage(tmp_path)
    for free, expected in ((2 * nbytes - 1, False), (2 * nbytes, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert save(tmp_path, KEY, "model", arrays()) is expected
        assert bool(files(tmp_path)) is expected


def test_an_unwritable_folder_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("in the way")
    assert not save(tmp_path, KEY, "model", arrays())
    assert load(tmp_path, KEY, 6) is None


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, KEY, "model", arrays())
    assert files(tmp_path) == []


def test_writing_is_given_up_when_it_is_unwanted(tmp_path: Path) -> None:
    answers = iter([False, True])
    assert not save(tmp_path, KEY, "model", arrays(), lambda: next(answers))
    assert files(tmp_path) == []


def test_what_a_killed_writer_leaves_is_swept_away(tmp_path: Path) -> None:
    save(tmp_path, KEY, "model", arrays())
    old, fresh = (tmp_path / "weights" / f".{KEY}.{name}" for name in ("old", "fresh"))
    old.write_bytes(bytes(100))
    fresh.write_bytes(bytes(100))
    long_ago = time.time() - 2 * disk_cache.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    disk_cache.trim(tmp_path, 10**9)
    assert not old.exists()
    assert fresh.exists()
    assert path_of(tmp_path).exists()


WRITER = """
import sys, numpy as np
from pathlib import Path
from rlx.backends.cpu import weight_cache
from tests.cpu.test_weight_cache import KEY, arrays
for _ in range(8):
    assert weight_cache.save(Path(sys.argv[1]), KEY, "model", arrays())
    loaded = weight_cache.load(Path(sys.argv[1]), KEY, 6)
    assert loaded is not None and all(map(np.array_equal, loaded, arrays()))
"""


def test_two_processes_write_one_entry(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=root, env=environment()) for _ in range(2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert files(tmp_path) == [f"{KEY}.bin"]
    assert weight_file.is_whole(path_of(tmp_path))


# ---- the bound ----


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    keys = [f"{i:032x}" for i in range(4)]
    for i, key in enumerate(keys):
        if i % 2:
            save(tmp_path, key, "model", [np.zeros(PAGE, np.uint8)])
        else:
            with disk_cache.replacing(disk_cache.entry_path(tmp_path, "objects", key)) as file:
                file.write(bytes(2 * PAGE))
        (entry,) = [entry for entry in disk_cache.entries(tmp_path) if entry.path.stem == key]
        then = time.time() - 1000 + i
        os.utime(entry.path, (then, then))
    load(tmp_path, keys[1], 1)  # it was used just now
    assert disk_cache.trim(tmp_path, 8 * PAGE) == 0
    assert len(disk_cache.entries(tmp_path)) == 4
    assert disk_cache.trim(tmp_path, 4 * PAGE) == 4 * PAGE
    assert {entry.path.stem for entry in disk_cache.entries(tmp_path)} == {keys[1], keys[3]}
    disk_cache.trim(tmp_path, 2 * PAGE)
    assert [entry.path.stem for entry in disk_cache.entries(tmp_path)] == [keys[1]]
    assert disk_cache.trim(tmp_path, 0) == 2 * PAGE
    assert disk_cache.entries(tmp_path) == []


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / f"{KEY}.o").write_bytes(bytes(100))
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "objects").symlink_to(outside)
    (cache / "weights").mkdir()
    (cache / "weights" / "notes.bin").write_bytes(bytes(100))
    (cache / "weights" / f"{KEY}.bin").symlink_to(outside / f"{KEY}.o")
    disk_cache.trim(cache, 0)
    assert (outside / f"{KEY}.o").exists()
    assert (cache / "weights" / "notes.bin").exists()
    assert (cache / "weights" / f"{KEY}.bin").is_symlink()


# ---- keys ----


def test_the_key_depends_on_all_that_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(identity: str = "a" * 64, tensors: list[PackedTensor] = TENSORS, pack: Any = pack_rows16) -> str:
        return entry_key(Identity(identity, "model"), tensors, pack)

    def repacked(dtype: Any, raw: Any, shape: Any) -> Any:
        return pack_rows16(dtype, raw, shape)[::-1]

    a, b = TENSORS
    variants = {
        key(),
        key("b" * 64),
        key(tensors=[a]),
        key(tensors=[b, a]),
        key(tensors=[a, PackedTensor("c", b.dtype, b.shape, b.layout)]),
        key(tensors=[a, PackedTensor("b", "f16", b.shape, b.layout)]),
        key(tensors=[a, PackedTensor("b", b.dtype, (8, 16), b.layout)]),
        key(tensors=[a, PackedTensor("b", b.dtype, b.shape, "rows8")]),
        key(pack=repacked),
    }
    assert len(variants) == 9
    assert key() in variants
    monkeypatch.setattr(weight_cache, "MAGIC", b"RLXPACK2")
    packing_version.cache_clear()
    assert key() not in variants
    packing_version.cache_clear()


def test_every_format_has_a_version() -> None:
    assert len({packing_version(name, pack_rows16) for name in FORMATS}) == len(FORMATS)


def test_the_identity_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    first = open_gguf(path).identity()
    assert open_gguf(path).identity() == first
    moved = path.rename(tmp_path / "other.gguf")
    assert open_gguf(moved).identity().digest == first.digest
    assert open_gguf(moved).identity().name == "other.gguf"
    stat = moved.stat()
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(bytes(content))
    os.utime(moved, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = open_gguf(moved).identity().digest
    assert changed != first.digest, "the last page is a sample"
    os.utime(moved, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert open_gguf(moved).identity().digest not in (changed, first.digest)


# ---- models ----


@pytest.fixture
def model_path(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model whose weights are kept although they are few, at once."""
    monkeypatch.setattr(weight_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(background, "PATIENCE_SECONDS", 0.0)
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    return path


def logits(path: Path) -> tuple[np.ndarray, bool]:
    """The logits of a text, and whether the weights came from the cache; an entry is written before this returns."""
    import rlx

    with rlx.load(path, threads=1) as model:
        module: Any = model._program.module  # type: ignore[attr-defined]
        if module._keeper is not None:
            module._keeper.finish()
        return model.logits(CASE.ids), module.weights_cached


def refuse(*_: Any) -> Any:
    raise AssertionError("a warm start packed")


def test_a_warm_start_packs_nothing(model_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold, cached = logits(model_path)
    assert not cached
    assert len(files(empty_cache)) == 1
    pack = formats.pack_rows16

    def only_probes(dtype: Any, raw: Any, shape: tuple[int, ...]) -> Any:
        return pack(dtype, raw, shape) if shape[0] == 35 else refuse()

    monkeypatch.setattr(formats, "pack_rows16", only_probes)
    warm, cached = logits(model_path)
    assert cached
    assert np.array_equal(warm, cold)
    monkeypatch.setattr(weight_cache, "load", lambda *_: None)
    with pytest.raises(AssertionError, match="a warm start packed"):
        logits(model_path)


@pytest.mark.parametrize("damage", ["truncated", "head", "content", "empty", "version"])
def test_a_damaged_entry_is_made_anew(damage: str, model_path: Path, empty_cache: Path) -> None:
    expected, _ = logits(model_path)
    (name,) = files(empty_cache)
    path = empty_cache / "weights" / name
    content = path.read_bytes()
    match damage:
        case "truncated":
            path.write_bytes(content[:-100])
        case "empty":
            path.write_bytes(b"")
        case "version":
            path.write_bytes(b"RLXPACK0" + content[8:])
        case _:
            head = weight_file.file_head(path)
            assert head is not None
            flip(path, 60 if damage == "head" else head.start)
    assert not weight_file.is_whole(path)
    again, cached = logits(model_path)
    assert not cached
    assert np.array_equal(again, expected)
    assert path.read_bytes() == content
    assert logits(model_path)[1]


def test_a_changed_file_is_packed_anew(model_path: Path, empty_cache: Path) -> None:
    before, _ = logits(model_path)
    checkpoint = open_gguf(model_path)
    info = checkpoint.tensors["output_norm.weight"]
    content = bytearray(model_path.read_bytes())
    content[info.offset : info.offset + info.nbytes] = bytes(info.nbytes)
    model_path.write_bytes(bytes(content))
    after, cached = logits(model_path)
    assert not cached
    assert not np.array_equal(before, after)
    assert len(files(empty_cache)) == 2


def test_nothing_is_kept_when_it_is_off_or_beyond_the_limit(
    model_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLX_CACHE_LIMIT", "100")
    assert not logits(model_path)[1]
    assert disk_cache.entries(empty_cache) == []
    monkeypatch.delenv("RLX_CACHE_LIMIT")
    monkeypatch.setenv("RLX_OBJECT_CACHE", "off")
    assert not logits(model_path)[1]
    assert not logits(model_path)[1]
    assert disk_cache.entries(empty_cache) == []


def test_small_models_and_arrays_are_not_kept(tmp_path: Path, empty_cache: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(small_gguf())
    assert not logits(path)[1]
    assert files(empty_cache) == []


def test_weights_in_memory_are_not_kept(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rlx
    from rlx.core.dtype import f32
    from rlx.core.type import tensor
    from rlx.flow import DictWeights
    from tests.cpu.compiling import one_op, stored

    monkeypatch.setattr(weight_cache, "MIN_BYTES", 0)
    weight = stored(q4_1, np.ones((16, 32), np.float32))
    graph = one_op("linear", {"x": tensor(f32, 1, 32)}, {"w": weight[0]})
    with_dict = rlx.compile(graph, DictWeights({"w": weight}))
    with_dict.close()
    assert files(empty_cache) == []


def test_the_end_of_a_short_program_leaves_an_entry(model_path: Path, empty_cache: Path) -> None:
    code = (
        "import sys, rlx; from rlx.backends.cpu import background, weight_cache; weight_cache.MIN_BYTES = 0;"
        f"background.PATIENCE_SECONDS = 60.0; model = rlx.load({str(model_path)!r});"
        "print(model._program.module.weights_cached)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env=environment(RLX_CACHE_DIR=str(empty_cache)),
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert [text.strip() for text in outputs] == ["False", "True"]
