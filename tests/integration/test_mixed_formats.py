"""A GGUF file with every quantised format in turn, as mixtures such as Q4_K_M are: exact, fast, and bit for bit."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.cpu.target import available
from rlx.backends.reference import run_graph
from rlx.core.dtype import GGUF_WEIGHTS, WITHOUT_INTEGERS, DType
from rlx.core.storage import decode
from rlx.io.ggml_types import GGML_TYPES
from rlx.io.gguf import open_gguf
from tests.integration.driving import Drive
from tests.integration.tiny import recipe_of, session_of
from tests.io.gguf_writer import Tensor, gguf_bytes
from tests.models.checkpoints import gguf_metadata
from tests.models.small_llama import gguf_names
from tests.ops.sample_inputs import random_bytes, set_factors

CONFIG: dict[str, Any] = {
    "num_hidden_layers": 4,
    "max_position_embeddings": 128,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0},
}
VOCAB = 80
OUTPUTS = {"k_proj": 128, "v_proj": 128, "embed_tokens": VOCAB, "lm_head": VOCAB}
KINDS = {dtype.name: kind for kind, dtype in GGML_TYPES.items()}
IDS = np.random.default_rng(5).integers(0, VOCAB, 29).astype(np.int32)
TARGETS = available()


def weight(dtype: DType, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random levels and sub-scales, with factors such that the values have the spread of a trained weight."""
    raw = random_bytes(dtype, shape, rng).reshape(-1, dtype.block_bytes)
    set_factors(dtype, raw, 0.0078125)
    spread = decode(dtype, raw.reshape(-1), shape).std()
    set_factors(dtype, raw, 0.0078125 * 0.05 / spread)
    return raw


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    tensors: dict[str, Tensor] = {}
    formats = cycle(GGUF_WEIGHTS)
    for key, name in gguf_names(CONFIG["num_hidden_layers"]).items():
        part, _, kind = key.rpartition(".")
        # names that a Llama has no tensors for
        absent = ("position", "q_norm", "k_norm", "router", "experts")
        if kind != "weight" or any(word in part for word in absent):
            continue
        if "norm" in part:
            tensors[name] = Tensor((256,), 0, np.ones(256, np.float32).tobytes())
            continue
        dtype, rows = next(formats), OUTPUTS.get(part.rpartition(".")[2], 256)
        tensors[name] = Tensor((256, rows), KINDS[dtype.name], weight(dtype, (rows, 256), rng).tobytes())
    path = tmp_path_factory.mktemp("mixed") / "mixed.gguf"
    path.write_bytes(gguf_bytes(gguf_metadata(CONFIG), tensors))
    return path


def test_the_file_holds_every_format(mixed: Path) -> None:
    assert set(GGUF_WEIGHTS) <= {info.dtype for info in open_gguf(mixed).tensors.values()}


@pytest.mark.parametrize("target", TARGETS)
def test_exact_logits_are_those_of_float64(mixed: Path, target: str) -> None:
    recipe = recipe_of(mixed)
    expected = run_graph(recipe.flow.build(recipe.weights), {"tokens": IDS[None]}, recipe.weights)["logits"][0]
    with session_of(recipe, target=target) as session:
        (found,) = Drive(session, [IDS]).step([(0, len(IDS))])
    # the bar of the exact mode; logits are about 3
    assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.parametrize("target", TARGETS)
def test_fast_logits_are_close_and_do_not_depend_on_the_batch(mixed: Path, target: str) -> None:
    recipe = recipe_of(mixed)
    with session_of(recipe, target=target) as session:
        (exact,) = Drive(session, [IDS]).step([(0, len(IDS))])
    with session_of(recipe, target=target, precision="fast") as session:
        integer = [kernel for kernel in session.module.program.kernels if kernel.variant == "integer"]
        assert len({kernel.settings["weight"] for kernel in integer}) == len(set(GGUF_WEIGHTS) - set(WITHOUT_INTEGERS))
        (fast,) = Drive(session, [IDS]).step([(0, len(IDS))])
        drive = Drive(session, [IDS], seed=3)
        alone = np.concatenate([drive.step([(0, 1)])[0] for _ in IDS])
    assert np.array_equal(fast.view(np.uint32), alone.view(np.uint32))
    # int8 activations have steps of 1/127 of the largest of 32: an error of about 0.3% of a product's spread, in 14
    error = np.sqrt(np.mean((fast - exact) ** 2)) / exact.std()
    assert 1e-4 < error < 0.03
