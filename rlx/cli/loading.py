"""From a model reference on the command line to a model, with a progress bar while it is fetched.

In: the shared flags. Out: what `rlx.load` returns. Next: `rlx/io/reference.py` for what a reference may be.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import rlx
from rlx.cli.progress import FetchProgress
from rlx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from rlx.runtime.encoder import Encoder
    from rlx.runtime.loaded_model import LoadedModel
    from rlx.runtime.model import Model
    from rlx.runtime.speech import SpeechModel


def default_model() -> str:
    """The reference that stands for no reference."""
    from rlx.io.reference import DEFAULT_MODEL

    return DEFAULT_MODEL


def fetch(reference: str) -> Path:
    """The path of a model's file or folder, fetched if it is not there yet.

    Raises:
        RlxError: see `rlx.io.reference.resolve`.
    """
    from rlx.io.reference import resolve

    with FetchProgress() as progress:
        return resolve(reference, progress)


@dataclass(frozen=True, slots=True)
class LoadFlags:
    """What the command line says about loading; None leaves it to the environment and the defaults."""

    reference: str | None = None
    precision: str | None = None
    threads: int | None = None
    target: str | None = None
    context: int | None = None
    kv_cache: str | None = None
    profile: str | None = None


@contextmanager
def loaded_model(flags: LoadFlags) -> Generator[Model, None, None]:
    """The language model, closed at the end of the `with` block.

    Raises:
        RlxError: whatever `rlx.load` finds wrong, or the model writes no text.
    """
    with loaded(flags) as model:
        if not hasattr(model, "generate"):
            commands = "rlx transcribe" if hasattr(model, "transcribe") else "rlx embed or rlx classify"
            raise UnsupportedModelError(
                "this model makes no text", where=model.name, found=model.kind, fix=f"use {commands}"
            )
        yield cast("Model", model)


@contextmanager
def loaded_encoder(flags: LoadFlags) -> Generator[Encoder, None, None]:
    """The encoder, closed at the end of the `with` block.

    Raises:
        RlxError: whatever `rlx.load` finds wrong, or the model makes no vectors of texts.
    """
    with loaded(flags) as model:
        if not hasattr(model, "embed"):
            commands = {"features": "rlx embed --image or rlx classify", "transcribe": "rlx transcribe"}
            command = next(
                (command for ability, command in commands.items() if hasattr(model, ability)), "rlx generate"
            )
            raise UnsupportedModelError(
                "this model makes no vectors of texts", where=model.name, found=model.kind, fix=f"use {command}"
            )
        yield cast("Encoder", model)


@contextmanager
def loaded_speech_model(flags: LoadFlags) -> Generator[SpeechModel, None, None]:
    """The speech model, closed at the end of the `with` block.

    Raises:
        RlxError: whatever `rlx.load` finds wrong, or the model is of another kind.
    """
    with loaded(flags) as model:
        if not hasattr(model, "transcribe"):
            raise UnsupportedModelError(
                "this model writes down nothing that is said",
                where=model.name,
                found=model.kind,
                expected="a speech model",
                fix="leave --model out for one that is fetched",
            )
        yield cast("SpeechModel", model)


@contextmanager
def loaded(flags: LoadFlags) -> Generator[LoadedModel, None, None]:
    """The model, of any kind, closed at the end of the `with` block.

    Raises:
        RlxError: whatever `rlx.load` finds wrong.
    """
    with FetchProgress() as progress, _without_garbage_collection():
        model = rlx.load(
            default_model() if flags.reference is None else flags.reference,
            precision=flags.precision,
            threads=flags.threads,
            target=flags.target,
            context=flags.context,
            kv_cache=flags.kv_cache,
            profile=flags.profile,
            progress=progress,
        )
    try:
        yield model
    finally:
        model.close()


@contextmanager
def _without_garbage_collection() -> Generator[None, None, None]:
    """A vocabulary is a hundred thousand objects that all stay: no use in looking for garbage among them, ever."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
