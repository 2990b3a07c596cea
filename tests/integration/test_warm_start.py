"""A start from what an earlier one kept: nothing is parsed, passed over or compiled, and the bits are the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import rlx
from rlx.backends.cpu import background, codegen, disk_cache, weight_cache
from rlx.errors import RlxError
from rlx.runtime import load as loading
from rlx.runtime import start_cache, warm_start
from rlx.runtime.loaded_model import LoadedModel as Model
from tests.integration.command import ROOT, environment
from tests.integration.small_gguf import CASE, metadata, small_gguf
from tests.models.checkpoints import write_folder, write_gguf
from tests.models.family_files import FAMILIES, LAYOUTS, gguf_tensors


@pytest.fixture
def path(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model whose weights are kept although they are few, at once."""
    monkeypatch.setattr(weight_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(background, "PATIENCE_SECONDS", 0.0)
    model = tmp_path / "model.gguf"
    model.write_bytes(small_gguf())
    return model


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models that were made from their files, and not from an entry."""
    made: list[Path] = []
    parts = loading._parts

    def counted(checkpoint: Any, *arguments: Any) -> Any:
        made.append(checkpoint.path)
        return parts(checkpoint, *arguments)

    monkeypatch.setattr(loading, "_parts", counted)
    return made


def finish(model: Model) -> None:
    """Wait until everything that is kept of a model is on disk."""
    program: Any = model._program
    for work in (program.module._keeper, program._later):
        if work is not None:
            work.finish()


def outcome(path: Path, **options: Any) -> tuple[np.ndarray, tuple[int, ...], dict[str, object]]:
    """Logits of a text, tokens of a generation, and the facts, of one start."""
    with rlx.load(path, threads=1, **options) as model:
        finish(model)
        tokens = model.generate("ab", max_tokens=5, temperature=0, ignore_eos=True).tokens
        facts = {key: value for key, value in model.info.items() if not key.endswith("_seconds")}
        return model.logits(CASE.ids), tokens, facts


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "starts").glob("*"))


def same(found: Any, expected: Any) -> bool:
    """Everything but where the code came from."""
    facts = [{**outcome[2], "cache": ""} for outcome in (found, expected)]
    return bool(np.array_equal(found[0], expected[0])) and found[1] == expected[1] and facts[0] == facts[1]


def test_the_second_start_is_from_the_entry(path: Path, empty_cache: Path, long_ways: list[Path]) -> None:
    first, second = outcome(path), outcome(path)
    assert long_ways == [path]
    assert len(entries(empty_cache)) == 1
    assert same(second, first)
    assert second[2]["cache"] == "warm"


def test_what_the_model_says_and_does_is_the_same(path: Path) -> None:
    def answers() -> list[object]:
        with rlx.load(path) as model:
            finish(model)
            chat = model.chat([{"role": "user", "content": "ab"}], max_tokens=4, temperature=0)
            with pytest.raises(RlxError) as refusal:
                model.generate("x" * 400)
            return [
                chat.tokens,
                chat.prompt_tokens,
                model.context,
                model.vocab_size,
                refusal.value.what,
                model.tokenize("ab c"),
            ]

    assert answers() == answers()


def test_another_process_loads_no_compiler(path: Path, empty_cache: Path) -> None:
    code = f"""
import sys
from rlx.backends.cpu import background, weight_cache
weight_cache.MIN_BYTES = 0
import rlx
with rlx.load({str(path)!r}) as model:
    model.generate("ab", max_tokens=3, temperature=0)
unwanted = ("llvmlite", "rlx.hir", "rlx.mir", "rlx.ops", "rlx.models", "rlx.compiler", "rlx.flow.flow", "jinja2")
print(*(name for name in unwanted if name in sys.modules))
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment(RLX_CACHE_DIR=str(empty_cache)),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.split()
        for _ in range(2)
    ]
    assert "llvmlite" in outputs[0]
    assert outputs[1] == []


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "flipped", "renamed"])
def test_a_damaged_entry_is_made_anew(damage: str, path: Path, empty_cache: Path, long_ways: list[Path]) -> None:
    first = outcome(path)
    (entry,) = entries(empty_cache)
    content = entry.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    changed = {"truncated": content[:-1], "garbage": content[::-1], "empty": b"", "flipped": bytes(flipped)}
    if damage == "renamed":  # the entry of another model under this one's name
        with rlx.load(path, threads=1, context=64) as other:
            finish(other)
        (theirs,) = [found for found in entries(empty_cache) if found != entry]
        os.replace(theirs, entry)
        long_ways.pop()
    else:
        entry.write_bytes(changed[damage])
    assert same(outcome(path), first)
    assert same(outcome(path), first)
    assert long_ways == [path, path]
    assert start_cache.is_whole(entry)


