"""Resampling: pictures as Pillow resizes them, and tables of positions for a grid of another size.

In: arrays. Out: arrays, separably resampled: one axis after the other. A sample of the result is a weighted sum of
those of the source around its centre; the weights are a filter, stretched over all that the sample stands for where it
averages (`antialias`). Sources: Pillow for pictures, whose 8-bit arithmetic (`Resample.c`) is followed to the bit;
torch's `interpolate(mode="bicubic", align_corners=False)` for tables; Keys 1981 for the cubic. Next: `images.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PRECISION_BITS = 22
"""Fraction bits of Pillow's weights: 32 without 8 for the value and 2 for sums over its range."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A function around 0 and how far it reaches."""

    function: Callable[[Floats], Floats]
    support: float


def cubic(a: float) -> Callable[[Floats], Floats]:
    """The cubic convolution with the slope `a` at 1."""

    def function(x: Floats) -> Floats:
        x = np.abs(x)
        near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
        far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
        return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))

    return function


BILINEAR = Filter(lambda x: np.maximum(1.0 - np.abs(x), 0.0), 1.0)
BICUBIC = Filter(cubic(-0.5), 2.0)
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}
TABLE_CUBIC = cubic(-0.75)
"""What torch interpolates with where it does not average."""


def averaging_weights(old: int, new: int, kernel: Filter) -> tuple[NDArray[np.int64], Floats]:
    """First source sample and weights of each sample of the result, `[new]` and `[new, taps]`; the weights sum to 1."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = kernel.support * stretch
    centre = (np.arange(new) + 0.5) * scale
    # truncation, as the conversions of C do it
    first = np.maximum(np.trunc(centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum(np.trunc(centre + support + 0.5).astype(np.int64), old)
    taps = np.arange(int((stop - first).max()))
    places = first[:, None] + taps
    weights = kernel.function((places - centre[:, None] + 0.5) / stretch)
    weights = np.where(places < stop[:, None], weights, 0.0)
    return first, weights / weights.sum(axis=1, keepdims=True)


def resize_picture(picture: NDArray[np.uint8], size: tuple[int, int], resample: str) -> NDArray[np.uint8]:
    """A picture `uint8[height, width, channels]` of another size, to the bit what `resize` of Pillow 13 makes of it.

    Args:
        picture: any size but an empty one.
        size: height and width of the result.
        resample: a key of `FILTERS`.
    """
    kernel, result = FILTERS[resample], picture
    for axis in (0, 1) if _is_columns_first(picture.shape[0] - size[0], picture.shape[1] - size[1]) else (1, 0):
        if result.shape[axis] != size[axis]:
            result = _resized_axis(result, axis, size[axis], kernel)
    return result


def _is_columns_first(fewer_rows: int, fewer_columns: int) -> bool:
    """Which axis comes first: values are rounded to 8 bits in between, so that the bits depend on it.

    Pillow 13 goes down the columns first where that leaves much less to do. Its rule is not documented: this one was
    found from its results, and met all of 2,500 random sizes. Older ones always go along the rows first.
    """
    return fewer_rows > 0 and fewer_rows > 2 * fewer_columns


def _resized_axis(picture: NDArray[np.uint8], axis: int, new: int, kernel: Filter) -> NDArray[np.uint8]:
    old = picture.shape[axis]
    first, weights = averaging_weights(old, new, kernel)
    scaled = weights * (1 << PRECISION_BITS)
    fixed = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32)
    shape = [1] * picture.ndim
    shape[axis] = new
    total = np.full((*picture.shape[:axis], new, *picture.shape[axis + 1 :]), 1 << (PRECISION_BITS - 1), np.int32)
    for tap in range(fixed.shape[1]):
        source = np.take(picture, np.minimum(first + tap, old - 1), axis=axis)
        total += source.astype(np.int32) * fixed[:, tap].reshape(shape)
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)


def resize_grid(table: NDArray[np.float32], rows: int, columns: int, antialias: bool) -> NDArray[np.float32]:
    """A table of positions `float32[side * side, hidden]` for a grid of `rows` x `columns`, row by row.

    Args:
        table: the learned positions of a square grid.
        rows, columns: of the grid that is wanted.
        antialias: average over what a position stands for where the grid becomes smaller.

    Returns:
        `float32[rows * columns, hidden]`; the table itself where the grid is the learned one.
    """
    side = math.isqrt(len(table))
    if (rows, columns) == (side, side):
        return table
    grid: NDArray[Any] = table.reshape(side, side, -1).astype(np.float64)
    down, across = (_grid_matrix(side, new, antialias) for new in (rows, columns))
    resized = np.einsum("yi,xj,ijc->yxc", down, across, grid, optimize=True)
    return resized.reshape(rows * columns, -1).astype(np.float32)


def _grid_matrix(old: int, new: int, antialias: bool) -> Floats:
    """`[new, old]`, which multiplies the samples along an axis."""
    matrix = np.zeros((new, old))
    if antialias:
        first, weights = averaging_weights(old, new, BICUBIC)
        taps: NDArray[np.int64] = np.arange(int(weights.shape[1]))
        places = first[:, None] + taps
    else:
        centre = (np.arange(new) + 0.5) * (old / new) - 0.5
        around: NDArray[np.int64] = np.arange(-1, 3)
        places = np.floor(centre).astype(np.int64)[:, None] + around
        weights = TABLE_CUBIC(places - centre[:, None])
    # what lies beyond an edge is what lies on it
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(places, 0, old - 1)), weights)
    return matrix
