"""A graph and inputs for every `Sample` of every op: what the generated tests run, on the reference and on backends.

    graph = sample_graph(op, sample)                   one node; inputs x0, x1, ...; outputs y0, y1, ...
    arrays = sample_inputs(op, sample, seed=0)         packed inputs as their bytes

Everything is drawn from a generator seeded by the op, the sample and `seed`, so a failure repeats.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import rlx.ops  # noqa: F401  importing the families is what fills the registry
from rlx.core.bind import concrete_shape
from rlx.core.dim import Dim, symbols_of
from rlx.core.dtype import DType, f32
from rlx.core.graph import Graph, GraphBuilder, Value
from rlx.core.storage import STORAGE_FORMATS, decode, encode
from rlx.core.storage_blocks import BLOCK_FORMATS
from rlx.core.type import TensorType, numpy_shape, tensor
from rlx.ops.op import REGISTRY, Emitter, OpDef, Sample

Array = NDArray[Any]

CASES: list[tuple[OpDef, Sample]] = [(op, sample) for op in REGISTRY.values() for sample in op.samples()]
"""Every sample of every op."""

CASE_NAMES: list[str] = [f"{op.name}-{sample.name}" for op, sample in CASES]
"""Names of `CASES`, for `pytest.mark.parametrize(..., ids=CASE_NAMES)`."""


def sample_graph(op: OpDef, sample: Sample) -> Graph:
    """A graph of one node."""
    builder = GraphBuilder(f"{op.name}_{sample.name}")
    inputs = add_inputs(builder, sample)
    for i, value in enumerate(Emitter(builder).many(op.name, *inputs, **sample.attrs)):
        builder.output(f"y{i}", value)
    return builder.build()


def add_inputs(builder: GraphBuilder, sample: Sample) -> tuple[Value, ...]:
    """Inputs x0, x1, ... of a sample; a symbol that only its attributes name gets an unused input `size_of_NAME`."""
    inputs = tuple(builder.input(f"x{i}", type_) for i, type_ in enumerate(sample.inputs))
    for symbol in _hidden(sample):
        builder.input(f"size_of_{symbol}", tensor(f32, Dim(symbol, max=64)))
    return inputs


def _hidden(sample: Sample) -> list[str]:
    shown = {symbol.name for symbol in symbols_of(size for type_ in sample.inputs for size in type_.shape)}
    return [name for name in sample.dims if name not in shown]


def other_dims(sample: Sample) -> dict[str, int]:
    """Other values for the symbols of a sample. They are smaller where they can be, so that its arrays can be cut."""
    return {name: value - 2 if value > 2 else value + 2 for name, value in sample.dims.items()}


def sample_inputs(op: OpDef, sample: Sample, seed: int = 0, dims: Mapping[str, int] | None = None) -> dict[str, Array]:
    """An array for each input of `sample_graph`, for `dims` in place of the sample's own sizes."""
    rng = np.random.default_rng([zlib.crc32(f"{op.name}/{sample.name}".encode()), seed])
    sizes = sample.dims if dims is None else dims
    arrays: dict[str, Array] = {}
    for i, type_ in enumerate(sample.inputs):
        shape = concrete_shape(type_, sizes)
        if i in sample.arrays:
            given = sample.arrays[i]()
            arrays[f"x{i}"] = np.ascontiguousarray(given[tuple(slice(0, size) for size in shape)])
        else:
            arrays[f"x{i}"] = _random(rng, type_, shape, sample.ranges.get(i))
    for symbol in _hidden(sample):
        arrays[f"size_of_{symbol}"] = np.zeros(sizes[symbol], np.float32)
    return arrays