@pytest.mark.parametrize("kind", ["objects", "weights", "starts"])
def test_what_is_gone_is_made_anew(kind: str, path: Path, empty_cache: Path, long_ways: list[Path]) -> None:
    first = outcome(path)
    for file in (empty_cache / kind).iterdir():
        file.unlink()
    assert same(outcome(path), first)
    assert same(outcome(path), first)
    assert long_ways == [path, path]


@pytest.mark.parametrize("kind", ["objects", "weights"])
def test_a_part_that_is_damaged_is_made_anew(kind: str, path: Path, empty_cache: Path) -> None:
    first = outcome(path)
    (file,) = (empty_cache / kind).iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert same(outcome(path), first)


def test_each_way_to_compile_has_its_own_entry(path: Path, long_ways: list[Path]) -> None:
    ways: list[dict[str, Any]] = [{}, {"precision": "exact"}, {"context": 64}, {"target": "portable"}]
    first = [outcome(path, **way) for way in ways]
    assert len(long_ways) == len(ways)
    assert all(same(outcome(path, **way), found) for way, found in zip(ways, first, strict=True))
    assert len(long_ways) == len(ways)
    assert [found[2]["context_length"] for found in first] == [128, 128, 64, 128]


def test_a_changed_model_is_another_model(path: Path, long_ways: list[Path]) -> None:
    first = outcome(path)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert same(outcome(path), first)
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(3.0).tobytes()  # of the last page, which is sampled
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not np.array_equal(outcome(path)[0], first[0])
    assert len(long_ways) == 3


