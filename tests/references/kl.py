"""Distances between next-token distributions, exact in float64.

In: logits [positions, vocab] of any float type. Out: log-probabilities, compact distributions, KL divergences in nats.
The recording script gives llama.cpp's logits to the same functions as the tests give RLX's. Next: `botchan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Logits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class CompactDistribution:
    """The k most likely tokens of each position and the mass of all others as one bucket.

    Attributes:
        ids: uint16 [positions, k], most likely first.
        log_probs: float32 [positions, k], natural logarithms.
        tail_log_probs: float32 [positions], log of the summed probability of the tokens not in `ids`.
    """

    ids: NDArray[np.uint16]
    log_probs: NDArray[np.float32]
    tail_log_probs: NDArray[np.float32]


def log_sum_exp(logits: Logits) -> Float64Array:
    """log(sum(exp(logits))) over the last axis, float64; -inf entries count as nothing."""
    wide = np.asarray(logits, np.float64)
    largest = wide.max(axis=-1, keepdims=True)
    return np.log(np.exp(wide - largest).sum(axis=-1)) + largest[..., 0]


def log_softmax(logits: Logits) -> Float64Array:
    """Natural log-probabilities over the last axis, float64."""
    return np.asarray(logits, np.float64) - log_sum_exp(logits)[..., None]


def split_tail(logits: Logits, ids: NDArray[Any]) -> tuple[Float64Array, Float64Array]:
    """Log-probabilities of `ids` [positions, k], and log of the mass of all other tokens [positions], both float64.

    The tail is summed from the other tokens themselves, not taken as 1 minus the rest, so that nothing cancels.
    """
    log_probs = log_softmax(logits)
    index = ids.astype(np.int64)
    top = np.take_along_axis(log_probs, index, axis=-1)
    np.put_along_axis(log_probs, index, -np.inf, axis=-1)
    return top, log_sum_exp(log_probs)


def compact_distribution(logits: Logits, k: int) -> CompactDistribution:
    """The `k` most likely tokens of each row of logits [positions, vocab]; vocab has to fit 16 bits."""
    ids = np.argsort(-np.asarray(logits, np.float64), axis=-1, kind="stable")[:, :k].astype(np.uint16)
    top, tail = split_tail(logits, ids)
    return CompactDistribution(ids, top.astype(np.float32), tail.astype(np.float32))


def compact_kl(reference: CompactDistribution, logits: Logits) -> Float64Array:
    """KL(reference || logits) in nats per position, over the reference's k tokens plus one bucket for all others.

    It is a lower bound of the KL over the whole vocabulary (merging outcomes never raises a KL), so two systems may be
    compared by it when both are given to it. float32 storage of the reference moves a value by less than 1e-6.

    Args:
        reference: positions P.
        logits: [P, vocab].
    """
    top, tail = split_tail(logits, reference.ids)
    top_reference = reference.log_probs.astype(np.float64)
    tail_reference = reference.tail_log_probs.astype(np.float64)
    inside = (np.exp(top_reference) * (top_reference - top)).sum(axis=-1)
    return inside + np.exp(tail_reference) * (tail_reference - tail)


def full_kl(reference_logits: Logits, logits: Logits) -> Float64Array:
    """KL(reference || logits) in nats per position over the whole vocabulary, float64 [positions]."""
    reference = log_softmax(reference_logits)
    return (np.exp(reference) * (reference - log_softmax(logits))).sum(axis=-1)


def perplexity(target_log_probs: NDArray[Any]) -> float:
    """exp of the mean negative log-probability of the tokens that came."""
    return float(np.exp(-np.mean(target_log_probs, dtype=np.float64)))
