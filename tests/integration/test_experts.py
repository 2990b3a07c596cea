"""A mixture of experts whose weights are packed: the same bits in any company, and near those of float64."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np

from rlx.backends.reference import run_graph
from rlx.core.dtype import mxfp4, q8_0
from rlx.core.storage import encode
from rlx.io.ggml_types import GGML_TYPES
from tests.integration.driving import Drive, in_chunks
from tests.integration.tiny import recipe_of, session_of
from tests.io.gguf_writer import Tensor, gguf_bytes
from tests.models.family_files import FAMILIES, LAYOUTS, gguf_tensors

CASE = FAMILIES["mixtral"]
KINDS = {dtype.name: kind for kind, dtype in GGML_TYPES.items()}
OTHERS = np.random.default_rng(2).integers(0, 160, (3, 21)).astype(np.int32)


def packed_file(path: Path) -> Path:
    """The case with stacks of experts in two formats by turns."""
    formats = cycle((q8_0, mxfp4))
    tensors: dict[str, Tensor] = {}
    for name, array in gguf_tensors(CASE).items():
        dtype = next(formats) if "_exps" in name else None
        data = array if dtype is None else encode(dtype, array)
        tensors[name] = Tensor(array.shape[::-1], KINDS["f32" if dtype is None else dtype.name], data.tobytes())
    path.write_bytes(gguf_bytes(LAYOUTS[CASE.name].metadata, tensors))
    return path


def test_packed_experts_in_fast(tmp_path: Path) -> None:
    """Whatever else is in the batch, and however a prompt is cut: the rows of an expert come from anywhere."""
    recipe = recipe_of(packed_file(tmp_path / "experts.gguf"))
    graph = recipe.flow.build(recipe.weights)
    expected = run_graph(graph, {"tokens": CASE.ids[None]}, recipe.weights)["logits"][0]
    with session_of(recipe, precision="fast", threads=2) as session:
        (alone,) = Drive(session, [CASE.ids]).step([(0, len(CASE.ids))])
        for chunk in (1, 5):
            np.testing.assert_array_equal(in_chunks(session, CASE.ids, chunk), alone)
        mixed = Drive(session, [*OTHERS, CASE.ids], seed=4).step([(0, 1), (3, len(CASE.ids)), (2, 21), (1, 2)])
        np.testing.assert_array_equal(mixed[1], alone)
    # activations of 8 bits; a router that is close to a draw may choose another expert because of them
    errors = np.abs(alone - expected).max(-1) / np.abs(expected).max()
    assert np.median(errors) <= 0.02
