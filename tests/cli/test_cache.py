"""`rlx cache`: what it lists, what it removes and what it leaves alone, and the damage it finds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from rlx.backends.cpu import disk_cache, object_cache, weight_cache
from rlx.cli.cache import age_text
from rlx.io.model_cache import write_receipt

KEYS = [f"{i:032x}" for i in range(3)]
DAY = 86400


@pytest.fixture
def cache(empty_cache: Path) -> Path:
    """A model, two objects and a file of weights; the first object was last used 40 days ago."""
    model = empty_cache / "models" / "tiny-1.0"
    model.mkdir(parents=True)
    (model / "tiny.gguf").write_bytes(bytes(1000))
    write_receipt(model, "tiny.gguf", {"tiny.gguf": 1000})
    (empty_cache / "models" / ".lock-tiny").write_bytes(b"")
    object_cache.save(empty_cache, KEYS[0], bytes(100))
    object_cache.save(empty_cache, KEYS[1], bytes(200))
    age(disk_cache.entry_path(empty_cache, "objects", KEYS[0]), 40)
    weight_cache.save(empty_cache, KEYS[2], "tiny.gguf", [np.arange(255, dtype=np.uint8)])
    return empty_cache


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


def kinds(cache: Path) -> list[str]:
    return sorted(entry.kind for entry in disk_cache.entries(cache)) + (
        ["models"] if (cache / "models" / "tiny-1.0").exists() else []
    )


def test_list(run, cache):
    outcome = run("cache", "list")
    assert outcome.code == 0
    assert all(text in outcome.out for text in ("tiny-1.0", "tiny.gguf", KEYS[0], KEYS[1], "40 d", "4 entries"))
    assert "of at most 20.0 GB" in outcome.out


def test_list_as_json(run, cache):
    document = json.loads(run("cache", "list", "--json").out)
    assert document["folder"] == str(cache)
    assert document["limit"] == 20_000_000_000
    assert [entry["kind"] for entry in document["entries"]] == ["models", "objects", "objects", "weights"]
    model, old, _, weights = document["entries"]
    assert model["bytes"] == sum(path.stat().st_size for path in (cache / "models" / "tiny-1.0").iterdir())
    assert old["bytes"] == 132
    assert 39.9 * DAY < time.time() - old["last_used"] < 40.1 * DAY
    assert weights["name"] == "tiny.gguf"
    assert Path(weights["path"]).stat().st_size == weights["bytes"]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["--weights"], ["objects", "objects", "models"]),
        (["--objects"], ["weights", "models"]),
        (["--objects", "--weights"], ["models"]),
        (["--models"], ["objects", "objects", "weights"]),
        (["--all"], []),
        (["--all", "--older-than", "30d"], ["objects", "weights", "models"]),
        (["--all", "--older-than", "8w"], ["objects", "objects", "weights", "models"]),
        (["--weights", "--older-than", "30d"], ["objects", "objects", "weights", "models"]),
    ],
)
def test_clear(run, cache, arguments, left):
    before = sum(entry["bytes"] for entry in json.loads(run("cache", "list", "--json").out)["entries"])
    outcome = run("cache", "clear", *arguments, "--json")
    assert outcome.code == 0
    assert kinds(cache) == left
    after = sum(entry["bytes"] for entry in json.loads(run("cache", "list", "--json").out)["entries"])
    assert json.loads(outcome.out)["freed_bytes"] == before - after


def test_clear_confirms_what_it_freed(run, cache):
    outcome = run("cache", "clear", "--objects")
    assert "freed 2 entries, 364 B" in outcome.out
    assert "nothing to clear" in run("cache", "clear", "--objects").out


def test_clear_asks_what(run, cache):
    outcome = run("cache", "clear")
    assert outcome.code == 2
    assert "--weights" in outcome.err
    assert len(kinds(cache)) == 4


def test_a_wrong_age(run, cache):
    outcome = run("cache", "clear", "--all", "--older-than", "soon")
    assert outcome.code == 2
    assert "30d" in outcome.err
    assert len(kinds(cache)) == 4


def test_repair_goes_with_verify_only(run, cache):
    assert run("cache", "clear", "--all", "--repair").code == 2
    assert len(kinds(cache)) == 4


def test_clear_stays_inside(run, tmp_path, empty_cache):
    """Links lead out of the cache, and files of other names are somebody else's."""
    outside = tmp_path / "outside"
    (outside / "model-1.0").mkdir(parents=True)
    (outside / f"{KEYS[0]}.o").write_bytes(bytes(10))
    empty_cache.mkdir()
    (empty_cache / "models").symlink_to(outside)
    (empty_cache / "objects").symlink_to(outside)
    (empty_cache / "weights").mkdir()
    (empty_cache / "weights" / f"{KEYS[0]}.bin").symlink_to(outside / f"{KEYS[0]}.o")
    (empty_cache / "weights" / "mine.txt").write_text("mine")
    assert run("cache", "clear", "--all").code == 0
    assert (outside / "model-1.0").exists()
    assert (outside / f"{KEYS[0]}.o").exists()
    assert (empty_cache / "weights" / "mine.txt").exists()


