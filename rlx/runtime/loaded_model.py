"""What `rlx.load` gives: a `Model` that writes text, or an `Encoder` that makes vectors.

A caller need not ask which it is: what a kind of model cannot do is one clear error. Next: `model.py`, `encoder.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rlx.errors import UnsupportedModelError

_ABILITIES = {
    "generate": "write text",
    "generate_batch": "write text",
    "stream": "write text",
    "chat": "answer in a chat",
    "stream_chat": "answer in a chat",
    "logits": "give logits of the next token",
    "embed": "make vectors of texts",
    "scores": "score pairs of texts",
    "rerank": "score pairs of texts",
}


class _WrongKindError(UnsupportedModelError, AttributeError):
    """Also an AttributeError, so that `hasattr` says whether a model has an ability."""


class LoadedModel:
    """A model ready to run. Use it as a context manager, or call `close`.

    Attributes:
        name: what the model is called.
        info: facts to show (architecture, parameters, precision, ...).
    """

    kind = "model"
    name: str
    info: dict[str, object]
    generate: Callable[..., Any]
    generate_batch: Callable[..., Any]
    stream: Callable[..., Any]
    chat: Callable[..., Any]
    stream_chat: Callable[..., Any]
    logits: Callable[..., Any]
    embed: Callable[..., Any]
    scores: Callable[..., Any]
    rerank: Callable[..., Any]

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
