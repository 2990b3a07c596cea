"""The vector functions over the whole range of float32 (subnormals, infinities, not-a-number) against float64.

`ULPS` repeats the bounds that the docstrings of `vmath.py` state. An error is counted in units in the last place of the
float32 nearest to the true value (2^-149 below the normal range); that of the GELUs, which cancel for negative x by the
shape of their definition, in those of x.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.cpu.codegen import optimise, target_machine
from rlx.backends.cpu.emit import I64, LANES, PTR, VF, Emit, Val, set_width
from rlx.backends.cpu.llvm import binding, ir
from rlx.backends.cpu.target import resolve
from rlx.backends.cpu.vmath import exp2_of_negative
from rlx.core.dim import Dim
from rlx.core.dtype import f32
from rlx.core.type import tensor
from rlx.ops.elementwise import SCALAR_OPS
from tests.cpu.compiling import TARGETS, compiled, one_op, unary_graph

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]

STRIDE = 4093
"""A prime: every 4093rd bit pattern, so that all exponents and the low bits of mantissas vary together."""
SINE_LIMIT = 1.5e6
"""Above it sine and cosine are not-a-number, as the docstring says."""
LARGEST = float(np.finfo(np.float32).max)
INF, NAN = math.inf, math.nan


@cache
def arguments() -> Floats:
    patterns = np.arange(0, 2**32, STRIDE, dtype=np.uint64).astype(np.uint32).view(np.float32)
    dense = np.random.default_rng(0).uniform(-20, 20, 200_000).astype(np.float32)
    edges = np.array([0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, LARGEST, -LARGEST], np.float32)
    tiny = np.arange(1, 400, dtype=np.uint32).view(np.float32)
    # where the functions change their formula
    switches = np.array([0.625, 1.0, 4.0, 88.72284, -87.33655, -103.97208, math.pi / 2, math.pi], np.float32)
    around = np.concatenate([np.nextafter(switches, np.float32(way)) for way in (-INF, INF)])
    return np.concatenate([patterns, dense, edges, tiny, switches, around, -switches])


def _each(function: Callable[[float], float]) -> Callable[[Doubles], Doubles]:
    return lambda x: np.asarray(np.frompyfunc(function, 1, 1)(x), np.float64)


def _sigmoid(x: Doubles) -> Doubles:
    return 1.0 / (1.0 + np.exp(-x))


def _gelu(x: Doubles) -> Doubles:
    # erfc does not cancel where 1 + erf does
    return 0.5 * x * _each(math.erfc)(-x * math.sqrt(0.5))


def _gelu_tanh(x: Doubles) -> Doubles:
    # (1 + tanh(a)) / 2 is sigmoid(2 a), which does not cancel
    return x * _sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))


REFERENCES: dict[str, Callable[[Doubles], Doubles]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": _each(math.erf),
    "sin": np.sin,
    "cos": np.cos,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
ULPS = {
    "exp": 1.0,
    "log": 1.0,
    "tanh": 1.5,
    "erf": 3.0,
    "sin": 0.51,
    "cos": 0.51,
    "sigmoid": 3.0,
    "silu": 3.0,
    "softplus": 3.0,
    "gelu": 1.5,
    "gelu_tanh": 1.5,
}
WITHOUT_FMA = {"exp": 1.3}
"""What is larger where a multiplication and an addition round separately (baseline x86-64)."""
# -infinity times 0 is not-a-number, in NumPy and torch too
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(-INF, 0.0), (INF, INF), (0.0, 1.0), (-0.0, 1.0), (89.0, INF), (-104.0, 0.0), (-1e30, 0.0), (1e30, INF)],
    "log": [(0.0, -INF), (-0.0, -INF), (INF, INF), (1.0, 0.0), (-1.0, NAN), (-INF, NAN), (-1e-44, NAN)],
    "tanh": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (30.0, 1.0), (-30.0, -1.0)],
    "erf": [(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (10.0, 1.0), (-10.0, -1.0)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (1e7, NAN)],
    "cos": [(0.0, 1.0), (INF, NAN), (-INF, NAN), (-1e7, NAN)],
    "sigmoid": [(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (200.0, 1.0), (-200.0, 0.0)],
    "silu": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-200.0, -0.0), (LARGEST, LARGEST)],
    "gelu": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-50.0, -0.0), (LARGEST, LARGEST), (-LARGEST, -0.0)],
    "gelu_tanh": [(INF, INF), (-INF, NAN), (0.0, 0.0), (-50.0, -0.0), (LARGEST, LARGEST), (-LARGEST, -0.0)],
}


@cache
def reference(name: str) -> Doubles:
    with np.errstate(all="ignore"):
        x = arguments().astype(np.float64)
        return np.asarray(REFERENCES[name](x))


def ulps(found: Floats, true: Doubles, scale: Doubles) -> Doubles:
    """The distance in units in the last place of `scale`; 0 where both overflow to the same infinity."""
    with np.errstate(all="ignore"):
        rounded = true.astype(np.float32)
        unit = np.spacing(np.minimum(np.abs(scale), LARGEST).astype(np.float32)).astype(np.float64)
        distance = np.abs(found.astype(np.float64) - true) / unit
    return np.where(np.isinf(rounded) & (found == rounded), 0.0, distance)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_function_is_within_its_stated_error(name: str, target: str) -> None:
    x, true = arguments(), reference(name)
    kept = np.isfinite(x) & np.isfinite(true)
    if name in ("sin", "cos"):
        kept &= np.abs(x) < SINE_LIMIT
    deep = kept & (x < -87)  # e^x is subnormal there
    exe = compiled(unary_graph(name, Dim("n")), target)
    found = exe(x=x)["y0"]
    exe.close()
    assert np.isnan(found[np.isnan(x)]).all(), "not-a-number does not stay"
    if name == "silu":
        assert np.abs(found[deep] - true[deep]).max() <= 2e-43
        kept &= ~deep
    x, found, true = x[kept], found[kept], true[kept]
    scale = np.maximum(np.abs(x.astype(np.float64)), np.abs(true)) if name.startswith("gelu") else true
    error = ulps(found, true, scale)
    worst = int(np.nanargmax(np.where(np.isnan(error), np.inf, error)))
    bound = ULPS[name] if resolve(target).fma else WITHOUT_FMA.get(name, ULPS[name])
    assert error[worst] <= bound, f"{error[worst]} ulp at {x[worst]!r}: {found[worst]!r}, not {true[worst]!r}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name: str, target: str) -> None:
    given, expected = (np.array(column, np.float32) for column in zip(*SPECIAL[name], strict=True))
    exe = compiled(unary_graph(name, Dim("n")), target)
    found = exe(x=given)["y0"]
    exe.close()
    assert np.array_equal(found, expected, equal_nan=True), list(zip(given, found, expected, strict=True))
    if name in ("tanh", "erf"):  # odd functions keep the sign of zero
        zero = given == 0
        assert (np.signbit(found[zero]) == np.signbit(given[zero])).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["maximum", "minimum", "relu", "neg", "abs", "sqrt", "rsqrt"])
def test_plain_arithmetic_treats_special_values_as_numpy_does(name: str, target: str) -> None:
    values = np.array([NAN, INF, -INF, 0.0, 1.5, -2.0, 1e-44], np.float32)
    pairs = [grid.reshape(-1) for grid in np.meshgrid(values, values)][: SCALAR_OPS[name].arity]
    arrays = {f"x{i}": array for i, array in enumerate(pairs)}
    exe = compiled(one_op(name, {key: tensor(f32, Dim("n")) for key in arrays}), target)
    found = exe(**arrays)["y0"]
    exe.close()
    with np.errstate(all="ignore"):
        assert np.array_equal(found, SCALAR_OPS[name].function(*pairs), equal_nan=True)


@pytest.mark.parametrize("target", TARGETS)
def test_exp2_of_negative(target: str) -> None:
    """The weights of a softmax: every exponent down to where they are 0, and nothing but 0 below."""
    bits = np.arange(0, 0x7F800001, STRIDE, dtype=np.uint64).astype(np.uint32)
    dense = np.random.default_rng(0).uniform(-130, 0, 200_000).astype(np.float32)
    x = np.concatenate([-bits.view(np.float32), dense, np.array([0.0, -0.0, -126.0, -127.0, -INF, NAN], np.float32)])
    x = np.concatenate([x, np.zeros(-len(x) % LANES, np.float32)])
    found = _emitted(exp2_of_negative, target, x)
    expected = np.exp2(x.astype(np.float64))
    zero, normal = x < -126, (x >= -126)
    assert (found[zero] == 0).all()
    assert np.isnan(found[np.isnan(x)]).all()
    assert (found[x == 0] == 1).all(), "what the maximum itself weighs"
    error = np.abs(found[normal] - expected[normal]) / np.spacing(expected[normal].astype(np.float32))
    assert error.max() <= 2.2


def _emitted(function: Callable[[Emit, Val], Val], target: str, x: Floats) -> Floats:
    """A vector function that no op has, over an array of whole vectors."""
    module, chosen = ir.Module("one", context=ir.Context()), resolve(target)
    module.triple = chosen.triple
    native = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I64]), "over")
    set_width(native, chosen)
    entry, start = native.append_basic_block("entry"), native.append_basic_block("start")
    e = Emit(module, ir.IRBuilder(start), chosen, entry)
    source, result, count = (Val(e, argument) for argument in native.args)
    with e.loop(0, count, LANES) as i:
        e.store(function(e, e.load(source, VF, i)), result, i)
    e.b.ret_void()
    with e.b.goto_block(entry):
        e.b.branch(start)
    machine = target_machine(chosen)
    engine = binding().create_mcjit_compiler(optimise(str(module), machine), machine)
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    found = np.empty_like(x)
    call(engine.get_function_address("over"))(x.ctypes.data, found.ctypes.data, x.size)
    return found