def test_a_link_inside_a_model_is_removed_not_followed(run, cache, tmp_path):
    outside = tmp_path / "file"
    outside.write_text("mine")
    (cache / "models" / "tiny-1.0" / "link").symlink_to(outside)
    run("cache", "clear", "--models")
    assert kinds(cache) == ["objects", "objects", "weights"]
    assert outside.read_text() == "mine"


def test_a_fetch_under_way_is_left_alone(run, cache):
    partial = cache / "models" / ".partial-tiny-x"
    (partial / "wheel").mkdir(parents=True)
    (partial / "wheel" / "half").write_bytes(bytes(10))
    run("cache", "clear", "--models")
    assert partial.exists()
    for path in (partial / "wheel" / "half", partial / "wheel", partial):
        age(path, 1)
    run("cache", "clear", "--models")
    assert not partial.exists()
    assert (cache / "models" / ".lock-tiny").exists()


def test_an_empty_cache(run, empty_cache):
    assert run("cache", "list").code == 0
    assert run("cache", "verify").code == 0
    assert run("cache", "clear", "--all").code == 0
    assert not empty_cache.exists()


def test_verify_finds_damage(run, cache):
    assert run("cache", "verify").code == 0
    weights = disk_cache.entry_path(cache, "weights", KEYS[2])
    for path in (
        disk_cache.entry_path(cache, "objects", KEYS[1]),
        weights,
        cache / "models" / "tiny-1.0" / "tiny.gguf",
    ):
        path.write_bytes(path.read_bytes()[:-1])
    outcome = run("cache", "verify", "--json")
    assert outcome.code == 1
    document = json.loads(outcome.out)
    assert document["checked"] == 4
    assert [entry["kind"] for entry in document["damaged"]] == ["models", "objects", "weights"]
    assert len(kinds(cache)) == 4
    assert run("cache", "verify", "--weights", "--repair").code == 0
    assert kinds(cache) == ["objects", "objects", "models"]
    outcome = run("cache", "verify", "--repair")
    assert outcome.code == 0
    assert outcome.out.count("damaged and removed") == 2
    assert kinds(cache) == ["objects"]
    assert "all whole" in run("cache", "verify").out


def test_verify_finds_one_flipped_bit_anywhere(run, cache):
    path = disk_cache.entry_path(cache, "weights", KEYS[2])
    content = path.read_bytes()
    for at in (0, 30, 60, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert run("cache", "verify", "--weights").code == 1, at
    path.write_bytes(content)
    assert run("cache", "verify", "--weights").code == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [("500MB", 500_000_000), ("2gb", 2_000_000_000), ("1.5 GB", 1_500_000_000), ("0", 0), ("7k", 7000)],
)
def test_the_limit_is_a_size(monkeypatch, value, expected):
    from rlx.config import settings

    monkeypatch.setenv("RLX_CACHE_LIMIT", value)
    assert settings().cache_limit == expected


def test_a_limit_that_is_no_size(run, monkeypatch):
    monkeypatch.setenv("RLX_CACHE_LIMIT", "plenty")
    outcome = run("cache", "list")
    assert outcome.code == 2
    assert "RLX_CACHE_LIMIT" in outcome.err


def test_ages():
    assert [age_text(s) for s in (-5, 0, 59, 60, 3600, 86399, 86400 * 400)] == [
        "0 s", "0 s", "59 s", "1 m", "1 h", "23 h", "400 d",
    ]  # fmt: skip