def _random(
    rng: np.random.Generator, type_: TensorType, shape: tuple[int, ...], limits: tuple[float, float] | None
) -> Array:
    dtype = type_.dtype
    if dtype.kind == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype.kind in ("int", "uint"):
        low, high = limits or (0, 10)
        return rng.integers(int(low), int(high) + 1, shape).astype(dtype.numpy)
    if dtype.is_packed and STORAGE_FORMATS[dtype.name].encode_blocks is None:
        return random_bytes(dtype, shape, rng).reshape(numpy_shape(type_, shape))
    values = rng.standard_normal(shape) if limits is None else rng.uniform(*limits, shape)
    values = values.astype(np.float32)
    if dtype.is_packed:
        return encode(dtype, values).reshape(numpy_shape(type_, shape))
    return values.astype(dtype.numpy)


def random_bytes(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A tensor of any bytes but for its factors, which are between 0.001 and 0.1 in magnitude; flat.

    MXFP4 has any exponent, and an 8-bit float is finite.
    """
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // dtype.block_size, dtype.block_bytes), dtype=np.uint8)
    if dtype.name != "mxfp4":
        set_factors(dtype, blocks, 10 ** rng.uniform(-3, -1, len(blocks)) * rng.choice([-1, 1], len(blocks)))
    if dtype.name in _NOT_FINITE:
        codes, exponent = blocks[:, 4:], np.uint8(_NOT_FINITE[dtype.name])
        codes ^= np.where(codes & exponent == exponent, np.uint8(8), np.uint8(0))
    return blocks.reshape(-1)


_NOT_FINITE = {"e4m3_s": 0x7F, "e5m2_s": 0x7C}
"""The bits that are all set in an infinity or NaN."""


def set_factors(
    dtype: DType, blocks: NDArray[np.uint8], factors: NDArray[np.floating] | float, place: int | None = None
) -> None:
    """Give every block `[blocks, block_bytes]` these factors, as near as the format has them.

    Of a format with two half factors both are set, or the one at `place`.
    """
    column = np.broadcast_to(np.asarray(factors, np.float64), len(blocks))
    halves = column.astype(np.float16).view(np.uint16)
    if dtype.name == "mxfp4":  # half of the power of two, for doubled levels
        blocks[:, 0] = np.round(np.log2(np.abs(column))) + 128
    elif dtype.name == "nvfp4":
        scales = (np.abs(column) * 2).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        blocks[:, :4] = np.maximum(scales, 1)[:, None]
    elif dtype.name == "iq1_m":  # the half lies in the upper nibbles of the last four words
        for word in range(4):
            blocks[:, 49 + 2 * word] &= np.uint8(15)
            blocks[:, 49 + 2 * word] |= (halves >> np.uint16(4 * word) & np.uint16(15)).astype(np.uint8) << np.uint8(4)
    elif dtype.name in _NOT_FINITE:
        blocks[:, :4] = column.astype(np.float32).view(np.uint8).reshape(-1, 4)
    places = BLOCK_FORMATS[dtype.name].halves
    for byte in places if place is None else places[place : place + 1]:
        blocks[:, byte : byte + 2] = halves.view(np.uint8).reshape(-1, 2)


def held_inputs(op: OpDef, sample: Sample, arrays: Mapping[str, Array], dims: Mapping[str, int]) -> tuple[Array, ...]:
    """What `OpDef.reference` gets for these inputs in float64: packed ones decoded, floats widened."""
    result: list[Array] = []
    for i, type_ in enumerate(sample.inputs):
        array = arrays[f"x{i}"]
        if type_.dtype.is_packed:
            array = decode(type_.dtype, array.reshape(-1), concrete_shape(type_, dims))
        floats = type_.dtype.is_packed or type_.dtype.is_float
        result.append(array.astype(np.float64) if floats else array)
    return tuple(result)


def largest_difference(found: Array, expected: Array) -> float:
    """The largest difference, relative to the largest magnitude of `expected`; infinite where only one is finite."""
    if found.shape != expected.shape:
        return float("inf")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    finite = np.abs(b[np.isfinite(b)]).max(initial=0.0)
    worst = np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)).max()
    return float("inf") if not np.isfinite(worst) else float(worst / max(finite, 1e-30))
