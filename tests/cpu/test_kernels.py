"""Every sample of every op on every instruction set against the float64 reference: values, sizes, threads, borders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from rlx.backends.cpu.target import resolve
from rlx.backends.reference import run_graph
from rlx.core.bind import bind_inputs
from rlx.core.dim import Dim
from rlx.core.dtype import ACTIVATION_TERMS, DTYPES, boolean, f32, i32
from rlx.core.graph import Graph, GraphBuilder, Value
from rlx.core.storage import decode, encode
from rlx.core.type import TensorType, tensor
from rlx.errors import UnsupportedOpError
from rlx.flow.weights import DictWeights
from rlx.ops.elementwise import SCALAR_OPS
from rlx.ops.op import Emitter, OpDef, Sample
from rlx.runtime.executable import Executable
from rlx.runtime.executable import empty as empty_output
from tests.cpu.compiling import TARGETS, Array, as_bytes, compiled, one_op, parameter, same_bits
from tests.ops.sample_inputs import CASE_NAMES, CASES, add_inputs, largest_difference, other_dims, sample_inputs

WEIGHT_OPERANDS = {
    "linear": (1, 2),
    "expert_linear": (1, 3),
    "grouped_linear": (1, 4),
    "embedding": (1,),
    "dequantize": (0,),
}
"""Operands that kernels pack, so that they have to be parameters."""
GUARD = 64
"""Bytes watched on both sides of every output."""


@dataclass(frozen=True, slots=True)
class Case:
    """A sample with its weights as parameters."""

    graph: Graph
    weights: DictWeights
    sample: Sample
    op: OpDef

    def inputs(self, dims: Mapping[str, int] | None = None) -> dict[str, Array]:
        """Arrays for the inputs that are not weights."""
        arrays = sample_inputs(self.op, self.sample, dims=dims)
        return {name: arrays[name] for name, _ in self.graph.inputs}


@cache
def case_of(index: int) -> Case:
    op, sample = CASES[index]
    positions = WEIGHT_OPERANDS.get(op.name, ())
    arrays = sample_inputs(op, sample)
    builder = GraphBuilder(f"{op.name}_{sample.name}")
    inputs: list[Value] = list(add_inputs(builder, sample))
    weights: dict[str, tuple[TensorType, Array]] = {}
    for i, type_ in enumerate(sample.inputs):
        if i in positions and all(isinstance(size, int) for size in type_.shape):
            inputs[i] = parameter(builder, f"x{i}", type_)
            weights[f"x{i}"] = (type_, as_bytes(arrays[f"x{i}"]))
    builder.inputs = [(name, value) for name, value in builder.inputs if name not in weights]
    for i, value in enumerate(Emitter(builder).many(op.name, *inputs, **sample.attrs)):
        builder.output(f"y{i}", value)
    return Case(builder.build(), DictWeights(weights), sample, op)


def guarded_run(exe: Executable, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """`exe(**inputs)` with outputs in the middle of larger memory, whose borders must keep their bytes."""
    dims = bind_inputs(exe.graph.inputs, inputs)
    memory: dict[int, Array] = {}
    for name, buffer in exe.program.inputs:
        memory[buffer] = np.array(inputs[name], order="C")
    guards: dict[int, Array] = {}
    for _, buffer in exe.program.outputs:
        if exe.program.buffers[buffer].kind == "output" and buffer not in memory:
            like = empty_output(exe.program.buffers[buffer], dims)
            guards[buffer] = np.full(like.nbytes + 2 * GUARD, 0xA5, np.uint8)
            memory[buffer] = guards[buffer][GUARD : GUARD + like.nbytes]
    exe.module.run(dims, memory)
    for guard in guards.values():
        assert (guard[:GUARD] == 0xA5).all(), "a kernel wrote before its output"
        assert (guard[len(guard) - GUARD :] == 0xA5).all(), "a kernel wrote behind its output"
    shapes = {name: exe(**inputs)[name] for name in dict(exe.graph.outputs)}
    for name, buffer in exe.program.outputs:
        if buffer in guards:
            assert (memory[buffer] == as_bytes(shapes[name])).all(), "a second run gives other bits"
    return shapes


def check(case: Case, got: Mapping[str, Array], inputs: Mapping[str, Array]) -> None:
    expected = run_graph(case.graph, inputs, case.weights)
    for name, value in case.graph.outputs:
        array = got[name]
        if value.type.dtype.is_packed:
            array = decode(value.type.dtype, array.reshape(-1), expected[name].shape)
        difference = largest_difference(array, expected[name])
        assert difference <= case.sample.tolerance, f"{name} differs by {difference}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("index", range(len(CASES)), ids=CASE_NAMES)
def test_a_sample_is_what_the_reference_says(index: int, target: str) -> None:
    case = case_of(index)
    if case.sample.attrs.get("products") == "bf16" and not resolve(target).bf16:
        with pytest.raises(UnsupportedOpError, match="bfloat16"):
            compiled(case.graph, target, case.weights)
        return
    one = compiled(case.graph, target, case.weights, threads=1)
    two = compiled(case.graph, target, case.weights, threads=2)
    try:
        # one compilation serves every size
        for dims in (case.sample.dims, other_dims(case.sample)):
            inputs = case.inputs(dims)
            got = guarded_run(one, inputs)
            check(case, got, inputs)
            threaded = two(**inputs)
            assert all(same_bits(got[name], threaded[name]) for name in got), "two threads give other bits"
    finally:
        one.close()
        two.close()


INTEGER_OPS = [op for op in SCALAR_OPS.values() if op.ints]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", INTEGER_OPS, ids=[op.name for op in INTEGER_OPS])
def test_elementwise_ops_on_integers(op, target: str) -> None:
    """The samples hold floats only; NumPy's int32 arithmetic is the reference, wrapping included."""
    rng = np.random.default_rng(3)
    count = Dim("n", max=100)
    arity = op.arity - (op.name == "select")
    arrays = {f"x{i}": rng.integers(-5, 5, 37).astype(np.int32) for i in range(arity)}
    arrays["x0"][:2] = 2**31 - 1, -(2**31)
    types = {name: tensor(i32, count) for name in arrays}
    if op.name == "select":
        types = {"c": tensor(boolean, count), **types}
        arrays = {"c": rng.integers(0, 2, 37).astype(np.bool_), **arrays}
    exe = compiled(one_op(op.name, types), target)
    with np.errstate(all="ignore"):
        expected = np.asarray(op.function(*arrays.values()))
    assert same_bits(exe(**arrays)["y0"], expected)
    exe.close()


