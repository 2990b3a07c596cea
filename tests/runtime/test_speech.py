"""The rules of timestamps against transformers, pages that fork, the moving window, and the formats of a transcript."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.errors import CacheFullError, OptionError
from rlx.io.log_mel import FRAMES_PER_SECOND
from rlx.runtime.forked_pages import ForkedPages
from rlx.runtime.speech_decoder import DecodedWindow
from rlx.runtime.speech_tokens import SpeechTokens
from rlx.runtime.timestamp_rules import TimestampRules
from rlx.runtime.transcribe import SpeechOptions, Transcription
from rlx.runtime.transcript import Segment, Transcript, timestamp
from tests.references.load_speech import rule_cases

END, START, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS = 50, 51, 52, 53, 59
FIRST = NO_TIMESTAMPS + 1
TOKENS = SpeechTokens(
    END, START, PREVIOUS, NO_SPEECH, NO_TIMESTAMPS, FIRST, {"transcribe": 56, "translate": 55}, {"en": 54}, frozenset()
)


def test_the_rules_leave_what_those_of_transformers_leave() -> None:
    end, no_timestamps, beginnings, allowed, logits = rule_cases()
    rules = TimestampRules.of(end, no_timestamps, (), ())
    for written, expected, row in zip(beginnings, allowed, logits, strict=True):
        found = rules.apply(row, written)
        assert np.array_equal(np.isfinite(found), expected), written
        assert np.array_equal(found[expected], row[expected])


def test_tokens_that_are_never_written_or_do_not_come_first() -> None:
    rules = TimestampRules.of(END, NO_TIMESTAMPS, (7, 8), (9,), enabled=False)
    row = np.zeros(120, np.float32)
    banned = {7, 8, NO_TIMESTAMPS, *range(FIRST, 120)}
    assert set(np.flatnonzero(np.isinf(rules.apply(row, [])))) == {*banned, 9}
    assert set(np.flatnonzero(np.isinf(rules.apply(row, [3])))) == banned
    assert not np.isinf(row).any(), "the logits that are given stay as they are"


def test_prompts() -> None:
    assert TOKENS.prompt("en", "translate", True) == [START, 54, 55]
    assert TOKENS.prompt(None, "transcribe", False) == [START, NO_TIMESTAMPS]
    for language, task in (("xx", "transcribe"), ("en", "sing"), (None, "translate")):
        with pytest.raises(OptionError):
            TOKENS.prompt(language, task, True)


class Memory:
    """A cache whose pages hold what was written to each position."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.pages = np.full((num_pages, page_size), -1)
        self.forked = ForkedPages(num_pages, page_size, self.copy)
        self.copies = self.length = 0
        self.texts: list[list[int]] = [[]]
        self.forked.start()

    def copy(self, source: int, target: int) -> None:
        self.pages[target] = self.pages[source]
        self.copies += 1

    def write(self, values: list[int]) -> None:
        table = self.forked.grow(1)
        page, slot = divmod(self.length, self.pages.shape[1])
        self.length += 1
        for text, row, value in zip(self.texts, table, values, strict=True):
            self.pages[row[page], slot] = value
            text.append(value)
        for text, row in zip(self.texts, table, strict=True):
            assert self.pages[row].reshape(-1)[: self.length].tolist() == text

    def fork(self, parents: list[int]) -> None:
        self.forked.fork(parents)
        self.texts = [list(self.texts[parent]) for parent in parents]


def test_forked_sequences_keep_their_own_text() -> None:
    random, memory = np.random.default_rng(0), Memory(40, 4)
    memory.write([0])
    for step in range(60):
        count = int(random.integers(1, 5))
        memory.fork(random.integers(0, len(memory.texts), count).tolist())
        memory.write([100 * step + i for i in range(count)])
    assert memory.copies > 20
    memory.forked.start()
    memory.length, memory.texts = 0, [[]]
    for value in range(40 * 4):  # every page was given back
        memory.write([value])
    with pytest.raises(CacheFullError):
        memory.write([0])


class FakeTokenizer:
    """Token 1 is " a", 2 is " b", ..."""

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {chr(96 + token)}" for token in ids)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(word) - 96 for word in text.split()]


@dataclass
class FakeDecoder:
    """Answers windows by a list, and keeps what it was asked."""

    answers: list[tuple[list[int], float, float]]  # tokens, log-probability, no-speech probability
    tokens: SpeechTokens = TOKENS
    tokenizer: Any = field(default_factory=FakeTokenizer)
    session: Any = None
    asked: list[tuple[list[int], float, int]] = field(default_factory=list[tuple[list[int], float, int]])

    def __post_init__(self) -> None:
        self.session = type("Context", (), {"max_context": 20})()

    def decode(self, prompt: list[int], rules: Any, *, temperature: float, sequences: int, **_: Any) -> DecodedWindow:
        self.asked.append((prompt, temperature, sequences))
        written, probability, silence = self.answers.pop(0)
        text = self.tokenizer.decode([token for token in written if token < END]).strip()
        return DecodedWindow(tuple(written), text, probability, silence, temperature)


