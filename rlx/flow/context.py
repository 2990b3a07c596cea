"""What a block can reach while it emits: the HIR builder, the weights, and the side state of the flow.

In: a builder, a weight source, a profile. Out: nodes in the builder. Blocks call `load_param`, `matmul` and `op`; the
residual stack, named values, streams and taps live here too. Next: `flow.py`, and any file of `blocks/`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.dim import Size
from rlx.core.dtype import PACKED_WEIGHTS, f32, i32
from rlx.core.graph import AttrValue, GraphBuilder, Location, Value
from rlx.errors import FlowError, MissingTensorError, TensorShapeError, UnsupportedModelError
from rlx.flow.profile import Profile
from rlx.flow.stage import BlockStage, path_of, source_of
from rlx.flow.value import FlowValue
from rlx.flow.weights import WeightSource
from rlx.ops.op import Emitter

WEIGHT_DTYPES = ("f32", "f16", "bf16", *(dtype.name for dtype in PACKED_WEIGHTS))


@dataclass(frozen=True, slots=True)
class Operand:
    """A weight as a product takes it: the stored tensor, and whether it is read transposed.

    Transposing is a relabelling: the same `parameter` node serves both readings.
    """

    key: str
    value: Value
    transposed: bool

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape the reader sees: `[in, out]` of a transposed linear weight."""
        shape = self.value.type.shape
        return shape[::-1] if self.transposed else shape


