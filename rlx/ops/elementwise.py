"""Elementwise ops with NumPy broadcasting, and the fused `elementwise` that evaluates an expression of them.

The table `SCALAR_OPS` is the one place that names them: the references here, the expression language of `elementwise`
(`mul(silu($0), $1)`) and the CPU emitter all go by it. Sources: GELU, Hendrycks and Gimpel 2016 (its erf, tanh and
sigmoid forms); SiLU, Elfwing et al. 2017.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import erf
from typing import Any, TypeAlias

import numpy as np

from rlx.core.dim import Dim, Shape, Size
from rlx.core.dtype import DTYPES, DType, boolean, f32, i32
from rlx.core.graph import Attrs
from rlx.core.type import TensorType
from rlx.errors import ParseError, ShapeError
from rlx.ops.op import Array, Attribute, Cost, Missing, OpDef, Sample, Types, check_arity, register


@dataclass(frozen=True, slots=True)
class ScalarOp:
    """A function of one element of each operand.

    `flops` is a rough count for the cost model, `low` and `high` the range of its test inputs, `ints` says that it
    takes int32 as well as float32.
    """

    name: str
    arity: int
    function: Callable[..., Array]
    flops: int = 1
    low: float = -4.0
    high: float = 4.0
    compares: bool = False
    ints: bool = False


_erf = np.frompyfunc(erf, 1, 1)


def _numeric_erf(x: Array) -> Array:
    return np.asarray(_erf(x)).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(np.zeros((), x.dtype), -x))


def _rsqrt(x: Array) -> Array:
    return 1.0 / np.sqrt(x)


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _softplus(x: Array) -> Array:
    return np.logaddexp(np.zeros((), x.dtype), x)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + _numeric_erf(x * np.sqrt(0.5).astype(x.dtype)))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi).astype(x.dtype) * (x + 0.044715 * x * x * x)))


def _gelu_quick(x: Array) -> Array:
    return x * _sigmoid(np.asarray(1.702, x.dtype) * x)


SCALAR_OPS: dict[str, ScalarOp] = {
    op.name: op
    for op in (
        ScalarOp("neg", 1, np.negative, ints=True),
        ScalarOp("abs", 1, np.abs, ints=True),
        ScalarOp("exp", 1, np.exp, 12),
        ScalarOp("log", 1, np.log, 12, 0.01, 8.0),
        ScalarOp("sqrt", 1, np.sqrt, 4, 0.0, 8.0),
        ScalarOp("rsqrt", 1, _rsqrt, 5, 0.05, 8.0),
        ScalarOp("tanh", 1, np.tanh, 16),
        ScalarOp("erf", 1, _numeric_erf, 20),
        ScalarOp("sin", 1, np.sin, 16),
        ScalarOp("cos", 1, np.cos, 16),
        ScalarOp("sigmoid", 1, _sigmoid, 15),
        ScalarOp("silu", 1, _silu, 16),
        ScalarOp("softplus", 1, _softplus, 28),
        ScalarOp("gelu", 1, _gelu, 24),
        ScalarOp("gelu_tanh", 1, _gelu_tanh, 24),
        ScalarOp("gelu_quick", 1, _gelu_quick, 17),
        ScalarOp("relu", 1, _relu, ints=True),
        ScalarOp("add", 2, np.add, ints=True),
        ScalarOp("sub", 2, np.subtract, ints=True),
        ScalarOp("mul", 2, np.multiply, ints=True),
        ScalarOp("div", 2, np.divide, 4, 0.25, 4.0),
        ScalarOp("maximum", 2, np.maximum, ints=True),
        ScalarOp("minimum", 2, np.minimum, ints=True),
        ScalarOp("less", 2, np.less, 1, compares=True, ints=True),
        ScalarOp("less_equal", 2, np.less_equal, 1, compares=True, ints=True),
        ScalarOp("equal", 2, np.equal, 1, compares=True, ints=True),
        ScalarOp("select", 3, np.where, 1, ints=True),
    )
}

Expression: TypeAlias = "int | float | tuple[str, tuple[Expression, ...]]"
"""`$i` is the int i, a literal is a float, an application is (name, operands)."""


_TOKEN = re.compile(r"\s*(\$\d{1,4}|-?\d+(?:\.\d*)?(?:e[+-]?\d+)?|-?inf|nan|[a-z_][a-z0-9_]*|[(),])")
_MAX_DEPTH = 64


@lru_cache(maxsize=1024)
def parse_expression(text: str) -> Expression:
    """`mul(silu($0), 2.0)` as nested tuples.

    Raises:
        ParseError: unknown function, wrong number of operands, or text that is no expression.
    """
    tokens: list[str] = []
    position, stripped = 0, text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise ParseError("cannot read this expression", found=repr(stripped[position:]))
        tokens.append(match[1])
        position = match.end()
    expression, end = _parse_tokens(tokens, 0, text, 0)
    if end != len(tokens):
        raise ParseError("text after the end of an expression", found=text)
    return expression


def _parse_tokens(tokens: list[str], at: int, text: str, depth: int) -> tuple[Expression, int]:
    """The expression that starts at token `at`, and the token after it."""
    if at >= len(tokens) or depth > _MAX_DEPTH:
        raise ParseError("an expression ends too early or is nested too deep", found=text)
    head = tokens[at]
    if head.startswith("$"):
        return int(head[1:]), at + 1
    if head not in SCALAR_OPS:
        try:
            return float(head), at + 1
        except ValueError:
            raise ParseError("unknown function", found=head, expected=", ".join(SCALAR_OPS)) from None
    operands: list[Expression] = []
    at += 1
    for mark in "(" + "," * (SCALAR_OPS[head].arity - 1):
        if at >= len(tokens) or tokens[at] != mark:
            raise ParseError(f"{head} takes {SCALAR_OPS[head].arity} operands in brackets", found=text)
        operand, at = _parse_tokens(tokens, at + 1, text, depth + 1)
        operands.append(operand)
    if at >= len(tokens) or tokens[at] != ")":
        raise ParseError(f"{head} takes {SCALAR_OPS[head].arity} operands in brackets", found=text)
    return (head, tuple(operands)), at + 1


def print_expression(expression: Expression) -> str:
    """The inverse of `parse_expression`."""
    if isinstance(expression, int):
        return f"${expression}"
    if isinstance(expression, float):
        return repr(expression)
    return f"{expression[0]}({', '.join(map(print_expression, expression[1]))})"


def renumber(expression: Expression, mapping: Sequence[Expression]) -> Expression:
    """Replace `$i` by `mapping[i]`."""
    if isinstance(expression, int):
        return mapping[expression]
    if isinstance(expression, float):
        return expression
    return expression[0], tuple(renumber(operand, mapping) for operand in expression[1])


def broadcast_shapes(shapes: Sequence[Shape]) -> Shape:
    """The NumPy broadcast of symbolic shapes; a symbol matches itself or 1.

    Raises:
        ShapeError: two sizes do not fit.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Size] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis and shape[axis] != 1}
        if len(sizes) > 1:
            raise ShapeError("shapes do not broadcast", found=" and ".join(map(str, shapes)))
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def _infer(op: ScalarOp) -> Callable[[Types, Attrs], Types]:
    def infer(types: Types, attrs: Attrs) -> Types:
        check_arity(types, op.arity)
        operands = types[1:] if op.name == "select" else types
        allowed = (f32, i32) if op.ints else (f32,)
        if any(type_.dtype != operands[0].dtype for type_ in operands) or operands[0].dtype not in allowed:
            raise ShapeError(
                "operands need one dtype",
                found=", ".join(map(str, types)),
                expected=" or ".join(map(str, allowed)),
                fix="add a cast or a dequantize",
            )
        if op.name == "select" and types[0].dtype != boolean:
            raise ShapeError("the first operand of select has to be bool")
        dtype = boolean if op.compares else operands[0].dtype
        return (TensorType(dtype, broadcast_shapes([type_.shape for type_ in types])),)

    return infer


