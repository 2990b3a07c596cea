"""Reading the recorded answers of tiny models of many families, with NumPy alone.

In: a JSON file, and an npz file with arrays, for each case, under answers/. Out: typed cases for the tests to iterate
over. A case has files of its own, so that recording one leaves the others alone. Next: README.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.load import Float32Array, Int32Array
from tests.references.recording import ANSWERS
from tests.references.seeded import seeded_weight


@cache
def documents(kind: str) -> list[dict[str, Any]]:
    """The descriptions of a kind of case, by the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ANSWERS / kind).glob("*.json"))]


def arrays_of(kind: str, name: str) -> dict[str, NDArray[Any]]:
    """The arrays of one case."""
    with np.load(ANSWERS / kind / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def shapes_of(case: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weight shapes of a description, by name."""
    return {key: tuple(shape) for key, shape in case["shapes"].items()}


@dataclass(frozen=True, slots=True)
class FamilyCase:
    """A tiny random model of some family of transformers.

    Attributes:
        config: its config.json, as `save_pretrained` writes it.
        shapes: of the tensors in its safetensors file, by name.
        ids: int32 [24], the prompt. logits: float32 [24, vocab]. greedy: int32 [32], the most likely continuation.
    """

    name: str
    seed: int
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    ids: Int32Array
    logits: Float32Array
    greedy: Int32Array

    def weights(self) -> dict[str, Float32Array]:
        """Every tensor of the safetensors file."""
        return {key: seeded_weight(key, shape, self.seed) for key, shape in self.shapes.items()}


def family_cases(kind: str = "families") -> list[FamilyCase]:
    """Several models of each family; of the kind "multimodal", models of images that are asked about text."""
    return [
        FamilyCase(case["name"], case["seed"], case["config"], shapes_of(case), **arrays_of(kind, case["name"]))
        for case in documents(kind)
    ]


@dataclass(frozen=True, slots=True)
class EncoderCase:
    """One tiny random encoder.

    Attributes:
        config: config.json as transformers 5 writes it.
        shapes: weight shapes by the name in model.safetensors.
        ids, types: int32 [tokens], the tokens and their types.
        hidden: float32 [tokens, hidden], the last hidden state.
        logits: float32 [labels] of a classifier; None for a model without one.
    """

    name: str
    seed: int
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    ids: Int32Array
    types: Int32Array
    hidden: Float32Array
    logits: Float32Array | None

    def weights(self) -> dict[str, Float32Array]:
        """The float32 weights to put into model.safetensors."""
        return {name: seeded_weight(name, shape, self.seed) for name, shape in self.shapes.items()}


def encoder_cases() -> list[EncoderCase]:
    """Tiny encoders of every family, with and without a classifier."""
    return [
        EncoderCase(
            name=case["name"],
            seed=case["seed"],
            config=case["config"],
            shapes=shapes_of(case),
            **{"logits": None, **arrays_of("encoders", case["name"])},
        )
        for case in documents("encoders")
    ]


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """What llama.cpp's converter makes of a family case.

    Attributes:
        metadata: the keys of the architecture, and `general.architecture`.
        shapes, hashes: shape in NumPy order and SHA-256 of the bytes of each tensor.
    """

    name: str
    metadata: dict[str, object]
    shapes: dict[str, tuple[int, ...]]
    hashes: dict[str, str]


def gguf_layouts(kind: str = "family_gguf") -> dict[str, GgufLayout]:
    """The layouts by the name of the case; `kind` is "family_gguf" or "encoder_gguf"."""
    return {
        case["name"]: GgufLayout(
            case["name"],
            case["metadata"],
            {name: tuple(tensor["shape"]) for name, tensor in case["tensors"].items()},
            {name: tensor["sha256"] for name, tensor in case["tensors"].items()},
        )
        for case in documents(kind)
    }
