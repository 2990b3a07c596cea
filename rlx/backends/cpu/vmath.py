"""Vector polynomials for exp, log, tanh, erf, sin, cos and what is made of them.

Each states its largest error in units in the last place (ulp) of float32 as measured by `tests/cpu/test_vmath.py` over
its whole range. Coefficients are minimax fits in float64 (Lawson's reweighting), rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlx.backends.cpu.emit import F32, F64, I32, I64, Emit, Val, ir, vec

_EXP = (
    1.0,
    1.0,
    0.49999991059303284,
    0.16666419804096222,
    0.04166822507977486,
    0.008374824188649654,
    0.0013836831785738468,
)
_EXP2 = (
    1.0,
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.001326472731307149,
)
_LOG = (
    0.3333333134651184,
    -0.24999980628490448,
    0.2000068873167038,
    -0.16669151186943054,
    0.1425115466117859,
    -0.12396707385778427,
    0.11634676903486252,
    -0.11659887433052063,
    0.07332437485456467,
)
_TANH = (
    1.0,
    -0.333333283662796,
    0.13333165645599365,
    -0.05394264683127403,
    0.021680735051631927,
    -0.008131764829158783,
    0.00210340297780931,
)
_ERF = (
    1.128379225730896,
    -0.37612637877464294,
    0.11283782124519348,
    -0.0268654003739357,
    0.005220945458859205,
    -0.0008482828852720559,
    0.00011256948346272111,
    -9.641518772696145e-06,
)
_LOG_ERFC = (
    0.0001252937945537269,
    -1.1292037963867188,
    -0.6341961026191711,
    -0.10696150362491608,
    0.023836513981223106,
    -0.0033602723851799965,
    0.00010176091018365696,
    6.434133683796972e-05,
    -1.2452771443349775e-05,
    7.845201821510273e-07,
)
_SIN = (
    -0.16666666666639357,
    0.008333333288871089,
    -0.00019841206484884453,
    2.752749664306108e-06,
    -1.9423268839490153e-08,
    -3.5295835976722646e-09,
)
_COS = (
    0.04166666666666394,
    -0.0013888888888599052,
    2.4801587244992765e-05,
    -2.755733748063531e-07,
    2.088338036894909e-09,
    -1.196532850341771e-11,
)


def _horner(e: Emit, x: Val, coefficients: Sequence[float]) -> Val:
    result = e.like(coefficients[-1], x)
    for coefficient in reversed(coefficients[:-1]):
        result = e.fma(result, x, coefficient)
    return result


def _clamp(e: Emit, x: Val, low: float, high: float) -> Val:
    """Within bounds; not-a-number stays."""
    x = e.select(x < low, e.like(low, x), x)
    return e.select(x > high, e.like(high, x), x)


def exp(e: Emit, x: Val) -> Val:
    """e^x; at most 1 ulp (1.3 without fused multiply-add), 0 below -104, infinity above 88.73."""
    x = _clamp(e, x, -105.0, 89.0)
    magic = float(3 << 22)
    shifted = e.fma(x, 1.0 / math.log(2.0), magic)
    n = shifted - magic
    # ln 2 in two parts; the first has few bits, so that n * part is exact
    r = e.fma(n, -0.693359375, x)
    r = e.fma(n, 2.12194440e-4, r)
    result = _horner(e, r, _EXP)
    integer = shifted.bitcast(_int_type(shifted)) - e.like(magic, shifted).bitcast(_int_type(shifted))
    # 2^n in two factors, so that results below the normal range round instead of vanishing
    first = integer.shift_right_signed(1)
    for part in (first, integer - first):
        result = result * ((part + 127) << 23).bitcast(result.type)
    return result


def exp2_of_negative(e: Emit, x: Val) -> Val:
    """2^x for x <= 0, at most 2.2 ulp; 0 below -126. Half the work of `exp`, for the weights of a softmax."""
    magic = float(3 << 22)
    shifted = x + magic
    r = x - (shifted - magic)
    result = _horner(e, r, _EXP2).bitcast(_int_type(x)) + (shifted.bitcast(_int_type(x)) << 23)
    return e.select(x < -126.0, e.like(0.0, x), result.bitcast(x.type))


def exp_nonpositive(e: Emit, x: Val) -> Val:
    """e^x for x <= 0; at most 1 ulp down to -87, 0 below; half the work of `exp`."""
    return e.select(x < -87.0, e.like(0.0, x), _exp_of_normal(e, e.maximum(x, -87.0)))


def _exp_of_normal(e: Emit, x: Val) -> Val:
    """e^x for x from -87 to 1 (where the result is no subnormal, and far from infinity); at most 1 ulp."""
    magic = float(3 << 22)
    shifted = e.fma(x, 1.0 / math.log(2.0), magic)
    n = shifted - magic
    r = e.fma(n, -0.693359375, x)
    r = e.fma(n, 2.12194440e-4, r)
    result = _horner(e, r, _EXP)
    # the low bits of `shifted` are n, and those of the magic number are 0 once they are moved up
    return (result.bitcast(_int_type(x)) + (shifted.bitcast(_int_type(x)) << 23)).bitcast(x.type)


def _int_type(x: Val) -> object:
    wide = I64 if isinstance(x.element, ir.DoubleType) else I32
    return vec(wide, x.type.count if isinstance(x.type, ir.VectorType) else 1)


def log(e: Emit, x: Val) -> Val:
    """Natural logarithm; at most 1 ulp for x > 0; -infinity at 0, not-a-number below."""
    small = x < 1.1754943508222875e-38
    scaled = e.select(small, x * float(1 << 25), x)
    bits = scaled.bitcast(_int_type(x))
    # shift so that the mantissa lies in [sqrt(1/2), sqrt(2))
    offset = bits - 0x3F3504F3
    exponent = offset.shift_right_signed(23)
    mantissa = (bits - (exponent << 23)).bitcast(x.type)
    n = exponent.to_float() - e.select(small, e.like(25.0, x), e.like(0.0, x))
    f = mantissa - 1.0
    square = f * f
    tail = _horner(e, f, _LOG) * (square * f)
    result = e.fma(n, -2.12194440e-4, tail)
    result = e.fma(square, -0.5, result)
    result = e.fma(n, 0.693359375, f + result)
    result = e.select(x.equals(0.0), e.like(-math.inf, x), result)
    result = e.select(x.equals(math.inf), x, result)
    return e.select(x >= 0.0, result, e.like(math.nan, x))


def tanh(e: Emit, x: Val) -> Val:
    """Hyperbolic tangent; at most 1.5 ulp."""
    magnitude = e.abs(x)
    square = x * x
    near = x * _horner(e, square, _TANH)
    far = e.like(1.0, x) - e.like(2.0, x) / (exp(e, magnitude + magnitude) + 1.0)
    far = e.select(x < 0.0, -far, far)
    return e.select(magnitude < 0.625, near, far)


def erf(e: Emit, x: Val) -> Val:
    """Error function; at most 3 ulp."""
    magnitude = _clamp(e, e.abs(x), 0.0, 4.0)
    near = x * _horner(e, x * x, _ERF)
    far = e.like(1.0, x) - _exp_of_normal(e, _horner(e, magnitude, _LOG_ERFC))  # of -18.1 to 0.0002
    far = e.select(x < 0.0, -far, far)
    # not-a-number compares false, and is lost in `far`
    return e.select(magnitude >= 1.0, far, near)


def sin_cos(e: Emit, x: Val) -> tuple[Val, Val]:
    """Sine and cosine of float32, by way of float64: correctly rounded but for near ties (0.51 ulp).

    Not-a-number where |x| exceeds 1.5 * 10^6: up to there the products of the reduction are exact.
    """
    wide = x.fpext(F64)
    wide = e.select(e.abs(wide) <= 1.5e6, wide, math.nan)
    magic = float(3 << 51)
    shifted = e.fma(wide, 2.0 / math.pi, magic)
    n = shifted - magic
    # pi/2 in three parts of 33 bits (fdlibm's split), so that products with n are exact
    r = e.fma(n, -1.57079632673412561417e00, wide)
    r = e.fma(n, -6.07710050630396597660e-11, r)
    r = e.fma(n, -2.02226624879595063154e-21, r)
    square = r * r
    sine = e.fma(_horner(e, square, _SIN) * square, r, r)
    cosine = e.fma(_horner(e, square, _COS) * square, square, e.fma(square, -0.5, 1.0))
    quadrant = shifted.bitcast(_int_type(shifted))
    swap = (quadrant & 1).equals(1)
    negate_sine, negate_cosine = (quadrant & 2).equals(2), ((quadrant + 1) & 2).equals(2)
    a, b = e.select(swap, cosine, sine), e.select(swap, sine, cosine)
    a, b = e.select(negate_sine, -a, a), e.select(negate_cosine, -b, b)
    return a.fptrunc(F32), b.fptrunc(F32)


def sigmoid(e: Emit, x: Val) -> Val:
    """1 / (1 + e^-x); at most 3 ulp."""
    z = exp(e, -e.abs(x))
    return e.select(x < 0.0, z, e.like(1.0, x)) / (z + 1.0)


def silu(e: Emit, x: Val) -> Val:
    """x * sigmoid(x); at most 3 ulp, and within 2e-43 below -87; not-a-number at -infinity, as 0 * infinity is."""
    z = exp(e, -e.abs(x))
    return e.select(x < 0.0, x * z, x) / (z + 1.0)


def softplus(e: Emit, x: Val) -> Val:
    """log(1 + e^x); at most 3 ulp.

    The rounding of 1 + z is made good by its quotient with z (Kahan's log1p), so that small results keep their digits.
    """
    z = exp(e, -e.abs(x))
    total = z + 1.0
    rounded = total - 1.0
    is_lost = rounded.equals(0.0)
    small = e.select(is_lost, z, log(e, total) * (z / e.select(is_lost, e.like(1.0, x), rounded)))
    return e.select(x > 0.0, x + small, small)


def gelu(e: Emit, x: Val) -> Val:
    """x * (1 + erf(x / sqrt 2)) / 2; error at most 1.5 ulp of x."""
    half = x * 0.5
    return e.fma(half, erf(e, x * math.sqrt(0.5)), half)


def gelu_tanh(e: Emit, x: Val) -> Val:
    """The tanh form of GELU; error at most 1.5 ulp of x."""
    inner = e.fma(x * x * 0.044715, x, x) * math.sqrt(2.0 / math.pi)
    half = x * 0.5
    return e.fma(half, tanh(e, inner), half)


def gelu_quick(e: Emit, x: Val) -> Val:
    """The sigmoid form of GELU, x * sigmoid(1.702 x); as `silu`, whose argument is rounded once more."""
    z = exp(e, -e.abs(x * 1.702))
    return e.select(x < 0.0, x * z, x) / (z + 1.0)


def _relu(e: Emit, x: Val) -> Val:
    return e.select(x < 0, e.like(0, x), x)


def _abs(e: Emit, x: Val) -> Val:
    return e.abs(x) if x.is_float else e.select(x < 0, -x, x)


def _maximum(e: Emit, a: Val, b: Val) -> Val:
    """The larger; not-a-number if one is (`Emit.maximum` is faster and drops it)."""
    return e.intrinsic("maximum", a, b) if a.is_float else e.maximum(a, b)


def _minimum(e: Emit, a: Val, b: Val) -> Val:
    return e.intrinsic("minimum", a, b) if a.is_float else e.minimum(a, b)


def _plain(operator: Callable[[Val, Val], Val]) -> Callable[[Emit, Val, Val], Val]:
    return lambda e, a, b: operator(a, b)


_UNARY: dict[str, Callable[[Emit, Val], Val]] = {
    "neg": lambda e, x: -x,
    "abs": _abs,
    "exp": exp,
    "log": log,
    "sqrt": lambda e, x: e.sqrt(x),
    "rsqrt": lambda e, x: e.like(1.0, x) / e.sqrt(x),
    "tanh": tanh,
    "erf": erf,
    "sin": lambda e, x: sin_cos(e, x)[0],
    "cos": lambda e, x: sin_cos(e, x)[1],
    "sigmoid": sigmoid,
    "silu": silu,
    "softplus": softplus,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "gelu_quick": gelu_quick,
    "relu": _relu,
}
_BINARY: dict[str, Callable[[Emit, Val, Val], Val]] = {
    "add": _plain(lambda a, b: a + b),
    "sub": _plain(lambda a, b: a - b),
    "mul": _plain(lambda a, b: a * b),
    "div": _plain(lambda a, b: a / b),
    "maximum": _maximum,
    "minimum": _minimum,
    "less": _plain(lambda a, b: a < b),
    "less_equal": _plain(lambda a, b: a <= b),
    "equal": _plain(lambda a, b: a.equals(b)),
}


def _select(e: Emit, condition: Val, yes: Val, no: Val) -> Val:
    return e.select(condition, yes, no)


SCALAR_EMITTERS: dict[str, Callable[..., Val]] = {**_UNARY, **_BINARY, "select": _select}
"""One emitter for each entry of `rlx.ops.elementwise.SCALAR_OPS`; booleans are i1 lanes within an expression."""
