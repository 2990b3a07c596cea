"""The command a newcomer types, with the real default model, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache of its own, so that the first start is a cold one; the model is passed by its path."""
    return {**os.environ, "RLX_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


def _rlx(environment: dict[str, str], *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlx", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        input=text,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_generate_cold_then_warm(smollm2_path, environment):
    arguments = ["generate", "The capital of France is", "-m", str(smollm2_path), "-n", "16"]
    cold = _rlx(environment, *arguments)
    assert cold.returncode == 0, cold.stderr
    assert "Paris" in cold.stdout
    assert "tokens/s" in cold.stderr
    warm = _rlx(environment, *arguments, "--json")
    assert warm.returncode == 0, warm.stderr
    document = json.loads(warm.stdout)
    assert document["text"].rstrip("\n") == cold.stdout.rstrip("\n"), "greedy text is the same from a warm start"
    assert len(document["tokens"]) == 16
    assert document["timings"]["decode_tokens_per_second"] > 1


def test_chat_uses_the_template_of_the_model(smollm2_path, environment):
    question = "What is the capital of France? Answer in one sentence.\n"
    done = _rlx(environment, "chat", "-m", str(smollm2_path), "--temperature", "0", "-n", "48", "--json", text=question)
    assert done.returncode == 0, done.stderr
    (document,) = map(json.loads, done.stdout.splitlines())
    assert "Paris" in document["text"]
    assert document["finish_reason"] == "stop", "the end of the turn is recognised"


def test_bench(smollm2_path, environment):
    flags = ["-p", "64", "-n", "8", "-r", "2", "--starts", "1", "--threads", "2", "--json"]
    done = _rlx(environment, "bench", str(smollm2_path), *flags)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["cache"] == "warm", "the tests above have compiled it"
    # a generous bound: the bar for a quiet machine is 1 s, and tests run beside others
    assert 0.05 < document["warm_start_first_token_seconds"] < 10
    assert document["prefill_tokens_per_second"] > document["decode_tokens_per_second"] > 1
    assert document["peak_rss_bytes"] > smollm2_path.stat().st_size / 2


def test_prompt_beyond_the_context(smollm2_path, environment):
    done = _rlx(environment, "generate", "word " * 100, "-m", str(smollm2_path), "--context", "64")
    assert done.returncode == 7
    assert "64" in done.stderr or "63" in done.stderr
    assert "Traceback" not in done.stderr


def test_truncated_file(smollm2_path, environment, tmp_path):
    path = tmp_path / "half.gguf"
    with smollm2_path.open("rb") as file:
        path.write_bytes(file.read(5_000_000))
    done = _rlx(environment, "generate", "Hi", "-m", str(path))
    assert done.returncode == 4
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
