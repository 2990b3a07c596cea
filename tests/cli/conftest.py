"""Fixtures of the command line's tests: a model without weights, and a way to call the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

import rlx
from rlx.cli.main import main
from tests.cli.fake_model import FakeStep, make_model


@dataclass
class Fake:
    """What the command line asked of `rlx.load`, and the program it got; `step` may be replaced before the call."""

    step: FakeStep = field(default_factory=FakeStep)
    references: list[object] = field(default_factory=list)
    keywords: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    record = Fake()

    def load(reference: object, **keywords: Any) -> object:
        record.references.append(reference)
        record.keywords = keywords
        if record.error is not None:
            raise record.error
        return make_model(record.step)

    monkeypatch.setattr(rlx, "load", load, raising=False)
    return record


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`run("generate", "Hi")`: the command line in this process."""

    def call(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = main(list(arguments))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call
