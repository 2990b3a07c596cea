"""`rlx doctor`, the help texts, and what importing the command line costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rlx.cli import doctor
from rlx.cli.host import Slowdown
from rlx.cli.main import COMMANDS
from rlx.config import KNOBS


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """What slows the machine of the tests is not their business; `test_host.py` brings machines of its own."""
    monkeypatch.setattr(doctor, "slowdowns", lambda _threads: [])


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


def test_what_the_machine_offers(run, empty_cache):
    host = json.loads(run("doctor", "--json").out)["host"]
    assert host["processors"] == os.cpu_count()
    assert 1 <= host["processors_allowed"] <= host["processors"]
    assert set(host["vector_extensions"]) <= {"avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512vnni", "avx512bf16",
        "avx512fp16", "amx-int8", "amx-bf16", "neon", "dotprod", "i8mm", "bf16", "sve", "sve2"}  # fmt: skip


def test_a_slowdown_comes_with_one_thing_to_do_and_is_no_failure(run, empty_cache, monkeypatch):
    asked: list[int] = []

    def busy(threads):
        asked.append(threads)
        return [Slowdown("the cores are busy", "end what keeps them so")]

    monkeypatch.setattr(doctor, "slowdowns", busy)
    monkeypatch.setenv("RLX_THREADS", "5")
    outcome = run("doctor")
    assert outcome.code == 0
    assert "slowed: the cores are busy\n  do:   end what keeps them so" in outcome.out
    assert "the installation is in order" in outcome.out
    document = json.loads(run("doctor", "--json").out)
    assert document["slowdowns"] == [{"what": "the cores are busy", "fix": "end what keeps them so"}]
    assert document["problems"] == []
    assert asked == [5, 5]


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
