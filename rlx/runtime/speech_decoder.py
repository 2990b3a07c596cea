"""The text of one window: several sequences at once over one source, greedy, sampled, or a beam.

In: a `SourcedSession` whose source is the window, a prompt, options. Out: `DecodedWindow`. Which tokens may come is
said by `timestamp_rules.py`. Source: openai-whisper's decoding.py; beams as in Sutskever et al. 2014. Next:
`transcribe.py`, which moves the window over a recording.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.io.tokenizer import Tokenizer
from rlx.runtime.forked_pages import ForkedPages
from rlx.runtime.sourced_session import SourcedSession
from rlx.runtime.speech_tokens import SpeechTokens
from rlx.runtime.timestamp_rules import TimestampRules

Row = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """What a window says.

    Attributes:
        tokens: its text and timestamps, without the token that ends it.
        text: the text alone.
        average_log_probability: over the tokens and the one that ends them.
        no_speech_probability: that nothing is said; 0 for a model that cannot tell.
        temperature: it was drawn at; 0 for the most likely text.
    """

    tokens: tuple[int, ...]
    text: str
    average_log_probability: float
    no_speech_probability: float
    temperature: float

    @property
    def compression_ratio(self) -> float:
        """Bytes of the text over bytes after zlib: a text that repeats itself is far above 2."""
        raw = self.text.encode()
        return len(raw) / len(zlib.compress(raw))


@dataclass(slots=True)
class _Candidate:
    """A sequence that grows: its tokens, the sum of their log-probabilities."""

    tokens: list[int]
    total: float = 0.0

    def score(self, end: int) -> float:
        """Mean log-probability, the length of the text without its end."""
        length = len(self.tokens) - (self.tokens[-1:] == [end])
        return self.total / max(length, 1)


class SpeechDecoder:
    """Decodes windows, one after another.

    Args:
        session: the decoder; its slot 0 is the window.
        tokenizer, tokens: text and control tokens.
    """

    def __init__(self, session: SourcedSession, tokenizer: Tokenizer, tokens: SpeechTokens) -> None:
        self.session, self.tokenizer, self.tokens = session, tokenizer, tokens
        self._pages = ForkedPages(session.num_pages, session.page_size, session.copy_page)
        self._position = 0

    def language_probabilities(self) -> dict[str, float]:
        """How likely each language is spoken in the window."""
        self._pages.start()
        self._position = 0
        (logits,) = self._step([[self.tokens.start]], [0])
        codes = sorted(self.tokens.languages)
        ids = [self.tokens.languages[code] for code in codes]
        return dict(zip(codes, _softmax(logits)[ids] / _softmax(logits)[ids].sum(), strict=True))

    def decode(
        self,
        prompt: Sequence[int],
        rules: TimestampRules,
        *,
        temperature: float = 0.0,
        sequences: int = 1,
        generator: np.random.Generator | None = None,
    ) -> DecodedWindow:
        """Write down what the window says.

        Args:
            prompt: from the text before the window to the task; see `SpeechTokens.prompt`.
            rules: which tokens may come.
            temperature: 0 takes the most likely text, found by a beam of `sequences`; above it, the best of
                `sequences` drawn texts is taken.
            generator: draws.
        """
        self._pages.start()
        self._position = 0
        start = prompt.index(self.tokens.start)
        rows = [start, len(prompt) - 1] if start < len(prompt) - 1 else [start]
        logits = self._step([list(prompt)], rows)
        silence = self.tokens.no_speech
        no_speech = 0.0 if silence is None else float(_softmax(logits[0])[silence])
        room = min(self.session.max_context // 2, self.session.max_context - len(prompt))
        first = rules.apply(logits[-1], [])
        if temperature == 0.0 and sequences > 1:
            best = self._beam(first, rules, room, sequences)
        else:
            best = self._draw(first, rules, room, temperature, sequences if temperature > 0 else 1, generator)
        return self._finished(best, no_speech, temperature)

    def _step(self, rows: Sequence[Sequence[int]], logit_rows: Sequence[int]) -> Row:
        """Append as many tokens to each sequence; gives the logits `[len(logit_rows), vocab]`."""
        count, width = len(rows), len(rows[0])
        table = self._pages.grow(width)
        positions = np.tile(np.arange(self._position, self._position + width, dtype=np.int32), count)
        self._position += width
        return self.session.run_from(
            np.array(rows, np.int32).reshape(-1),
            positions,
            np.repeat(np.arange(count, dtype=np.int32), width),
            table,
            np.array(logit_rows, np.int32),
            np.zeros(count * width, np.int32),
        )

    def _draw(
        self,
        first: Row,
        rules: TimestampRules,
        room: int,
        temperature: float,
        count: int,
        generator: np.random.Generator | None,
    ) -> _Candidate:
        """The best of `count` texts that are drawn token by token."""
        end, candidates = self.tokens.end, [_Candidate([]) for _ in range(count)]
        logits: Sequence[Row] = [first] * count
        live: list[int] = list(range(count))
        while live:
            for row, index in zip(logits, live, strict=True):
                token = _choose(row, temperature, generator)
                candidates[index].tokens.append(token)
                candidates[index].total += _log_probability(row, token)
            going = [i for i, index in enumerate(live) if candidates[index].tokens[-1] != end]
            if not going or len(candidates[live[0]].tokens) >= room:
                break
            self._pages.fork([0] * len(going) if len(candidates[live[0]].tokens) == 1 else going)
            live = [live[i] for i in going]
            raw = self._step([candidates[index].tokens[-1:] for index in live], range(len(live)))
            logits = [rules.apply(row, candidates[index].tokens) for row, index in zip(raw, live, strict=True)]
        return max(candidates, key=lambda candidate: candidate.score(end))

    def _beam(self, first: Row, rules: TimestampRules, room: int, width: int) -> _Candidate:
        """The most likely text that a beam of `width` sequences finds."""
        end, beam, finished = self.tokens.end, [_Candidate([])], list[_Candidate]()
        logits: Sequence[Row] = [first]
        while True:
            ranked: list[tuple[float, int, int]] = []
            for index, (row, candidate) in enumerate(zip(logits, beam, strict=True)):
                scores = row - _log_normaliser(row)
                top = np.argpartition(-scores, width)[: width + 1]
                ranked += [(candidate.total + float(scores[t]), index, int(t)) for t in top if np.isfinite(scores[t])]
            ranked.sort(key=lambda item: (-item[0], item[1], item[2]))
            kept: list[tuple[float, int, int]] = []
            ended: list[_Candidate] = []
            for total, index, token in ranked:
                if token == end:
                    ended.append(_Candidate([*beam[index].tokens, token], total))
                else:
                    kept.append((total, index, token))
                if len(kept) == width:
                    break
            finished += ended[: width - len(finished)]
            if not kept or len(finished) >= width or len(beam[0].tokens) + 1 >= room:
                break
            self._pages.fork([index for _, index, _ in kept])
            beam = [_Candidate([*beam[index].tokens, token], total) for total, index, token in kept]
            raw = self._step([candidate.tokens[-1:] for candidate in beam], range(len(beam)))
            logits = [rules.apply(row, candidate.tokens) for row, candidate in zip(raw, beam, strict=True)]
        if len(finished) < width:
            finished += [_Candidate([*beam[i].tokens, t], total) for total, i, t in kept]
        return max(finished, key=lambda candidate: candidate.score(end))

    def _finished(self, candidate: _Candidate, no_speech: float, temperature: float) -> DecodedWindow:
        end = self.tokens.end
        tokens = candidate.tokens[:-1] if candidate.tokens[-1:] == [end] else candidate.tokens
        text = self.tokenizer.decode([token for token in tokens if token < end]).strip()
        return DecodedWindow(tuple(tokens), text, candidate.total / (len(tokens) + 1), no_speech, temperature)


def _log_normaliser(row: Row) -> float:
    top = float(row.max())
    return top + float(np.log(np.exp(row - np.float32(top)).sum(dtype=np.float64)))


def _log_probability(row: Row, token: int) -> float:
    return float(row[token]) - _log_normaliser(row)


def _softmax(row: Row) -> NDArray[np.float64]:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


def _choose(row: Row, temperature: float, generator: np.random.Generator | None) -> int:
    """The most likely token, or one that is drawn."""
    if temperature == 0.0 or generator is None:
        return int(row.argmax())
    total = np.cumsum(_softmax(row / np.float32(temperature)))
    place = int(np.searchsorted(total, generator.random() * float(total[-1]), side="right"))
    return min(place, len(row) - 1)