@pytest.mark.parametrize("target", TARGETS)
def test_a_literal_beside_integers_is_a_float(target: str) -> None:
    """A comparison of integers, made one loop with a choice between a float and a float constant."""
    builder = GraphBuilder("mixed")
    emit = Emitter(builder)
    a, b = (builder.input(name, tensor(i32, Dim("n"))) for name in "ab")
    x = builder.input("x", tensor(f32, Dim("n")))
    half = emit("constant", dtype=f32, shape=(), values=(0.5,))
    builder.output("y", emit("select", emit("less", a, b), x, half))
    exe = compiled(builder.build(), target)
    arrays = {"a": np.array([1, 2, 3], np.int32), "b": np.array([2, 2, 4], np.int32)}
    assert exe(**arrays, x=np.array([7, 8, 9], np.float32))["y"].tolist() == [7.0, 0.5, 9.0]
    exe.close()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ACTIVATION_TERMS)
def test_a_faulty_block_of_activations_stays_visible(name: str, target: str) -> None:
    """NaN and infinity in float32 rows are not rounded to ordinary numbers, and tiny blocks are zero."""
    dtype = DTYPES[name]
    width = 2 * dtype.block_size
    rows = np.random.default_rng(0).standard_normal((6, width)).astype(np.float32)
    rows[0, 5], rows[1, width - 24], rows[2, 0], rows[3, 31] = np.nan, np.inf, -np.inf, np.nan
    rows[4] *= np.float32(1e-38)
    rows[5] = 0.0
    exe = compiled(one_op("quantize", {"x": tensor(f32, Dim("n"), width)}, dtype=dtype), target)
    term_bytes = dtype.block_bytes // ACTIVATION_TERMS[name]
    found, expected = (raw.reshape(-1, term_bytes) for raw in (exe(x=rows)["y0"], encode(dtype, rows)))
    floats = range(32, 40) if dtype.block_size == 32 else range(320, 324)
    others = [byte for byte in range(term_bytes) if byte not in floats]
    assert np.array_equal(found[:, others], expected[:, others])
    numbers = [np.ascontiguousarray(blocks[:, floats]).view(np.float32) for blocks in (found, expected)]
    assert np.array_equal(*numbers, equal_nan=True)
    exe.close()