def test_a_changed_installation_is_another_one(
    path: Path, long_ways: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome(path)
    stamps = start_cache._installation()
    assert any("load.py" in line for line in stamps)
    assert any("llvmlite" in line for line in stamps)
    monkeypatch.setattr(start_cache, "_installation", lambda: [*stamps, "a newer file"])
    outcome(path)
    processor = start_cache._processor()
    assert any(line.startswith("flags") for line in processor)
    monkeypatch.setattr(start_cache, "_processor", lambda: processor[1:])
    outcome(path)
    assert len(long_ways) == 3


def test_a_system_that_does_not_say_its_processor_keeps_nothing(
    path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_cache, "_CPUINFO", path.with_name("no such file"))
    outcome(path)
    assert entries(empty_cache) == []


def test_a_full_disk_does_no_harm(path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    first = outcome(path)
    for file in entries(empty_cache):
        file.unlink()
    monkeypatch.setattr(disk_cache, "replacing", full)
    assert same(outcome(path), first)
    assert entries(empty_cache) == []


def test_without_a_cache_nothing_is_kept(path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLX_OBJECT_CACHE", "off")
    outcome(path)
    assert not empty_cache.exists()


def test_a_dump_shows_every_stage_of_every_start(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLX_DUMP", str(tmp_path / "dump"))
    outcome(path)
    count = len(list((tmp_path / "dump").iterdir()))
    for file in (tmp_path / "dump").iterdir():
        file.unlink()
    outcome(path)
    assert len(list((tmp_path / "dump").iterdir())) == count > 5


def test_a_change_of_any_file_of_a_folder_counts(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_folder(folder, CASE.config, CASE.weights())
    profile = loading.merged_profile(None, None, None)
    key = start_cache.entry_key(folder, profile, None)
    assert key is not None
    assert start_cache.entry_key(folder, profile, None) == key
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert start_cache.entry_key(folder, profile, None) not in (key, None)


def test_starts_at_the_same_time_leave_whole_entries(path: Path, empty_cache: Path) -> None:
    code = f"""
from rlx.backends.cpu import background, weight_cache
weight_cache.MIN_BYTES, background.PATIENCE_SECONDS = 0, 0.0
import rlx
with rlx.load({str(path)!r}, threads=1) as model:
    print(model.generate("ab", max_tokens=5, temperature=0, ignore_eos=True).tokens)
"""
    command = [sys.executable, "-c", code]
    settings = environment(RLX_CACHE_DIR=str(empty_cache))
    running = [subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=240)[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert outputs[0] == f"{outcome(path)[1]}\n"
    assert len(set(outputs)) == 1
    assert all(start_cache.is_whole(entry) for entry in entries(empty_cache))


def test_nothing_is_compiled_for_another_length_batch_or_context(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compile_module = codegen.compile_module

    def counted(kernels: Any, target: Any) -> bytes:
        calls.append(len(kernels))
        return compile_module(kernels, target)

    monkeypatch.setattr(codegen, "compile_module", counted)
    for context in (None, 128, 64, 17):
        for threads in (1, 2):
            with rlx.load(path, threads=threads, context=context) as model:
                for prompt in ("a", "ab" * 3, "abc" * 4):
                    model.generate(prompt, max_tokens=3, temperature=0, ignore_eos=True)
                model.generate_batch(["a", "bb", "ccc", "dddd"], max_tokens=4, temperature=0.5, seed=1)
                model.logits(CASE.ids[:16])
                finish(model)
    assert len(calls) == 1


def test_a_model_with_recurrent_state_starts_from_its_entry(
    path: Path, empty_cache: Path, long_ways: list[Path]
) -> None:
    case, vocabulary = FAMILIES["qwen3_5"], metadata()
    tokens = [*cast(list[str], vocabulary["tokenizer.ggml.tokens"])[:159], "ab"]
    kept = {key: value for key, value in vocabulary.items() if key.startswith("tokenizer.")}
    kept |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * 160, "tokenizer.ggml.eos_token_id": 3}
    write_gguf(path, {**LAYOUTS[case.name].metadata, **kept}, gguf_tensors(case))

    def start() -> tuple[Any, ...]:
        with rlx.load(path, threads=1, precision="exact") as model:
            finish(model)
            together = model.generate_batch(["ab", "b", "abab"], max_tokens=5, temperature=0, ignore_eos=True)
            return model.logits(case.ids), [text.tokens for text in together], model.info["state_bytes"]

    first, second = start(), start()
    assert long_ways == [path]
    np.testing.assert_array_equal(second[0], first[0])
    assert second[1:] == first[1:]
    assert first[2] == 64 * 3 * (3 * 128 + 4 * 16 * 16) * 4  # of 64 sequences
    assert np.abs(first[0] - case.logits).max() <= 1e-4 * np.abs(case.logits).max()


def test_the_entry_holds_what_it_says(path: Path, empty_cache: Path) -> None:
    outcome(path)
    (file,) = entries(empty_cache)
    entry = start_cache.load(empty_cache, file.stem)
    assert entry is not None
    assert start_cache.save(empty_cache, "0" * 32, entry)
    again = start_cache.load(empty_cache, "0" * 32)
    assert again is not None
    assert again.plain == entry.plain
    assert again.arrays.keys() == entry.arrays.keys()
    assert all(np.array_equal(again.arrays[name], array) for name, array in entry.arrays.items())
    assert warm_start.MAX_PLAIN_BYTES < start_cache.MAX_BYTES
