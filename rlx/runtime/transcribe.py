"""A recording of any length: a window of 30 s that moves to where the text of the last one ends.

In: log-mel frames of the whole recording, a decoder, options. Out: a `Transcript`. A window that was decoded badly (it
repeats itself, or is unlikely) is decoded again at a higher temperature; one in which nothing is said is passed over.
Source: Radford et al. 2022, section 4.5, and openai-whisper's transcribe.py. Next: `speech.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rlx.errors import OptionError
from rlx.io.log_mel import FRAMES_PER_SECOND
from rlx.runtime.speech_decoder import DecodedWindow, SpeechDecoder
from rlx.runtime.speech_tokens import TASKS
from rlx.runtime.timestamp_rules import SECONDS_PER_TIMESTAMP, TimestampRules
from rlx.runtime.transcript import Segment, Transcript

MOST_SEQUENCES = 8
"""Sequences of one window: the width of a beam, or the texts that are drawn."""
LARGEST_PROMPT_TEMPERATURE = 0.5
"""What was drawn above it is no context for the next window."""

Progress = Callable[[float, float], None]
"""Called with the seconds that are done, and those of the whole recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechOptions:
    """How a recording is transcribed; the defaults are those of the published procedure, with a greedy first attempt.

    Attributes:
        language: a code such as "en"; None finds it out from the first 30 s.
        task: "transcribe", or "translate" into English.
        timestamps: write times; without them a window is one segment, and moves by 30 s.
        temperatures: attempts at a window, in this order, until one is good enough.
        beam_size: sequences of the attempt at temperature 0; 1 is greedy.
        best_of: texts that are drawn at other temperatures.
        compression_ratio_threshold, log_probability_threshold: a text that repeats itself more, or is less likely, is
            not good enough; None accepts any.
        no_speech_threshold: a window that is silent with a higher probability, and not likely to be a text, is passed
            over; None transcribes all.
        condition_on_previous_text: whether the text so far is a prompt of the next window.
        initial_prompt: text that stands before the first window: names, spellings.
        seed: of the draws.
    """

    language: str | None = None
    task: str = "transcribe"
    timestamps: bool = True
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    beam_size: int = 1
    best_of: int = 5
    compression_ratio_threshold: float | None = 2.4
    log_probability_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise OptionError("a speech model has no such task", found=repr(self.task), expected=" or ".join(TASKS))
        for name, count in (("beam_size", self.beam_size), ("best_of", self.best_of)):
            if type(count) is not int or not 1 <= count <= MOST_SEQUENCES:
                raise OptionError(
                    f"{name} is a number of sequences", found=repr(count), expected=f"1 to {MOST_SEQUENCES}"
                )
        if not self.temperatures or any(not 0 <= t <= 2 for t in self.temperatures):
            raise OptionError("a temperature is out of range", found=repr(self.temperatures), expected="0 to 2")

    def is_good(self, window: DecodedWindow) -> bool:
        """Whether the text of a window need not be decoded again; silence need not."""
        repeats, unlikely = self.compression_ratio_threshold, self.log_probability_threshold
        is_unlikely = unlikely is not None and window.average_log_probability < unlikely
        silence = self.no_speech_threshold
        if is_unlikely and silence is not None and window.no_speech_probability > silence:
            return True
        return not is_unlikely and (repeats is None or window.compression_ratio <= repeats)

    def is_silent(self, window: DecodedWindow) -> bool:
        """Whether nothing is said in a window."""
        silence, unlikely = self.no_speech_threshold, self.log_probability_threshold
        if silence is None or window.no_speech_probability <= silence:
            return False
        return unlikely is None or window.average_log_probability <= unlikely