class FlowCtx:
    """The state of a flow that is being built.

    Attributes:
        builder: the HIR graph under construction.
        emit: adds ops at the location of the block that runs now.
        weights: where `load_param` looks.
        profile: how the result will be compiled.
        rope_cos, rope_sin: the default RoPE pair, `f32[seq, half width]`, once a `RopeTablesStage` has run.
        named: values by name: inputs under their names, named RoPE pairs as `NAME_cos` and `NAME_sin`.
        taps: extra outputs of the graph.
        output_name: what the final value is called in the graph.
    """

    def __init__(self, builder: GraphBuilder, weights: WeightSource, profile: Profile | None = None) -> None:
        self.builder, self.weights, self.profile = builder, weights, profile or Profile()
        self.emit = Emitter(builder)
        self.rope_cos: FlowValue | None = None
        self.rope_sin: FlowValue | None = None
        self.named: dict[str, FlowValue] = {}
        self.taps: dict[str, FlowValue] = {}
        self.output_name = "output"
        self._parameters: dict[str, Value] = {}
        self._plain: dict[Value, Value] = {}
        self._positions: dict[Size, FlowValue] = {}
        self._residuals: list[tuple[FlowValue, Location]] = []
        self._streams: dict[str, FlowValue] = {}

    # ---- running blocks ----

    @property
    def location(self) -> Location:
        """Block path and source line of the nodes emitted now."""
        return self.emit.location

    @contextmanager
    def at(self, path: str = "", source: str = "") -> Generator[None]:
        """Emit under a longer block path, or from another source line."""
        outer = self.emit
        joined = ".".join(filter(None, (outer.location.path, path)))
        self.emit = Emitter(self.builder, Location(joined, source or outer.location.source))
        try:
            yield
        finally:
            self.emit = outer

    def run(self, stage: BlockStage, input: FlowValue) -> FlowValue:
        """Let a stage emit at its own location; gives what flows on.

        Raises:
            FlowError: the stage is none, or gives something that is not a `FlowValue`.
        """
        if not hasattr(stage, "emit"):
            raise self.error(
                "a stage needs a method emit(ctx, input)",
                found=repr(stage),
                fix="wrap a plain function with custom(...)",
            )
        with self.at(path_of(stage), source_of(stage)):
            result = stage.emit(self, input)
            if not isinstance(result, FlowValue | None):  # pyright: ignore[reportUnnecessaryIsInstance]  # foreign code
                raise self.error(
                    "a stage gives a FlowValue or None", found=type(result).__name__, fix="use ctx.wrap(value)"
                )
        return input if result is None else result

    def wrap(self, value: Value) -> FlowValue:
        """A graph value as blocks see it."""
        return FlowValue(value)

    def op(self, name: str, *inputs: FlowValue, **attrs: AttrValue) -> FlowValue:
        """Add an op with one output."""
        return FlowValue(self.emit(name, *(item.value for item in inputs), **attrs))

    def constant(self, array: NDArray[Any]) -> FlowValue:
        """A small array written into the program: int32 if it holds integers, else float32."""
        dtype = i32 if array.dtype.kind in "iu" else f32
        values = tuple(np.asarray(array, dtype.numpy).reshape(-1).tolist())
        return FlowValue(self.emit("constant", dtype=dtype, shape=array.shape, values=values))

    def error(self, what: str, **facts: Any) -> FlowError:
        """A FlowError at the current location."""
        return FlowError(what, where=str(self.location), **facts)

    # ---- weights ----

    def load_param(self, key: str, transpose: bool = False, shape: tuple[int, ...] | None = None) -> Operand:
        """A weight as an operand; loading a key again, either way, gives the same node.

        Args:
            key: its name in the weight source.
            transpose: read a stored `[out, in]` as `[in, out]`; no copy is made.
            shape: the stored shape that is needed, if the caller knows it.

        Raises:
            MissingTensorError: there is no such weight.
            TensorShapeError: it has another shape.
            UnsupportedModelError: it has a type RLX cannot compute with.
        """
        value = self._parameters.get(key)
        if value is None:
            value = self._parameters[key] = self._new_parameter(key)
        if shape is not None and value.type.shape != shape:
            raise TensorShapeError(
                f"the weight {key} has another shape than the block needs",
                where=str(self.location),
                found=list(value.type.shape),
                expected=list(shape),
                fix="check the configuration against the checkpoint",
            )
        if transpose and value.type.rank != 2:
            raise TensorShapeError(
                f"only a matrix can be read transposed, and {key} is none",
                where=str(self.location),
                found=str(value.type),
            )
        return Operand(key, value, transpose)

    def _new_parameter(self, key: str) -> Value:
        if key not in self.weights:
            raise MissingTensorError(
                f"the weight {key} is missing",
                where=str(self.location),
                found=f"no {self.weights.describe(key)}",
                fix="check that the checkpoint is complete and that its configuration is the one of these weights",
            )
        type_ = self.weights.type_of(key)
        if type_.dtype.name not in WEIGHT_DTYPES:
            raise UnsupportedModelError(
                f"the weight {key} has a type RLX cannot compute with",
                where=str(self.location),
                found=type_.dtype,
                expected=", ".join(WEIGHT_DTYPES),
            )
        return self.emit("parameter", key=key, dtype=type_.dtype, shape=type_.shape)

    def load_plain(self, key: str, shape: tuple[int, ...] | None = None) -> FlowValue:
        """A weight as a float32 value, dequantised if it is stored otherwise: norm weights, biases, tables."""
        return FlowValue(self._as_plain(self.load_param(key, shape=shape).value))

    def _as_plain(self, value: Value) -> Value:
        if value.type.dtype == f32:
            return value
        if value not in self._plain:
            self._plain[value] = self.emit("dequantize", value)
        return self._plain[value]

    def matmul(self, x: FlowValue, weight: Operand, bias: FlowValue | None = None) -> FlowValue:
        """`x @ weight (+ bias)`: `[..., in]` times an operand of shape `[in, out]`.

        A transposed operand becomes the op `linear`, which reads the stored `[out, in]`, packed or not; one that is not
        transposed is dequantised if need be and becomes `matmul`.

        Raises:
            TensorShapeError: the weight's in size is not the width of x.
        """
        if len(weight.shape) != 2 or weight.shape[0] != x.width:
            raise TensorShapeError(
                f"the weight {weight.key} does not fit the value it multiplies",
                where=str(self.location),
                found=f"an operand {list(weight.shape)}",
                expected=f"[{x.width}, out] for {x.type}",
                fix="check the configuration against the checkpoint, and whether the weight has to be transposed",
            )
        if weight.transposed:
            operands = (x.value, weight.value) if bias is None else (x.value, weight.value, bias.value)
            return FlowValue(self.emit("linear", *operands))
        product = self.emit("matmul", x.value, self._as_plain(weight.value))
        return FlowValue(product if bias is None else self.emit("add", product, bias.value))

    # ---- side state ----

    def positions(self, size: Size) -> FlowValue:
        """`i32[size]`, the position of each token; made once and shared."""
        if size not in self._positions:
            tokens = next(
                (v for _, v in self.builder.inputs if v.type.dtype == i32 and v.type.shape[-1:] == (size,)), None
            )
            value = self.emit("iota", size=size) if tokens is None else self.emit("positions", tokens)
            self._positions[size] = FlowValue(value)
        return self._positions[size]

    def save_residual(self, value: FlowValue) -> None:
        """Push a value on the residual stack."""
        self._residuals.append((value, self.location))

    def take_residual(self) -> FlowValue:
        """Pop the value saved last.

        Raises:
            FlowError: nothing is saved.
        """
        if not self._residuals:
            raise self.error(
                "a residual is added that was not saved",
                expected="a residual save before it",
                fix="add SaveResidualStage()",
            )
        return self._residuals.pop()[0]

    @property
    def residual_depth(self) -> int:
        """How many residuals are saved and not yet added."""
        return len(self._residuals)

    def check_residuals(self, depth: int, what: str) -> None:
        """Refuse residuals that `what` (a layer, the flow) saved and did not add, or added and did not save.

        Raises:
            FlowError: the stack is not as deep as it was.
        """
        if len(self._residuals) == depth:
            return
        saved = f"; the last was saved at {self._residuals[-1][1]}" if len(self._residuals) > depth else ""
        raise self.error(
            f"the residuals of {what} are not balanced",
            found=f"{len(self._residuals)} saved at its end{saved}",
            expected=f"{depth}, as at its start",
            fix="give every SaveResidualStage() its AddResidualStage()",
        )

    def set_stream(self, name: str, value: FlowValue) -> None:
        """Keep a value under a name, for a block further down."""
        self._streams[name] = value

    def stream(self, name: str) -> FlowValue:
        """The value kept under a name.

        Raises:
            FlowError: there is none.
        """
        if name not in self._streams:
            raise self.error(
                f"there is no stream called {name!r}",
                found=", ".join(sorted(self._streams)) or "no streams",
                fix=f"add SaveStreamStage({name!r}) earlier in the flow",
            )
        return self._streams[name]

    def tap(self, name: str, value: FlowValue) -> None:
        """Make a value an extra output of the graph.

        Raises:
            FlowError: the name is taken.
        """
        if name in self.taps:
            raise self.error(f"two taps are called {name!r}", fix="give each its own name")
        self.taps[name] = value
