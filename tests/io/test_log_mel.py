"""The audio front end: frames against transformers, filters against their formula's properties, resampled tones."""

from __future__ import annotations

import numpy as np
import pytest

from rlx.errors import InputError
from rlx.io.audio_rate import resample
from rlx.io.log_mel import log_mel, mel_filters
from tests.references.load_speech import feature_cases


@pytest.mark.parametrize("case", feature_cases(), ids=lambda case: str(case[0]))
def test_frames_are_those_of_transformers(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    bins, samples, expected = case
    found = log_mel(samples, bins, 3000)
    # a spectrum in float32 is off by some 1e-7 of its loudest bin, which the logarithm makes more of where it is quiet
    assert np.abs(found[: len(expected)] - expected).max() <= 5e-5
    assert np.median(np.abs(found[: len(expected)] - expected)) <= 1e-6
    assert len(found) == 3000
    assert (found[260:] == found[260]).all(), "behind the sound is silence"


def test_frames_do_not_depend_on_what_follows() -> None:
    samples = feature_cases()[0][1]
    whole, part = log_mel(samples, 80), log_mel(samples[: 160 * 100], 80, 98)
    loudest = max(whole.max(), part.max())
    assert np.array_equal(np.maximum(whole[:98], loudest - 2), np.maximum(part, loudest - 2))


def test_short_and_silent_sounds() -> None:
    assert log_mel(np.zeros(1, np.float32), 80, 5).tolist() == np.full((5, 80), -1.5).tolist()
    assert log_mel(np.ones(90, np.float32), 80, 3).shape == (3, 80)
    assert log_mel(np.zeros(0, np.float32), 80).shape == (0, 80)


@pytest.mark.parametrize("bins", [80, 128])
def test_filters_have_the_area_that_the_scale_asks_for(bins: int) -> None:
    filters = mel_filters(bins)
    assert filters.shape == (bins, 201)
    assert (filters >= 0).all()
    # a triangle of the area 1, sampled every 40 Hz; the narrow ones at the bottom are sampled too coarsely to tell
    wide = (filters > 0).sum(axis=1) >= 4
    assert wide.sum() > bins // 4
    assert np.abs(filters[wide].sum(axis=1) * 40 - 1).max() < 0.1
    assert (np.diff(filters.argmax(axis=1)) >= 0).all()


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_a_tone_keeps_its_shape_or_is_filtered_out(rate: int) -> None:
    time, target = np.arange(rate) / rate, np.arange(16_000) / 16_000
    inside = slice(400, -400)  # away from both ends, where the tone begins and stops
    limit = min(rate, 16_000) / 2
    for hertz in (100.0, 0.5 * limit, 0.89 * limit):
        found = resample(np.sin(2 * np.pi * hertz * time).astype(np.float32), rate, 16_000)
        assert found.shape == (16_000,)
        # 100 dB is 1e-5; float32 adds a few 1e-7
        assert np.abs(found - np.sin(2 * np.pi * hertz * target))[inside].max() < 2e-5
    if rate > 16_000:
        high = resample(np.sin(2 * np.pi * 1.02 * limit * time).astype(np.float32), rate, 16_000)
        assert np.abs(high)[inside].max() < 2e-5


def test_the_same_rate_and_one_that_has_no_ratio() -> None:
    samples = np.arange(5, dtype=np.float32)
    assert resample(samples, 16_000, 16_000) is samples
    assert len(resample(samples, 48_000, 16_000)) == 2
    with pytest.raises(InputError, match="rate"):
        resample(samples, 96_001, 16_000)
