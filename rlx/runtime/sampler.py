"""From the logits of one row to one token.

In: `SamplingOptions` (what a request asks for) and raw float32 logits. Out: a `SampledToken`. The order of the
transforms is llama.cpp's default chain: logit bias, penalties, top-k, top-p, min-p, temperature, draw. So top-p and
min-p see the distribution at temperature 1 (transformers puts temperature first; at temperature 1 the two agree).

A draw depends on the seed, the index of the token within its request, and the logits: never on the batch, on other
requests or on how often it was tried before. Next: `engine.py`.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.errors import OptionError, RlxError
from rlx.runtime.options import SamplingOptions, bad_option

__all__ = ["SampledToken", "Sampler", "SamplingOptions"]

_FIRST_TRY = 1024  # most likely tokens that are looked at before the whole vocabulary is sorted


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A chosen token.

    Attributes:
        token: its id.
        logprob: its natural-log probability under the model's own distribution (before any option), or None when
            `logprobs` was not asked for.
        top: the n most likely (id, log probability) pairs of that distribution, most likely first, ties by id.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one request. `sample` changes nothing; `accept` is what moves on.

    Args:
        options: what the request asks for.
        vocab_size: length of a row of logits.
        prompt_tokens: what stands before the first chosen token (the repetition penalty sees it).
        banned: token ids that are never chosen.
        seed: stands for `options.seed`; how a request goes on that drew its own.

    Raises:
        OptionError: an option names a token or a count beyond the vocabulary.
    """

    def __init__(
        self,
        options: SamplingOptions,
        vocab_size: int,
        prompt_tokens: Iterable[int] = (),
        banned: Collection[int] = (),
        seed: int | None = None,
    ) -> None:
        self.options = options
        seed = options.seed if seed is None else seed
        self.seed = secrets.randbits(63) if seed is None else seed
        self._vocab_size = vocab_size
        self._accepted = 0
        for token in options.logit_bias:
            if not 0 <= token < vocab_size:
                raise bad_option("logit_bias", token, f"token ids from 0 to {vocab_size - 1}")
        if options.logprobs is not None and options.logprobs > vocab_size:
            raise bad_option("logprobs", options.logprobs, f"at most the vocabulary's {vocab_size} tokens")
        bias = dict(options.logit_bias) | dict.fromkeys((t for t in banned if 0 <= t < vocab_size), -math.inf)
        self._bias_ids = np.array(list(bias), np.int64)
        with np.errstate(over="ignore"):  # what float32 cannot hold is found in `scores`
            self._bias_values = np.array(list(bias.values()), np.float64).astype(np.float32)
        self._penalties = _PenaltyCounts(options, vocab_size, prompt_tokens) if options.has_penalties else None

    def accept(self, token: int) -> None:
        """Take `token` as the next one of the text: the penalties see it and the next draw is another one."""
        if self._penalties is not None:
            self._penalties.add(token, generated=True)
        self._accepted += 1

    def sample(self, logits: NDArray[np.float32]) -> SampledToken:
        """Choose the next token.

        Args:
            logits: `[vocab_size]` float32, finite; not changed.

        Raises:
            RlxError: the logits have a wrong shape, hold a NaN or an infinity, or every token is banned.
        """
        self._check(logits)
        scores = self.scores(logits)
        token = int(scores.argmax()) if self.options.is_greedy else draw(scores, self.options, self._uniform())
        if scores[token] == -math.inf:
            raise RlxError(
                "no token can be chosen: logit_bias bans every one", where=f"token {self._accepted} of the request"
            )
        if self.options.logprobs is None:
            return SampledToken(token)
        return _with_logprobs(logits, token, self.options.logprobs)

    def _check(self, logits: NDArray[np.float32]) -> None:
        if logits.shape != (self._vocab_size,):
            raise RlxError("a row of logits has a wrong shape", found=logits.shape, expected=(self._vocab_size,))
        # A NaN goes through both max and min, so two fast passes see everything that is not finite.
        if not (math.isfinite(logits.max()) and math.isfinite(logits.min())):
            bad = np.flatnonzero(~np.isfinite(logits))
            raise RlxError(
                "the model's logits are not finite",
                where=f"token {self._accepted} of the request",
                found=f"{bad.size} of {logits.size} values, the first is {logits[bad[0]]} at id {bad[0]}",
                expected="finite numbers",
                fix='check the weights, and try precision="exact"',
            )

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """`[vocab_size]` logits after bias and penalties; the argument itself when there are none."""
        if not self._bias_ids.size and self._penalties is None:
            return logits
        scores = logits.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            scores[self._bias_ids] += self._bias_values
            if self._penalties is not None:
                self._penalties.apply(scores)
        if not scores.max() < math.inf:
            raise OptionError(
                "the penalties or the bias carry a score beyond float32",
                where="repetition_penalty, frequency_penalty, presence_penalty or logit_bias",
                fix="use values closer to their defaults",
            )
        return scores

    def _uniform(self) -> float:
        """The draw in [0, 1) that belongs to this seed and token index.

        Philox4x64 (Salmon et al. 2011) is counter-based, and NumPy promises its raw stream for good (NEP 19), so the
        draw needs no state and is the same on every platform and version.
        """
        raw = np.random.Philox(key=self.seed, counter=self._accepted).random_raw()
        return (int(raw) >> 11) * 2.0**-53


