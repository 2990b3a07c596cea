"""conv1d: a convolution over the rows of a sequence. unfold: the rows under each place of its window, side by side.

A row holds all channels of one step (`[..., frames, channels]`), as everything here does. The weight of a convolution
is `[out, channels * kernel]`, taps innermost: torch's `[out, channels, kernel]` with its last two axes as one. So a
convolution is `unfold` and `linear`, and its weight may have any type that a linear layer's may. Source: the
documentation of torch.nn.Conv1d. Next: `rlx/flow/blocks/convolution.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlx.core.dim import Dim, Size, product
from rlx.core.dtype import f32
from rlx.core.graph import Attrs, Value
from rlx.core.type import TensorType
from rlx.errors import ShapeError
from rlx.ops.op import (
    Array,
    Attribute,
    Cost,
    Emitter,
    Missing,
    OpDef,
    Sample,
    Types,
    check_arity,
    int_attr,
    lookup,
    register,
    static_axis,
)

ATTRIBUTES = (
    Attribute("kernel", "rows under the window"),
    Attribute("stride", "rows between neighbouring places of the window", 1),
    Attribute("padding", "rows of zeros before the first row and behind the last", 0),
)


def frames_out(frames: Size, attrs: Attrs) -> Size:
    """Places of the window over `frames` rows.

    Raises:
        ShapeError: the window does not fit, or a symbolic number of rows meets a stride.
    """
    kernel, stride, padding = (int_attr(attrs, name) for name in ("kernel", "stride", "padding"))
    if kernel < 1 or stride < 1 or padding < 0:
        raise ShapeError("a window has rows, moves, and is padded by no less than nothing", found=repr(dict(attrs)))
    if isinstance(frames, Dim):
        if stride != 1:
            raise ShapeError("a stride needs a static number of rows", found=f"{frames} rows, stride {stride}")
        return frames + (2 * padding - kernel + 1)
    if frames + 2 * padding < kernel:
        raise ShapeError("the window is wider than the rows", found=f"{frames} rows, {padding} of padding, {kernel}")
    return (frames + 2 * padding - kernel) // stride + 1


def _infer_unfold(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 1)
    x = types[0]
    channels = static_axis(x, -1, "the channels")
    if x.dtype != f32 or x.rank < 2:
        raise ShapeError("windows go over float32 rows [..., frames, channels]", found=str(x))
    width = channels * int_attr(attrs, "kernel")
    return (x.with_shape((*x.shape[:-2], frames_out(x.shape[-2], attrs), width)),)


def _windows(x: Array, attrs: Mapping[str, Any]) -> Array:
    """[..., places, channels, kernel]."""
    padding = attrs["padding"]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(padding, padding), (0, 0)])
    return np.lib.stride_tricks.sliding_window_view(padded, attrs["kernel"], axis=-2)[..., :: attrs["stride"], :, :]


def _reference_unfold(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    windows = _windows(inputs[0], attrs)
    return (np.ascontiguousarray(windows).reshape(*windows.shape[:-2], -1),)


def _infer_conv1d(types: Types, attrs: Attrs) -> Types:
    check_arity(types, 2, 3)
    (windows,) = _infer_unfold(types[:1], attrs)
    weight = types[1]
    if weight.rank != 2 or weight.shape[1] != windows.shape[-1]:
        raise ShapeError(
            "the weight of a convolution is [out, channels * kernel]",
            found=str(weight),
            expected=f"[out, {windows.shape[-1]}]",
        )
    return lookup("linear").infer((windows, *types[1:]), {})


def _reference_conv1d(inputs: tuple[Array, ...], attrs: Mapping[str, Any]) -> tuple[Array, ...]:
    """A sum over taps of products of shifted rows, without the windows in memory."""
    x, weight = inputs[:2]
    kernel, stride, padding = (attrs[name] for name in ("kernel", "stride", "padding"))
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(padding, padding), (0, 0)])
    places = (padded.shape[-2] - kernel) // stride + 1
    taps = weight.reshape(len(weight), x.shape[-1], kernel)
    result: Array = np.zeros((*x.shape[:-2], places, len(weight)), np.result_type(x, weight))
    for tap in range(kernel):
        rows = padded[..., tap : tap + (places - 1) * stride + 1 : stride, :]
        result = result + rows @ taps[:, :, tap].T
    return (result + inputs[2] if len(inputs) == 3 else result,)


def _decompose_conv1d(emit: Emitter, inputs: tuple[Value, ...], attrs: Attrs) -> Sequence[Value]:
    return (emit("linear", emit("unfold", inputs[0], **attrs), *inputs[1:]),)


def _conv1d_cost(inputs: Types, outputs: Types, attrs: Attrs) -> Cost:
    moved = inputs[0].nbytes + inputs[1].nbytes + outputs[0].nbytes
    return Cost(2 * product((*outputs[0].shape, inputs[1].shape[1])), moved)


def _cases() -> Sequence[tuple[str, TensorType, dict[str, Any], dict[str, int]]]:
    seq = Dim("seq", min=3, max=64)
    return (
        ("same", TensorType(f32, (2, seq, 20)), {"kernel": 3, "padding": 1}, {"seq": 9}),
        ("halved", TensorType(f32, (2, 12, 33)), {"kernel": 3, "stride": 2, "padding": 1}, {}),
        ("odd", TensorType(f32, (11, 7)), {"kernel": 4, "stride": 3, "padding": 2}, {}),
        ("patches", TensorType(f32, (12, 5)), {"kernel": 4, "stride": 4}, {}),
    )


def _conv1d_samples() -> Sequence[Sample]:
    cases: list[Sample] = []
    for name, x, attrs, dims in _cases():
        width = static_axis(x, -1, "the channels") * attrs["kernel"]
        bias = (TensorType(f32, (24,)),) if name != "patches" else ()
        cases.append(Sample(name, (x, TensorType(f32, (24, width)), *bias), attrs, dims, tolerance=4e-6))
    return cases


unfold = register(
    OpDef(
        "unfold",
        "The rows under each place of a window as one row, channel by channel; rows beyond the ends are zeros.",
        _infer_unfold,
        _reference_unfold,
        Missing("primitive"),
        lambda: [Sample(name, (x,), attrs, dims) for name, x, attrs, dims in _cases()],
        ATTRIBUTES,
    )
)
conv1d = register(
    OpDef(
        "conv1d",
        "A convolution over rows [..., frames, channels] with a weight [out, channels * kernel] (+ bias).",
        _infer_conv1d,
        _reference_conv1d,
        _decompose_conv1d,
        _conv1d_samples,
        ATTRIBUTES,
        cost=_conv1d_cost,
    )
)