def transcribed(
    seconds: float, answers: list[tuple[list[int], float, float]], **options: Any
) -> tuple[Transcript, FakeDecoder, list[int]]:
    """The transcript, the decoder, and the first frame of each window that was encoded."""
    decoder, windows = FakeDecoder(answers), list[int]()
    frames = int(seconds * FRAMES_PER_SECOND)
    mel = np.arange(1, frames + 3001, dtype=np.float32)[:, None]

    def encode(window: NDArray[np.float32]) -> None:
        assert window.shape == (3000, 1)
        windows.append(int(window[0, 0]) - 1)
        inside = min(3000, frames - windows[-1])
        assert not window[inside:].any(), "what lies behind the recording is left out"

    rules = TimestampRules.of(END, NO_TIMESTAMPS, (), ())
    anything: Any = decoder
    state = Transcription(anything, rules, SpeechOptions(**options), "en", mel, frames, 3000, encode)
    result = state.run(None)
    assert not answers, "every answer was asked for"
    return result, decoder, windows


def at(seconds: float) -> int:
    return FIRST + round(seconds / 0.02)


def test_the_window_moves_to_the_last_timestamp() -> None:
    answers = [
        ([at(0), 1, at(2), at(2), 2, at(25), at(25), 3], -0.1, 0.0),  # the third segment is not finished
        ([at(0.5), 3, 4, at(15), at(15)], -0.1, 0.0),
    ]
    result, decoder, windows = transcribed(40.0, answers)
    assert windows == [0, 2500]
    assert [(s.start, s.end, s.text) for s in result.segments] == [(0, 2, "a"), (2, 25, "b"), (25.5, 40, "c d")]
    assert result.text == "a b c d"
    assert result.duration == 40.0
    assert decoder.asked[0][0] == [START, 54, 56]
    said = [at(0), 1, at(2), at(2), 2, at(25)]
    assert decoder.asked[1][0] == [PREVIOUS, *said, START, 54, 56], "what was said before is a prompt"


def test_a_timestamp_alone_at_the_end_means_silence_behind_it() -> None:
    result, _, windows = transcribed(50.0, [([at(0), 1, at(3)], -0.1, 0.0), ([1, 2], -0.1, 0.0)])
    assert windows == [0, 3000]
    assert [(s.start, s.end) for s in result.segments] == [(0, 3), (30, 50)]


def test_a_bad_window_is_decoded_again_and_its_text_is_no_prompt() -> None:
    repeated = [at(0), *[1] * 60, at(2)]
    answers = [
        (repeated, -0.1, 0.0),
        ([at(0), 1, at(2)], -3.0, 0.0),
        (repeated, -0.1, 0.0),
        ([at(0), 2, at(29)], -0.5, 0.0),
        ([at(0), 3, at(2)], -0.1, 0.0),
    ]
    result, decoder, _ = transcribed(31.0, answers, beam_size=3, best_of=2)
    assert result.text == "b c"
    assert [(t, n) for _, t, n in decoder.asked] == [(0, 3), (0.2, 2), (0.4, 2), (0.6, 2), (0, 3)]
    assert decoder.asked[-1][0] == [START, 54, 56]


def test_silence_is_passed_over_and_not_decoded_again() -> None:
    answers = [([at(0), 1, at(2)], -1.5, 0.9), ([at(0), 2, at(1)], -0.2, 0.9)]
    result, _, windows = transcribed(31.0, answers)
    assert result.text == "b", "a likely text is kept, whatever the probability of silence says"
    assert windows == [0, 3000]


def test_options() -> None:
    answers = [([at(0), 1, at(29)], -0.1, 0.0), ([at(0), 2, at(1)], -0.1, 0.0)]
    _, decoder, _ = transcribed(31.0, answers, condition_on_previous_text=False, initial_prompt="x y")
    assert [prompt[0] for prompt, *_ in decoder.asked] == [PREVIOUS, START]
    wrong: list[dict[str, Any]] = [
        {"task": "sing"},
        {"beam_size": 0},
        {"best_of": 99},
        {"temperatures": ()},
        {"temperatures": (-1.0,)},
    ]
    for options in wrong:
        with pytest.raises(OptionError):
            SpeechOptions(**options)


def transcript() -> Transcript:
    facts = ((1, 2), 0.0, -0.1, 1.0, 0.0)
    segments = (Segment(0, 0.0, 1.5, "Hello", *facts), Segment(1, 3661.25, 3662.0, "a --> b", *facts))
    return Transcript("Hello a --> b", segments, "en", 3662.0)


def test_formats() -> None:
    assert transcript().format("txt") == "Hello\na --> b\n"
    assert transcript().format("srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello\n\n2\n01:01:01,250 --> 01:01:02,000\na -> b\n"
    )
    assert transcript().format("vtt") == (
        "WEBVTT\n\n00:00.000 --> 00:01.500\nHello\n\n01:01:01.250 --> 01:01:02.000\na -> b\n"
    )
    assert timestamp(59.9996) == "01:00.000"
    plain = transcript().to_plain()
    assert plain["segments"][1]["start"] == 3661.25
    assert plain["segments"][0]["tokens"] == [1, 2]
    with pytest.raises(OptionError, match="format"):
        transcript().format("doc")