class _PenaltyCounts:
    """How often each token was seen and generated within the window."""

    def __init__(self, options: SamplingOptions, vocab_size: int, prompt_tokens: Iterable[int]) -> None:
        self._options = options
        self._window: deque[tuple[int, bool]] = deque()
        self._seen = np.zeros(vocab_size, np.int32)
        self._generated = np.zeros(vocab_size, np.int32)
        self._ids = np.zeros(vocab_size, np.int64)  # every token that was ever counted, in the order of arrival
        self._num_ids = 0
        self._is_listed = bytearray(vocab_size)
        for token in prompt_tokens:
            self.add(token, generated=False)

    def add(self, token: int, *, generated: bool) -> None:
        size = self._options.penalty_window
        if size > 0:
            self._window.append((token, generated))
            if len(self._window) > size:
                old, was_generated = self._window.popleft()
                self._seen[old] -= 1
                self._generated[old] -= was_generated
        if not self._is_listed[token]:
            self._is_listed[token] = 1
            self._ids[self._num_ids] = token
            self._num_ids += 1
        self._seen[token] += 1
        self._generated[token] += generated

    def apply(self, scores: NDArray[np.float32]) -> None:
        """Penalise `scores` in place: repetition first, then frequency and presence."""
        options, ids = self._options, self._ids[: self._num_ids]
        if options.repetition_penalty != 1.0:
            seen = ids[self._seen[ids] > 0]
            penalty = np.float32(options.repetition_penalty)
            old = scores[seen]
            scores[seen] = np.where(old < 0, old * penalty, old / penalty)
        if options.frequency_penalty != 0.0 or options.presence_penalty != 0.0:
            generated = ids[self._generated[ids] > 0]
            times = self._generated[generated]
            total = times * options.frequency_penalty + options.presence_penalty
            scores[generated] -= total.astype(np.float32)


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest scores, descending, ties by id.

    A selection over the whole row costs a millisecond at 150,000 tokens, so the row is cut into interleaved groups of
    64: at least `count` scores reach the `count`-th largest of the groups' maxima, few others do, and only those are
    sorted.
    """
    size = scores.size
    columns = size // 64
    if count < columns:
        maxima = scores[: columns * 64].reshape(64, columns).max(axis=0)
        bound = np.partition(maxima, columns - count)[columns - count]
        ids = np.flatnonzero(scores >= bound)
    else:
        ids = np.arange(size)
    return _descending(scores[ids], ids)[:count]


def _descending(scores: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """`ids` by descending score, ties by id.

    Score and id go into one 64-bit key each, because NumPy sorts plain integers with vector instructions, several times
    faster than it finds a stable order. Flipping the lower bits of negative floats makes their bits ascend as they do
    themselves; adding 0 turns -0 into 0.
    """
    bits = (scores + np.float32(0)).view(np.int32)
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (~ascending).astype(np.int64) << 32 | ids
    keys.sort()
    return keys & 0xFFFFFFFF


def draw(scores: NDArray[np.float32], options: SamplingOptions, uniform: float) -> int:
    """The token that the cumulative distribution reaches at `uniform`, in [0, 1), tokens taken in descending order.

    `scores` are `[vocab_size]` logits after bias and penalties; filters and temperature of `options` apply here.
    """
    size = scores.size
    limit = min(options.top_k or size, size)
    tries = (limit,) if options.top_k or size <= _FIRST_TRY else (_FIRST_TRY, size)
    for count in tries:
        ids = _largest(scores, count)
        with np.errstate(over="ignore"):  # a tiny temperature: exp(-inf) is the 0 that is meant
            position = _position(scores, scores[ids].astype(np.float64), count == limit, options, uniform)
        if position is not None:
            return int(ids[position])
    raise RlxError("the draw fell outside of the distribution", found=uniform, expected="0 <= uniform < 1")


def _position(
    scores: NDArray[np.float32],
    ranked: NDArray[np.float64],
    complete: bool,
    options: SamplingOptions,
    uniform: float,
) -> int | None:
    """Where in `ranked` (the largest scores, descending) the draw falls; None if it needs more of them.

    `complete` says that `ranked` holds all that top-k keeps; otherwise the rest is in `scores`.
    """
    highest = float(ranked[0])
    if highest == -math.inf:
        return 0  # every token is banned; the caller says so
    kept = int(np.count_nonzero(ranked > -math.inf))
    complete = complete or kept < ranked.size
    if options.top_p < 1.0:
        cumulative = np.cumsum(np.exp(ranked - highest))
        mass = float(cumulative[-1]) if complete else _mass(scores, highest, 1.0)
        kept = min(kept, int(np.searchsorted(cumulative, options.top_p * mass)) + 1)
    if options.min_p > 0.0:
        kept = min(kept, int(np.count_nonzero(ranked >= highest + math.log(options.min_p))))
    closed = complete or kept < ranked.size  # nothing beyond `ranked` can be drawn
    if not closed and (options.top_p < 1.0 or options.min_p > 0.0):
        return None  # where these filters cut is not in sight yet
    cumulative = np.cumsum(np.exp((ranked[:kept] - highest) / options.temperature))
    mass = float(cumulative[-1]) if closed else _mass(scores, highest, options.temperature)
    position = int(np.searchsorted(cumulative, uniform * mass, side="right"))
    if position < kept:
        return position
    return kept - 1 if closed else None


def _mass(scores: NDArray[np.float32], highest: float, temperature: float) -> float:
    """Sum of the unnormalised probabilities of all tokens."""
    return float(np.exp((scores.astype(np.float64) - highest) / temperature).sum())


def _with_logprobs(logits: NDArray[np.float32], token: int, count: int) -> SampledToken:
    """Log probabilities of the raw logits, in float64."""
    wide = logits.astype(np.float64)
    highest = wide.max()
    log_total = highest + math.log(float(np.exp(wide - highest).sum()))
    top = _largest(logits, count) if count else np.empty(0, np.int64)
    return SampledToken(token, float(wide[token] - log_total), tuple((int(i), float(wide[i] - log_total)) for i in top))
