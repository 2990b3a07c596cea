"""What `rlx.load` gives: a `Model` that writes text, an `Encoder` of texts, an `ImageModel`, or a `SpeechModel`.

A caller need not ask which it is: what a kind of model cannot do is one clear error. Next: `model.py`, `encoder.py`,
`image_model.py`, `speech.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rlx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from rlx.inspect.profile_report import ProfileReport
    from rlx.runtime.recompile import Origin

_ABILITIES = {
    "generate": "write text",
    "generate_batch": "write text",
    "stream": "write text",
    "chat": "answer in a chat",
    "stream_chat": "answer in a chat",
    "logits": "give logits of the next token",
    "perplexity": "predict text",
    "embed": "make vectors of texts",
    "scores": "score pairs of texts",
    "rerank": "score pairs of texts",
    "embed_images": "make vectors of images",
    "features": "give features of images",
    "classify": "classify images",
    "similarity": "compare images with texts",
    "transcribe": "write down what is said",
}


class _WrongKindError(UnsupportedModelError, AttributeError):
    """Also an AttributeError, so that `hasattr` says whether a model has an ability."""


class LoadedModel:
    """A model ready to run. Use it as a context manager, or call `close`.

    Attributes:
        name: what the model is called.
        info: facts to show (architecture, parameters, precision, ...).
        origin: where it came from, for what is compiled again to be looked at.
    """

    kind = "model"
    name: str
    info: dict[str, object]
    origin: Origin | None = None
    generate: Callable[..., Any]
    generate_batch: Callable[..., Any]
    stream: Callable[..., Any]
    chat: Callable[..., Any]
    stream_chat: Callable[..., Any]
    logits: Callable[..., Any]
    perplexity: Callable[..., Any]
    embed: Callable[..., Any]
    scores: Callable[..., Any]
    rerank: Callable[..., Any]
    embed_images: Callable[..., Any]
    features: Callable[..., Any]
    classify: Callable[..., Any]
    similarity: Callable[..., Any]
    transcribe: Callable[..., Any]

    def profile(self, **work: int) -> ProfileReport:
        """Run the model and say where the time goes, by kernel and by block; see `rlx.runtime.profiler.Work`.

            model.profile(prompt_tokens=64).phases[0].kernels[0].of_roofline

        Args:
            work: `prompt_tokens`, `new_tokens`, `depth`, `texts`, `text_tokens`, `repetitions`.

        Raises:
            OptionError: a size is unknown or not allowed.
            ContextLengthError: the lengths do not fit into the context.
        """
        from rlx.runtime.profiler import Work, profile_model

        return profile_model(self, Work.of(work))

    def explain(self, path: str | Path, **work: int) -> None:
        """Write a page that shows the model on every level, from its blocks to the instructions, with times.

        One self-contained HTML file, to be opened in a browser; docs/explain.md shows one.

        Args:
            path: where to write.
            work: what is run for the times, as for `profile`.

        Raises:
            StorageError: the file cannot be written. Others as for `profile`.
        """
        from rlx.runtime.explainer import explain_model
        from rlx.runtime.profiler import Work

        explain_model(self, Path(path), Work.of(work))

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""

    def __getattr__(self, name: str) -> Any:
        """What this kind of model lacks.

        Raises:
            UnsupportedModelError: another kind of model can do it.
        """
        if name not in _ABILITIES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise _WrongKindError(
            f"this model cannot {_ABILITIES[name]}",
            where=self.name,
            found=self.kind,
            fix="load a model that is made for it",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