@dataclass(slots=True)
class Transcription:
    """A recording on its way to a transcript.

    Attributes:
        mel: frames of the whole recording, float32 `[frames, mel_bins]`, and those of silence behind it.
        content: frames of the recording itself.
        window: frames of a window.
        encode: keeps the source of a window: float32 `[window, mel_bins]`.
    """

    decoder: SpeechDecoder
    rules: TimestampRules
    options: SpeechOptions
    language: str | None
    mel: NDArray[np.float32]
    content: int
    window: int
    encode: Callable[[NDArray[np.float32]], None]
    segments: list[Segment] = field(default_factory=list[Segment])
    said: list[int] = field(default_factory=list[int])
    prompt_start: int = 0

    def run(self, progress: Progress | None) -> Transcript:
        """Move over the recording."""
        tokenizer, total = self.decoder.tokenizer, self.content / FRAMES_PER_SECOND
        if self.options.initial_prompt:
            self.said += tokenizer.encode(
                " " + self.options.initial_prompt.strip(), add_special=False, parse_special=False
            )
        before, seek = len(self.said), 0
        generator = np.random.default_rng(self.options.seed)
        while seek < self.content:
            size = min(self.window, self.content - seek)
            window = np.zeros((self.window, self.mel.shape[1]), np.float32)
            window[:size] = self.mel[seek : seek + size]
            self.encode(window)
            decoded = self.decode(generator)
            if self.options.is_silent(decoded):
                seek += size
            else:
                seek += self.keep(decoded, seek, size)
            if progress is not None:
                progress(min(seek, self.content) / FRAMES_PER_SECOND, total)
        end = self.decoder.tokens.end
        text = tokenizer.decode([token for token in self.said[before:] if token < end]).strip()
        return Transcript(text, tuple(self.segments), self.language, total)

    def decode(self, generator: np.random.Generator) -> DecodedWindow:
        """The text of the window: the first attempt that is good enough, or the last one."""
        options, tokens = self.options, self.decoder.tokens
        prompt = tokens.prompt(self.language, options.task, options.timestamps)
        before = self.said[self.prompt_start :][-(self.decoder.session.max_context // 2 - 1) :]
        if before:
            prompt = [tokens.previous, *before, *prompt]
        window: DecodedWindow | None = None
        for temperature in options.temperatures:
            count = options.best_of if temperature > 0 else options.beam_size
            window = self.decoder.decode(
                prompt, self.rules, temperature=temperature, sequences=count, generator=generator
            )
            if options.is_good(window):
                break
        if window is None:
            raise OptionError("a window is decoded at a temperature", found="none")
        return window

    def keep(self, decoded: DecodedWindow, seek: int, size: int) -> int:
        """Cut the text of a window into segments; gives the frames to move by."""
        first, offset = self.rules.timestamps, seek / FRAMES_PER_SECOND
        tokens = list(decoded.tokens)
        marks = [token >= first for token in tokens]
        cuts = [i for i in range(1, len(tokens)) if marks[i - 1] and marks[i]]
        ends_alone = marks[-2:] == [False, True]  # nothing is said behind it
        move = size
        if cuts:
            if ends_alone:
                cuts.append(len(tokens))
            start = 0
            for cut in cuts:
                self.add(decoded, tokens[start:cut], offset, tokens[start], tokens[cut - 1])
                start = cut
            if not ends_alone:
                per_timestamp = round(SECONDS_PER_TIMESTAMP * FRAMES_PER_SECOND)
                move = (tokens[start - 1] - first) * per_timestamp
        else:
            times = [token for token in tokens if token >= first]
            length = round(size / FRAMES_PER_SECOND / SECONDS_PER_TIMESTAMP)
            end = times[-1] if times and times[-1] != first else first + length
            self.add(decoded, tokens, offset, first, end)
        if not self.options.condition_on_previous_text or decoded.temperature > LARGEST_PROMPT_TEMPERATURE:
            self.prompt_start = len(self.said)
        return move

    def add(self, decoded: DecodedWindow, tokens: list[int], offset: float, start: int, end: int) -> None:
        """Keep a segment, unless it has no text or takes no time; `start` and `end` are timestamps."""
        first, last = self.rules.timestamps, self.decoder.tokens.end
        text = self.decoder.tokenizer.decode([token for token in tokens if token < last]).strip()
        if not text or start == end:
            return
        self.said += tokens
        begins, ends = (round(offset + (token - first) * SECONDS_PER_TIMESTAMP, 2) for token in (start, end))
        self.segments.append(
            Segment(
                len(self.segments),
                begins,
                ends,
                text,
                tuple(tokens),
                decoded.temperature,
                decoded.average_log_probability,
                decoded.compression_ratio,
                decoded.no_speech_probability,
            )
        )
