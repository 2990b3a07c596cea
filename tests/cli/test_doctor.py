"""`rlx doctor`, the help texts, and what importing the command line costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rlx.cli.main import COMMANDS
from rlx.config import KNOBS


def test_json(run, empty_cache, monkeypatch):
    (empty_cache / "objects").mkdir(parents=True)
    (empty_cache / "objects" / "kernel.o").write_bytes(bytes(100))
    monkeypatch.setenv("RLX_THREADS", "3")
    outcome = run("doctor", "--json")
    assert outcome.code == 0, outcome.out
    document = json.loads(outcome.out)
    assert document["environment"].keys() == {knob.name for knob in KNOBS}
    assert document["environment"]["RLX_THREADS"]["value"] == "3"
    assert document["caches"]["objects"]["bytes"] == 100
    assert "portable" in document["target"]["available_targets"]
    assert document["problems"] == []


def test_table_names_every_variable(run, empty_cache):
    outcome = run("doctor")
    assert outcome.code == 0
    assert all(knob.name in outcome.out for knob in KNOBS)
    assert "everything is in order" in outcome.out


def test_a_cache_that_cannot_be_written(run, tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("", encoding="utf-8")
    monkeypatch.setenv("RLX_CACHE_DIR", str(in_the_way / "cache"))
    outcome = run("doctor")
    assert outcome.code == 1
    assert "cache folder cannot be written" in outcome.err


def test_a_variable_with_a_bad_value(run, monkeypatch):
    monkeypatch.setenv("RLX_PRECISION", "sloppy")
    outcome = run("doctor")
    assert outcome.code == 2
    assert "RLX_PRECISION" in outcome.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run, command):
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert f"rlx {command}" in outcome.out
    assert "Example:" in outcome.out


def test_help_lists_every_command(run):
    outcome = run("--help")
    assert outcome.code == 0
    assert all(f"  {command} " in outcome.out for command in COMMANDS)
    assert run("--version").out.startswith("rlx ")


def test_the_command_line_loads_nothing_heavy():
    """Parsing arguments is part of every start: NumPy, LLVM, tokenizers and rich have to wait."""
    code = (
        "import sys; from rlx.cli.main import build_app; build_app(['generate']);"
        "heavy = ('numpy', 'llvmlite', 'tokenizers', 'rich', 'jinja2', 'huggingface_hub');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
