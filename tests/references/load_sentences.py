"""Reading the recorded answers of sentence-transformers, with NumPy alone.

In: answers/sentences. Out: typed cases, each of which writes its folder anew. Next: `sentences.py`, which made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tests.references.load import Float32Array
from tests.references.load_models import arrays_of, documents
from tests.references.seeded import seeded_weight


@dataclass(frozen=True, slots=True)
class SentenceCase:
    """A folder of sentence-transformers with a tiny random model and a small tokenizer.

    Attributes:
        files: the text of every JSON file by its place in the folder.
        shapes: of the tensors in each safetensors file, by its place and by their names.
        texts: what was embedded, or ranked for `query`.
        vectors: float32 [texts, width] by the name of the prompt; "" for the default one.
        order, scores: the ranking of all texts but the last one, which is empty; None for a model that embeds.
    """

    name: str
    seed: int
    files: dict[str, str]
    shapes: dict[str, dict[str, list[int]]]
    texts: list[str]
    query: str
    vectors: dict[str, Float32Array]
    order: NDArray[Any] | None
    scores: Float32Array | None

    def weights(self, place: str) -> dict[str, Float32Array]:
        """The tensors of one safetensors file."""
        before = "" if "/" not in place else f"{place.rpartition('/')[0]}."
        return {key: seeded_weight(before + key, tuple(shape), self.seed) for key, shape in self.shapes[place].items()}

    def write(self, folder: Path) -> Path:
        """Write the folder; gives it back."""
        from safetensors.numpy import save_file

        for place, text in self.files.items():
            (folder / place).parent.mkdir(exist_ok=True)
            (folder / place).write_text(text, encoding="utf-8")
        for place in self.shapes:
            save_file(self.weights(place), folder / place)
        return folder


def sentence_cases() -> list[SentenceCase]:
    """Models that embed, and cross-encoders."""
    cases: list[SentenceCase] = []
    for case in documents("sentences"):
        arrays = arrays_of("sentences", case["name"])
        vectors = {key.removeprefix("vectors_"): value for key, value in arrays.items() if key.startswith("vectors_")}
        given = {key: value for key, value in case.items() if key != "versions"}
        cases.append(SentenceCase(**given, vectors=vectors, order=arrays.get("order"), scores=arrays.get("scores")))
    return cases
