"""`rlx bench`: what is measured, and the shape of what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from rlx.cli.process import peak_rss_bytes, seconds_since_start
from tests.cli.fake_model import CONTEXT, FakeStep

KEYS = {
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "load_seconds",
    "compile_seconds",
    "first_token_seconds",
    "peak_rss_bytes",
    "cache",
}


def test_json(fake, run):
    fake.step = FakeStep(seconds=0.001)
    outcome = run("bench", "model.gguf", "-p", "40", "-n", "8", "-r", "3", "--starts", "0", "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document.keys() >= KEYS
    assert document["cache"] == "cold"
    assert (document["load_seconds"], document["compile_seconds"]) == (0.25, 0.125)
    for speed, tokens in (("prefill_tokens_per_second", 40), ("decode_tokens_per_second", 8)):
        samples = document["samples"][speed]
        assert len(samples["values"]) == 3
        assert samples["min"] <= samples["median"] == document[speed] <= samples["max"]
        # a step takes at least 1 ms: 40 tokens in one step, 8 tokens in 8 steps
        assert 0 < document[speed] <= (40_000 if tokens == 40 else 1000)
    assert document["warm_start_first_token_seconds"] is None


def test_what_runs(fake, run):
    """The first token, then a warm-up and each repetition: a prompt in one step, then single rows."""
    run("bench", "-p", "40", "-n", "8", "-r", "2", "--starts", "0", "--json")
    first = [len("The capital of France is")]
    assert fake.step.steps == first + 3 * ([40] + 8 * [1])


def test_table(fake, run):
    outcome = run("bench", "-p", "10", "-n", "2", "-r", "1", "--starts", "0")
    assert outcome.code == 0
    for word in ("prefill, 10 tokens", "decode, 2 tokens", "tokens/s", "peak memory", "cold", "median"):
        assert word in outcome.out


@pytest.mark.parametrize("flags", [["-p", "0"], ["-n", "0"], ["-r", "0"], ["--starts", "-1"]])
def test_nothing_to_measure(fake, run, flags):
    outcome = run("bench", *flags)
    assert outcome.code == 2
    assert fake.references == []


def test_lengths_beyond_the_context(fake, run):
    outcome = run("bench", "-p", str(CONTEXT), "--starts", "0")
    assert outcome.code == 7
    assert str(CONTEXT) in outcome.err


def test_a_fresh_process_that_fails_is_an_error(fake, run, empty_cache):
    outcome = run("bench", "/does/not/exist.gguf", "-p", "4", "-n", "2", "-r", "1", "--starts", "1")
    assert outcome.code == 1
    assert "fresh process" in outcome.err


def test_seconds_since_start_counts_from_the_start_of_the_process():
    code = "import time; time.sleep(0.3); from rlx.cli.process import seconds_since_start; print(seconds_since_start())"
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wall = time.monotonic() - before
    if sys.platform == "linux":  # 10 ms is the resolution of the kernel's start times
        assert 0.3 - 0.01 <= float(done.stdout) <= wall + 0.01
    assert seconds_since_start() > 0


def test_peak_memory_sees_an_allocation():
    before = peak_rss_bytes()
    assert before > 5_000_000
    block = bytearray(os.urandom(1)) * (before + 50_000_000)
    assert peak_rss_bytes() >= len(block)
