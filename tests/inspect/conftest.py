"""One tiny model of 32 layers, profiled and explained once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import rlx
from rlx.inspect.explain.data import PageData
from rlx.inspect.explain.page import render_page
from rlx.inspect.limits import Limits
from rlx.inspect.profile_report import ProfileReport
from rlx.runtime.explainer import explained
from rlx.runtime.loaded_model import LoadedModel
from rlx.runtime.profiler import Work, profile_model
from tests.integration.small_gguf import small_gguf, tensors

LAYERS = 32
LIMITS = Limits(2, "test", dram=30.0, l3=200.0, l2=250.0, f32=230.0, int8=900.0, bf16=450.0)
WORK = Work(prompt_tokens=40, new_tokens=4, repetitions=1)
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>'


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    """The tiny model with its first layer 32 times over."""
    first = {name: tensor for name, tensor in tensors().items() if name.startswith("blk.0.")}
    layers = {
        name.replace("blk.0.", f"blk.{layer}."): tensor for layer in range(LAYERS) for name, tensor in first.items()
    }
    path = tmp_path_factory.mktemp("deep") / "deep.gguf"
    path.write_bytes(small_gguf({"llama.block_count": LAYERS}, layers))
    with rlx.load(path, threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def report(deep_model: LoadedModel) -> ProfileReport:
    """Where its time goes."""
    return profile_model(deep_model, WORK, limits=LIMITS)


@pytest.fixture(scope="session")
def data(deep_model: LoadedModel) -> PageData:
    """What its page shows, under a name that wants to be more than text."""
    found = explained(deep_model, WORK, limits=LIMITS)
    kernels: Any = found.core["kernels"]
    longest = {**kernels[0], "name": kernels[0]["name"] + " and an expression that is as long as a window is wide" * 2}
    return PageData({**found.core, "model": HOSTILE, "kernels": [longest, *kernels[1:]]}, found.code)


@pytest.fixture(scope="session")
def page(data: PageData) -> str:
    """The page."""
    return render_page(data)
