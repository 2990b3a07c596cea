"""matmul of activations: the bound of its arithmetic on any shape, and rows that do not see each other.

u = 2^-24; a sum of K products in order is off by at most (K + 1) u sum |a| |b|, see `test_linear.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlx.backends.cpu.kernels.float_tiles import BLOCK_ROWS, BLOCK_WORDS
from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.graph import GraphBuilder
from rlx.core.type import tensor
from rlx.ops.op import Emitter
from tests.cpu.compiling import TARGETS, compiled, one_op, same_bits

U = 2.0**-24


def seeded(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


BATCHES = [((), ()), ((2,), (2,)), ((3,), ()), ((), (2,)), ((2, 1), (1, 3)), ((2, 3), (3,))]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("symbolic", [False, True])
@given(data=st.data())
@settings(max_examples=12)
def test_any_shape_is_within_its_error_bound(target: str, symbolic: bool, data: st.DataObject) -> None:
    """Static sizes, and all inner sizes as symbols; leading axes that are repeated on either side."""
    m = data.draw(st.integers(1, 40) | st.sampled_from([BLOCK_ROWS, BLOCK_ROWS + 1]))
    k = data.draw(st.integers(1, 40) | st.sampled_from([BLOCK_WORDS, BLOCK_WORDS + 1, 2 * BLOCK_WORDS + 3]))
    n, (lead_a, lead_b) = data.draw(st.integers(1, 70)), data.draw(st.sampled_from(BATCHES))
    a, b = seeded(*lead_a, m, k, seed=1), seeded(*lead_b, k, n, seed=2)
    sizes = [Dim("m"), Dim("k"), Dim("n")] if symbolic else [m, k, n]
    types = {"a": tensor(f32, *lead_a, *sizes[:2]), "b": tensor(f32, *lead_b, *sizes[1:])}
    exe = compiled(one_op("matmul", types), target, threads=data.draw(st.sampled_from([1, 3])))
    found = exe(a=a, b=b)["y0"]
    exe.close()
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    bound = (k + 1) * U * np.matmul(np.abs(wide_a), np.abs(wide_b))
    true = np.matmul(wide_a, wide_b)
    assert found.shape == true.shape
    assert (np.abs(found - true) <= bound + 1e-37).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [48, 37])
def test_a_row_has_the_same_bits_in_every_batch(target: str, n: int) -> None:
    """Alone (streamed), in tiles of every size, split over threads that begin in the middle of a matrix."""
    count, k = BLOCK_ROWS + 13, BLOCK_WORDS + 44
    a, b = seeded(2, count, k, seed=3), seeded(2, k, n, seed=4)
    types = {"a": tensor(f32, 2, Dim("m"), k), "b": tensor(f32, 2, k, n)}
    exe, threaded = (compiled(one_op("matmul", types), target, threads=threads) for threads in (1, 3))
    alone = np.concatenate([exe(a=a[:, r : r + 1], b=b)["y0"] for r in range(count)], axis=1)
    for size in (*range(2, 41), BLOCK_ROWS, BLOCK_ROWS + 1, count):
        part = np.ascontiguousarray(a[:, count - size :])
        assert same_bits(exe(a=part, b=b)["y0"], np.ascontiguousarray(alone[:, count - size :])), size
        assert same_bits(threaded(a=part, b=b)["y0"], np.ascontiguousarray(alone[:, count - size :])), size
    exe.close()
    threaded.close()


@pytest.mark.parametrize("target", TARGETS)
def test_transposed_operands(target: str) -> None:
    """Scores of attention: a times b transposed, and back."""
    builder = GraphBuilder("scores")
    emit = Emitter(builder)
    a, b = (builder.input(name, tensor(f32, 2, Dim(name + "_rows"), 24)) for name in "ab")
    scores = emit("matmul", a, emit("transpose", b, axes=(0, 2, 1)))
    builder.output("y", emit("matmul", emit("transpose", scores, axes=(0, 2, 1)), a))
    left, right = seeded(2, 19, 24, seed=5), seeded(2, 33, 24, seed=6)
    exe = compiled(builder.build(), target)
    found = exe(a=left, b=right)["y"]
    exe.close()
    wide = left.astype(np.float64), right.astype(np.float64)
    true = np.matmul(np.matmul(wide[1], wide[0].swapaxes(1, 2)), wide[0])
    magnitude = np.matmul(np.matmul(np.abs(wide[1]), np.abs(wide[0]).swapaxes(1, 2)), np.abs(wide[0]))
    assert (np.abs(found - true) <= (24 + 19 + 4) * U * magnitude).all()
