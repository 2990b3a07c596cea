"""The README promises commands and code; here they are held to it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rlx.cli.main import COMMANDS
from rlx.config import KNOBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_it_opens_with_the_two_lines():
    start, test = _blocks("sh")[:2]
    expected = (
        'python3 -m venv .venv && . .venv/bin/activate && pip install . && rlx generate "The capital of France is"\n'
    )
    assert start == expected
    assert "pytest --slow" in test
    assert test.strip() in (ROOT / ".ci" / "run").read_text(encoding="utf-8"), "CI runs the line that the README shows"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_listed(command):
    assert f"| `rlx {command}" in README


def test_variables_and_links_exist():
    assert set(re.findall(r"\bRLX_[A-Z_]+", README)) <= {knob.name for knob in KNOBS}
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_python_blocks_run(smollm2_path):
    """Each block in a process of its own, as a reader would paste it; the default model is in the cache by now."""
    blocks = _blocks("python")
    assert len(blocks) == 2
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "(3, 8)" in done.stdout


def test_the_package_asks_for_what_the_design_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[><=\[]", requirement)[0] for requirement in project["dependencies"]}
    assert names == {
        "numpy",
        "llvmlite",
        "ml-dtypes",
        "safetensors",
        "tokenizers",
        "huggingface-hub",
        "jinja2",
        "typer",
    }
    test = " ".join(project["optional-dependencies"]["test"])
    assert not re.search(r"torch|transformers|llama", test)
