"""The reference interpreter and the null backend as programs: weights, packed values, freed values, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlx.backends.null import NullBackend
from rlx.backends.reference import run_graph
from rlx.core.backend import Backend
from rlx.core.dim import Dim
from rlx.core.dtype import DTYPES, bf16, f16, f32, i32, q4_0, q8_act
from rlx.core.graph import Graph, GraphBuilder, Location
from rlx.core.storage import decode, encode
from rlx.core.type import TensorType, numpy_shape, tensor
from rlx.errors import InputError, MissingTensorError, TensorShapeError, VerifyError
from rlx.ops.op import Emitter
from tests.strategies import bound_inputs, graphs

SEQ = Dim("seq", max=64)
RNG = np.random.default_rng(0)


class Stored:
    """Weights in memory. `read` lists the keys in the order in which they were read."""

    def __init__(self, **tensors: tuple[TensorType, NDArray[np.uint8]]) -> None:
        self.tensors = tensors
        self.read: list[str] = []

    def raw(self, key: str) -> NDArray[np.uint8]:
        self.read.append(key)
        return self.tensors[key][1]

    def type_of(self, key: str) -> TensorType:
        if key not in self.tensors:
            raise MissingTensorError(f"there is no tensor called {key}")
        return self.tensors[key][0]


def stored(type_: TensorType, values: NDArray[np.float32]) -> tuple[TensorType, NDArray[np.uint8]]:
    return type_, encode(type_.dtype, values)


def linear_graph(type_: TensorType) -> Graph:
    builder = GraphBuilder("g")
    x = builder.input("x", tensor(f32, SEQ, 64))
    emit = Emitter(builder, Location("lm_head", "head.py:4"))
    weight = emit("parameter", key="w", dtype=type_.dtype, shape=type_.shape)
    builder.output("y", emit("linear", x, weight))
    return builder.build()


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q4_0", "q4_1", "q8_0"])
@pytest.mark.parametrize("width", [np.float32, np.float64])
def test_weights_are_decoded_into_the_width_of_the_run(name: str, width: Any) -> None:
    type_ = tensor(DTYPES[name], 5, 64)
    weights = Stored(w=stored(type_, RNG.standard_normal((5, 64), np.float32)))
    x = RNG.standard_normal((3, 64), np.float32)
    result = run_graph(linear_graph(type_), {"x": x}, weights, dtype=width)["y"]
    matrix = decode(type_.dtype, weights.tensors["w"][1], (5, 64))
    expected = x.astype(np.float64) @ matrix.astype(np.float64).T
    assert result.dtype == width
    # 64 products of values around 1: a few roundings of the width
    assert np.abs(result - expected).max() <= 64 * np.finfo(width).eps * np.abs(expected).max()


def test_packed_and_half_inputs_are_what_they_mean() -> None:
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    types = {"a": tensor(q4_0, 3, 32), "b": tensor(f16, 3, 32), "c": tensor(bf16, 3, 32), "d": tensor(q8_act, SEQ, 32)}
    arrays: dict[str, Any] = {}
    values = RNG.standard_normal((3, 32), np.float32)
    for name, type_ in types.items():
        builder.output(name, emit("dequantize", builder.input(name, type_)))
        raw = encode(type_.dtype, values)
        arrays[name] = (
            raw.reshape(numpy_shape(type_, (3, 32)))
            if type_.dtype.is_packed
            else raw.view(type_.dtype.numpy).reshape(3, 32)
        )
    result = run_graph(builder.build(), arrays)
    for name, type_ in types.items():
        np.testing.assert_array_equal(result[name], decode(type_.dtype, encode(type_.dtype, values), (3, 32)))


def test_a_packed_output_comes_decoded() -> None:
    builder = GraphBuilder("g")
    builder.output("y", Emitter(builder)("quantize", builder.input("x", tensor(f32, SEQ, 32))))
    x = RNG.standard_normal((2, 32), np.float32)
    expected = decode(q8_act, encode(q8_act, x), (2, 32))
    np.testing.assert_array_equal(run_graph(builder.build(), {"x": x})["y"], expected)


def test_weights_are_read_when_needed_and_dead_ones_never() -> None:
    builder = GraphBuilder("g")
    x = builder.input("x", tensor(f32, SEQ, 32))
    emit = Emitter(builder)
    keys = [emit("parameter", key=key, dtype=f32, shape=(32, 32)) for key in ("unused", "second", "first")]
    builder.output("y", emit("linear", emit("linear", x, keys[2]), keys[1]))
    tensors = {key: stored(tensor(f32, 32, 32), np.eye(32, dtype=np.float32)) for key in ("second", "first")}
    weights = Stored(**tensors)
    run_graph(builder.build(), {"x": np.ones((1, 32), np.float32)}, weights)
    assert weights.read == ["first", "second"]


def test_values_are_freed_after_their_last_use() -> None:
    """A chain of 60 tensors of 4 MB each peaks at a few of them."""
    import tracemalloc

    builder = GraphBuilder("g")
    value = builder.input("x", tensor(f32, SEQ, 8192))
    for _ in range(60):
        value = Emitter(builder)("neg", value)
    builder.output("y", value)
    x = np.ones((64, 8192))
    tracemalloc.start()
    run_graph(builder.build(), {"x": x})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * x.nbytes


@given(graphs(), st.integers(0, 9))
def test_float32_agrees_with_float64(graph: Graph, seed: int) -> None:
    arrays = bound_inputs(graph, seed, seq=3, batch=2)
    wide, narrow = run_graph(graph, arrays), run_graph(graph, arrays, dtype=np.float32)
    for name, expected in wide.items():
        assert narrow[name].shape == expected.shape
        assert narrow[name].dtype == (np.float32 if expected.dtype == np.float64 else expected.dtype)


def test_refusals_say_where_and_what() -> None:
    graph, x = linear_graph(tensor(f32, 5, 64)), np.zeros((1, 64), np.float32)
    with pytest.raises(MissingTensorError, match="no weights are given for w"):
        run_graph(graph, {"x": x})
    with pytest.raises(MissingTensorError, match="no tensor called w"):
        run_graph(graph, {"x": x}, Stored())
    other = Stored(w=stored(tensor(f16, 5, 64), np.zeros((5, 64), np.float32)))
    with pytest.raises(TensorShapeError, match=r"(?s)lm_head \(head.py:4\).*f16\[5, 64\].*f32\[5, 64\]"):
        run_graph(graph, {"x": x}, other)
    with pytest.raises(InputError, match="float64 or float32"):
        run_graph(graph, {"x": x}, dtype=np.float16)


def test_an_index_out_of_a_table_names_the_node() -> None:
    builder = GraphBuilder("g")
    tokens, table = builder.input("tokens", tensor(i32, SEQ)), builder.input("table", tensor(f32, 4, 2))
    builder.output("y", Emitter(builder, Location("embed", "embed.py:1"))("embedding", tokens, table))
    arrays = {"tokens": np.array([0, -1], np.int32), "table": np.zeros((4, 2), np.float32)}
    with pytest.raises(InputError, match=r"(?s)leads out of the table.*embedding, embed \(embed.py:1\).*-1.*0 to 3"):
        run_graph(builder.build(), arrays)


def test_the_null_backend_gives_zeros_of_the_right_form() -> None:
    builder = GraphBuilder("g")
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, SEQ, 64))
    builder.output("y", emit("reshape", emit("neg", x), shape=(SEQ * 64,)))
    builder.output("packed", emit("quantize", x))
    builder.output("flags", emit("less", x, x))
    result = NullBackend().run_graph(builder.build(), {"x": np.ones((3, 64), np.float32)})
    forms = {name: (array.shape, str(array.dtype)) for name, array in result.items()}
    assert forms == {"y": ((192,), "float32"), "packed": ((3, 88), "uint8"), "flags": ((3, 64), "bool")}
    assert not any(array.any() for array in result.values())
    with pytest.raises(InputError, match="out of its bounds"):
        NullBackend().run_graph(builder.build(), {"x": np.ones((65, 64), np.float32)})


def test_the_null_backend_takes_every_op() -> None:
    backend: Backend = NullBackend()
    graph = linear_graph(tensor(q4_0, 5, 64))
    assert [backend.why_not(node) for node in graph.nodes] == [None, None]
    assert backend.plan(graph.nodes[1]).variant == "null"
    assert not backend.quantizes(q4_0)


def test_the_null_backend_checks_the_level() -> None:
    builder = GraphBuilder("g")
    builder.output("y", Emitter(builder)("positions", builder.input("tokens", tensor(i32, SEQ))))
    with pytest.raises(VerifyError, match="positions is not allowed"):
        NullBackend().run_graph(builder.build(), {"tokens": np.zeros(3, np.int32)})
