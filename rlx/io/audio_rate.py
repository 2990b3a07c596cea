"""Audio at another rate: a polyphase filter, its taps a sinc under a Kaiser window.

In: float32 samples and their rate. Out: samples at the wanted rate. Every output sample is a sum over the input samples
around its time, in the ratio of the rates as a fraction of small whole numbers; as many output samples as repeat the
same phases are one product with a banded matrix. Quality: flat to 0.01 dB up to 90% of the lower Nyquist frequency,
100 dB down from that frequency on. Source: Smith, Digital Audio Resampling Home Page (CCRMA); Kaiser's formula for the
window as in Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5. Next: `log_mel.py`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError

STOP_BAND_DB = 100.0
PASS_BAND = 0.9
"""The highest frequency that stays as it is, in units of the lower of both Nyquist frequencies."""
MOST_PHASES = 48_000
BLOCK_OUTPUTS = 64
CHUNK_BLOCKS = 4096


def resample(samples: NDArray[np.float32], rate: int, target: int) -> NDArray[np.float32]:
    """Samples at `target` per second, `ceil(n * target / rate)` of them.

    Raises:
        InputError: the rates have no ratio of small numbers.
    """
    common = math.gcd(rate, target)
    up, down = target // common, rate // common
    if up == down:
        return samples
    if up > MOST_PHASES or down > MOST_PHASES:
        raise InputError("this rate of samples cannot be converted", found=f"{rate} to {target} per second")
    repeats = -(-BLOCK_OUTPUTS // up)
    matrix, before = _banded(up, down, repeats)
    count, step = -(-len(samples) * up // down), down * repeats
    blocks = -(-count // (up * repeats))
    padded = np.zeros(before + max(len(samples), (blocks - 1) * step) + len(matrix), np.float32)
    padded[before : before + len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(matrix))[::step][:blocks]
    out = np.empty((blocks, matrix.shape[1]), np.float32)
    for start in range(0, blocks, CHUNK_BLOCKS):
        out[start : start + CHUNK_BLOCKS] = np.ascontiguousarray(windows[start : start + CHUNK_BLOCKS]) @ matrix
    return out.reshape(-1)[:count]


@lru_cache(maxsize=8)
def _banded(up: int, down: int, repeats: int) -> tuple[NDArray[np.float32], int]:
    """The matrix `[inputs, outputs]` of a block, and how many of its inputs lie before the block's first one."""
    nyquist = 0.5 * min(1.0, up / down)  # in cycles per input sample
    transition = (1 - PASS_BAND) * nyquist
    cutoff = nyquist - transition / 2
    beta = 0.1102 * (STOP_BAND_DB - 8.7)
    half = math.ceil((STOP_BAND_DB - 8) / (2.285 * 2 * math.pi * transition) / 2)
    outputs = up * repeats
    times = np.arange(outputs) * down / up
    last = (outputs - 1) * down // up
    inputs: NDArray[np.int64] = np.arange(-half, last + half + 1)
    distance = inputs[:, None] - times[None, :]
    window = np.i0(beta * np.sqrt(np.clip(1 - (distance / half) ** 2, 0, None))) / np.i0(beta)
    taps = 2 * cutoff * np.sinc(2 * cutoff * distance) * np.where(np.abs(distance) < half, window, 0)
    return np.ascontiguousarray(taps / taps.sum(axis=0), np.float32), half