def _samples(op: ScalarOp) -> Callable[[], Sequence[Sample]]:
    def samples() -> Sequence[Sample]:
        seq = Dim("seq", max=64)
        ranges = dict.fromkeys(range(op.arity), (op.low, op.high))
        first = TensorType(boolean, (seq, 40)) if op.name == "select" else TensorType(f32, (seq, 40))
        rest = tuple(TensorType(f32, shape) for shape in ((seq, 40), (seq, 40))[: op.arity - 1])
        cases = [Sample("2d", (first, *rest), {}, {"seq": 5}, ranges)]
        if op.arity == 2:
            for name, shape in (("row", (40,)), ("column", (seq, 1)), ("scalar", ())):
                cases.append(Sample(name, (first, TensorType(f32, shape)), {}, {"seq": 3}, ranges))
        return cases

    return samples


def _register(op: ScalarOp) -> OpDef:
    def reference(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
        return (np.asarray(op.function(*inputs)),)

    help_text = f"{op.name} of each element" if op.arity == 1 else f"{op.name} of the elements of {op.arity} tensors"
    return register(
        OpDef(op.name, help_text + ".", _infer(op), reference, Missing("primitive"), _samples(op), row_wise=True)
    )


for _op in SCALAR_OPS.values():
    _register(_op)


def evaluate_expression(expression: Expression, inputs: Sequence[Array]) -> Array:
    """The value of an expression on NumPy arrays.

    A literal takes the dtype of the operands, conditions left out.
    """
    numbers = [array.dtype for array in inputs if array.dtype != np.bool_]
    return _evaluate(expression, inputs, np.result_type(*numbers) if numbers else np.dtype(np.float32))


def _evaluate(expression: Expression, inputs: Sequence[Array], literal: np.dtype) -> Array:
    if isinstance(expression, int):
        return inputs[expression]
    if isinstance(expression, float):
        return np.asarray(expression, literal)
    return SCALAR_OPS[expression[0]].function(*(_evaluate(e, inputs, literal) for e in expression[1]))


def operands_of(expression: Expression) -> frozenset[int]:
    """The numbers i of all `$i` in an expression."""
    if isinstance(expression, int):
        return frozenset({expression})
    if isinstance(expression, float):
        return frozenset()
    return frozenset(i for operand in expression[1] for i in operands_of(operand))


def _infer_fused(types: Types, attrs: Attrs) -> Types:
    dtype, text = attrs["dtype"], attrs["expression"]
    if not types or not isinstance(dtype, DType) or not isinstance(text, str):
        raise ShapeError("elementwise needs an operand, an expression and a dtype")
    used = operands_of(parse_expression(text))
    if used != frozenset(range(len(types))):
        raise ShapeError(
            "an expression has to use every operand and no other", found=text, expected=f"$0 to ${len(types) - 1}"
        )
    return (TensorType(dtype, broadcast_shapes([type_.shape for type_ in types])),)


def _reference_fused(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    result = evaluate_expression(parse_expression(attrs["expression"]), inputs)
    shape = np.broadcast_shapes(*(array.shape for array in inputs))
    if attrs["dtype"].is_packed:
        from rlx.core.storage import decode, encode

        values = np.ascontiguousarray(np.broadcast_to(result, shape), np.float32)
        return (decode(attrs["dtype"], encode(attrs["dtype"], values), values.shape),)
    return (np.broadcast_to(result, shape),)


def _fused_samples() -> Sequence[Sample]:
    seq = Dim("seq", max=64)
    matrix = TensorType(f32, (seq, 96))
    return (
        Sample("gated", (matrix, matrix), {"expression": "mul(silu($0), $1)"}, {"seq": 5}),
        Sample("literal", (matrix,), {"expression": "mul(30.0, tanh(div($0, 30.0)))"}, {"seq": 3}),
        Sample("row", (matrix, TensorType(f32, (96,))), {"expression": "add(mul($0, 2.0), $1)"}, {"seq": 3}),
        Sample(
            "quantized",
            (matrix, matrix),
            {"expression": "mul(silu($0), $1)", "dtype": DTYPES["q8_act"]},
            {"seq": 5},
            # silu differs by ulps, which can move a value over a rounding edge: one step of the int8 grid
            tolerance=1.2 / 127,
        ),
        Sample(
            "quantized_large",
            (TensorType(f32, (seq, 512)), TensorType(f32, (seq, 512))),
            {"expression": "mul(silu($0), $1)", "dtype": DTYPES["q8k_act"]},
            {"seq": 3},
            tolerance=1.2 / 127,
        ),
        Sample("int", (TensorType(i32, (seq, 7)),), {"expression": "add($0, $0)", "dtype": i32}, {"seq": 3}),
    )


def _fused_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    """The operations of the expression for each element, every byte moved once."""
    moved = outputs[0].nbytes
    for type_ in inputs:
        moved = moved + type_.nbytes
    return Cost(_flops(parse_expression(str(attrs["expression"]))) * outputs[0].num_elements, moved)


def _flops(expression: Expression) -> int:
    if not isinstance(expression, tuple):
        return 0
    return SCALAR_OPS[expression[0]].flops + sum(map(_flops, expression[1]))


elementwise = register(
    OpDef(
        "elementwise",
        "A fused expression of elementwise ops, evaluated in one loop.",
        _infer_fused,
        _reference_fused,
        Missing("made by fusion from primitive ops"),
        _fused_samples,
        (
            Attribute("expression", "such as mul(silu($0), $1)"),
            Attribute("dtype", "element type of the result; an activation format quantises it", f32),
        ),
        levels=frozenset({"mir"}),
        cost=_fused_cost,
        row_wise=True,
    )
)
