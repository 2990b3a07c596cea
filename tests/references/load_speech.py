"""Reading the recorded answers about speech models, with NumPy alone.

In: the files under answers/speech. Out: typed cases for the tests to iterate over. Next: README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.load import Float32Array, Int32Array
from tests.references.load_models import arrays_of, documents, shapes_of
from tests.references.seeded import seeded_tensor, seeded_weight

KIND = "speech"


@dataclass(frozen=True, slots=True)
class SpeechCase:
    """A tiny random Whisper.

    Attributes:
        config: its config.json. shapes: of the tensors in its safetensors file, by name.
        mel: float32 [frames, bins]. states: float32 [frames / 2, hidden], what the encoder makes of it.
        ids: int32 [9], a beginning. logits: float32 [9, vocab]. greedy: int32 [16], its most likely continuation.
    """

    name: str
    seed: int
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    mel: Float32Array
    states: Float32Array
    ids: Int32Array
    logits: Float32Array
    greedy: Int32Array

    def weights(self) -> dict[str, Float32Array]:
        """Every tensor of the safetensors file."""
        return {key: seeded_weight(key, shape, self.seed) for key, shape in self.shapes.items()}


def speech_cases() -> list[SpeechCase]:
    """Several models."""
    return [
        SpeechCase(case["name"], case["seed"], case["config"], shapes_of(case), **arrays_of(KIND, case["name"]))
        for case in documents(KIND)
        if "config" in case
    ]


def feature_cases() -> list[tuple[int, Float32Array, Float32Array]]:
    """(mel bins, samples, the first frames that transformers makes of them)."""
    return [
        (case["bins"], sound("sound", case["seconds"]), arrays_of(KIND, case["name"])["frames"])
        for case in documents(KIND)
        if "bins" in case
    ]


def rule_cases() -> tuple[int, int, list[list[int]], NDArray[np.bool_], Float32Array]:
    """(end, no_timestamps, beginnings, which tokens may follow each [cases, vocab], the logits that were given)."""
    (case,) = (case for case in documents(KIND) if "written" in case)
    allowed = arrays_of(KIND, case["name"])["allowed"]
    logits = [seeded_tensor(f"logits {i}", allowed.shape[1:], 306) * 3 for i in range(len(allowed))]
    return case["end"], case["no_timestamps"], case["written"], allowed, np.stack(logits).astype(np.float32)


def sound(name: str, seconds: float) -> NDArray[np.float32]:
    """A chord that swells, and noise: float32 samples at 16 kHz."""
    count = int(16_000 * seconds)
    time = np.arange(count) / 16_000
    chord = sum(np.sin(2 * np.pi * hertz * time) / 4 for hertz in (220.0, 1318.5, 5274.0))
    noise = seeded_tensor(name, (count,), 305) / np.sqrt(3.0)
    return (0.5 * chord * np.sin(np.pi * time / seconds) + 0.05 * noise).astype(np.float32)
