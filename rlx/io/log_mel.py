"""Log-mel frames of audio, as speech models take them.

In: float32 samples at 16 kHz. Out: `[frames, mel_bins]`, one frame for each 10 ms, over the whole recording. A frame is
the power spectrum under a Hann window of 25 ms, through triangular filters on Slaney's mel scale, each of the same
area, as a logarithm of base 10 that reaches 8 below the largest. Source: Radford et al. 2022, section 2.2; the scale
and filters as in Slaney's Auditory Toolbox, technical report 1998-010. Next: `rlx/runtime/speech.py`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE, WINDOW, HOP = 16_000, 400, 160
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
SILENCE, RANGE = -10.0, 8.0
"""The least power that is told apart from silence, and how far below the loudest a value may be, in powers of ten."""
CHUNK = 4096


def log_mel(samples: NDArray[np.float32], mel_bins: int, frames: int | None = None) -> NDArray[np.float32]:
    """Log-mel frames, float32 `[frames, mel_bins]`, scaled to about -1 to 1.

    Args:
        samples: at 16 kHz; they are mirrored at their start, and followed by silence.
        mel_bins: filters.
        frames: how many frames; by default one for each 160 samples. Those behind the samples are of silence.
    """
    count = len(samples) // HOP if frames is None else frames
    result = np.full((count, mel_bins), SILENCE, np.float32)
    half = WINDOW // 2
    # the last frame that a sample lies in, and what it reaches to
    heard = min(count, (len(samples) + half) // HOP + 1)
    padded = np.zeros(half + max(len(samples), heard * HOP) + WINDOW, np.float32)
    padded[half : half + len(samples)] = samples
    mirrored = samples[1 : half + 1][::-1]
    padded[half - len(mirrored) : half] = mirrored
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann, filters = _hann(), mel_filters(mel_bins).T.astype(np.float32)
    for start in range(0, heard, CHUNK):
        stop = min(start + CHUNK, heard)
        spectrum = np.fft.rfft(windows[start:stop] * hann, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        result[start:stop] = np.log10(np.maximum(power @ filters, np.float32(10**SILENCE)))
    loudest = result.max(initial=np.float32(SILENCE))
    np.maximum(result, max(loudest - np.float32(RANGE), np.float32(SILENCE)), out=result)
    return (result + np.float32(4.0)) / np.float32(4.0)


@lru_cache(maxsize=1)
def _hann() -> NDArray[np.float32]:
    """Periodic."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


@lru_cache(maxsize=4)
def mel_filters(mel_bins: int) -> NDArray[np.float64]:
    """Triangular filters `[mel_bins, 201]` over the bins of the spectrum, from 0 to 8 kHz."""
    frequencies = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    corners = _hertz(np.linspace(0, _mel(SAMPLE_RATE / 2), mel_bins + 2))
    widths = np.diff(corners)
    slopes = corners[:, None] - frequencies[None, :]
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    area = 2.0 / (corners[2:] - corners[:-2])
    return np.maximum(0, np.minimum(rising, falling)) * area[:, None]


# Slaney's scale: linear up to 1 kHz, 15 mels there, then logarithmic.
_LINEAR, _BREAK, _STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27.0


def _mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < _BREAK else float(_BREAK / _LINEAR + np.log(hertz / _BREAK) / _STEP)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    start = _BREAK / _LINEAR
    return np.where(mels < start, mels * _LINEAR, _BREAK * np.exp(_STEP * (np.maximum(mels, start) - start)))
