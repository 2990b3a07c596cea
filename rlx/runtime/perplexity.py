"""How well a model predicts a text, and how far its predictions are from another model's.

In: token ids, and what gives logits. Out: `Perplexity`. The ids are cut into windows that do not overlap, each read
from an empty context; the second half of a window is scored, whose tokens have at least half a window before them. That
is what llama.cpp's `llama-perplexity` does by default, so that figures may be compared. Next: `model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError, OptionError

Logits = Callable[[Sequence[int]], NDArray[np.float32]]
"""Token ids of one sequence to its logits, `float32[tokens, vocab]`."""
WINDOW = 512
SMALLEST_WINDOW = 4


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far predictions are from a reference's, in nats, over all scored tokens.

    Attributes:
        mean_kl, median_kl, p99_kl, largest_kl: of the Kullback-Leibler divergence, reference to model.
        same_top: share of tokens for which both find the same token the most likely.
        reference_perplexity: of the reference on the same tokens.
    """

    mean_kl: float
    median_kl: float
    p99_kl: float
    largest_kl: float
    same_top: float
    reference_perplexity: float


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of a scored token.
        standard_error: of the perplexity, from the spread of those over tokens (the delta method).
        window: tokens of a window. windows: how many were read.
        tokens: how many were scored. left_over: tokens of the text beyond the last whole window.
        divergence: from a reference, if one was given.
    """

    perplexity: float
    standard_error: float
    window: int
    windows: int
    tokens: int
    left_over: int
    divergence: Divergence | None = None

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def perplexity(
    logits: Logits,
    ids: Sequence[int],
    *,
    window: int = WINDOW,
    most_windows: int | None = None,
    first_token: int | None = None,
    reference: Logits | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Perplexity:
    """Score a text.

    Args:
        logits: of the model.
        ids: the text, without a begin-of-text token.
        window: tokens of a window.
        most_windows: read this many windows at most; None for all whole ones.
        first_token: what every window begins with in place of its own first token (the begin-of-text token of a model
            that wants one).
        reference: logits of another model, to measure the divergence from.
        progress: called with the windows that are done and all of them.

    Raises:
        OptionError: a number is not allowed.
        InputError: the text has less than a window.
    """
    if window < SMALLEST_WINDOW:
        raise OptionError("a window is too short to score its second half", found=window, expected=SMALLEST_WINDOW)
    if most_windows is not None and most_windows < 1:
        raise OptionError("no windows, no perplexity", found=most_windows, expected="1 or more")
    whole = len(ids) // window
    if whole == 0:
        raise InputError(
            "the text is shorter than a window",
            found=f"{len(ids)} tokens",
            expected=f"at least {window}",
            fix="give a longer text, or a smaller window",
        )
    count = whole if most_windows is None else min(whole, most_windows)
    own: list[NDArray[np.float64]] = []
    others: list[NDArray[np.float64]] = []
    kl: list[NDArray[np.float64]] = []
    same: list[NDArray[np.bool_]] = []
    for index in range(count):
        tokens = list(ids[index * window : (index + 1) * window])
        # the position before a scored token predicts it; the last position predicts what is in no window
        scored, targets = slice(window // 2, window - 1), np.array(tokens[window // 2 + 1 :])
        if first_token is not None:
            tokens[0] = first_token
        found = _log_probabilities(logits(tokens)[scored])
        own.append(-found[np.arange(len(targets)), targets])
        if reference is not None:
            expected = _log_probabilities(reference(tokens)[scored])
            _check_vocabulary(found, expected)
            others.append(-expected[np.arange(len(targets)), targets])
            kl.append((np.exp(expected) * (expected - found)).sum(axis=-1))
            same.append(found.argmax(axis=-1) == expected.argmax(axis=-1))
        if progress is not None:
            progress(index + 1, count)
    losses = np.concatenate(own)
    value = math.exp(losses.mean())
    return Perplexity(
        perplexity=value,
        standard_error=value * float(losses.std(ddof=1)) / math.sqrt(len(losses)),
        window=window,
        windows=count,
        tokens=len(losses),
        left_over=len(ids) - count * window,
        divergence=_divergence(kl, same, others) if reference is not None else None,
    )


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-softmax of every row, in float64."""
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=-1, keepdims=True))
    return rows


def _check_vocabulary(found: NDArray[np.float64], expected: NDArray[np.float64]) -> None:
    if found.shape != expected.shape:
        raise InputError(
            "the reference has another vocabulary",
            found=f"{expected.shape[-1]} tokens",
            expected=found.shape[-1],
            fix="compare two forms of one model",
        )


def _divergence(
    kl: Sequence[NDArray[np.float64]], same: Sequence[NDArray[np.bool_]], losses: Sequence[NDArray[np.float64]]
) -> Divergence:
    values = np.maximum(np.concatenate(kl), 0.0)  # rounding may give a little less than 0
    return Divergence(
        mean_kl=float(values.mean()),
        median_kl=float(np.median(values)),
        p99_kl=float(np.quantile(values, 0.99)),
        largest_kl=float(values.max()),
        same_top=float(np.concatenate(same).mean()),
        reference_perplexity=math.exp(np.concatenate(losses).mean()),
    )
