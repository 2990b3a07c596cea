"""Perplexity and divergence against sums written out; what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.errors import InputError, OptionError
from rlx.runtime.perplexity import perplexity

VOCAB = 7
IDS = np.random.default_rng(3).integers(0, VOCAB, 29).tolist()


def table(seed: int, vocab: int = VOCAB) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((VOCAB, VOCAB, vocab)).astype(np.float32)


class Bigrams:
    """Logits that depend on the last two tokens (the first token of a window counts twice)."""

    def __init__(self, seed: int, vocab: int = VOCAB) -> None:
        self.table, self.seen = table(seed, vocab), list[list[int]]()

    def __call__(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.seen.append(list(ids))
        return np.stack([self.table[ids[max(0, i - 1)], ids[i]] for i in range(len(ids))])


def probabilities(model: Bigrams, window: list[int]) -> list[list[float]]:
    rows = [[math.exp(x) for x in row] for row in model(window).tolist()]
    return [[x / math.fsum(row) for x in row] for row in rows]


@pytest.mark.parametrize(("first", "most"), [(None, None), (2, None), (None, 2)])
def test_figures_are_those_of_the_definition(first: int | None, most: int | None) -> None:
    model, reference = Bigrams(1), Bigrams(2)
    done: list[tuple[int, int]] = []
    result = perplexity(
        model,
        IDS,
        window=8,
        most_windows=most,
        first_token=first,
        reference=reference,
        progress=lambda *counts: done.append(counts),
    )
    count = most or 3
    losses, others, kl, same = list[float](), list[float](), list[float](), list[bool]()
    for index in range(count):
        window = IDS[8 * index : 8 * index + 8]
        given = window if first is None else [first, *window[1:]]
        found, expected = probabilities(model, given), probabilities(reference, given)
        for position in (4, 5, 6):
            p, q, target = expected[position], found[position], window[position + 1]
            losses.append(-math.log(q[target]))
            others.append(-math.log(p[target]))
            kl.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
            same.append(p.index(max(p)) == q.index(max(q)))
    assert done == [(index + 1, count) for index in range(count)]
    assert (result.windows, result.tokens, result.left_over) == (count, 3 * count, 29 - 8 * count)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-6)
    spread = np.std(losses, ddof=1) / math.sqrt(len(losses))
    assert result.standard_error == pytest.approx(result.perplexity * spread, rel=1e-6)
    assert result.divergence is not None
    assert result.divergence.reference_perplexity == pytest.approx(math.exp(np.mean(others)), rel=1e-6)
    assert result.divergence.mean_kl == pytest.approx(np.mean(kl), rel=1e-5)
    assert result.divergence.median_kl == pytest.approx(np.median(kl), rel=1e-5)
    assert result.divergence.largest_kl == pytest.approx(max(kl), rel=1e-5)
    assert result.divergence.same_top == pytest.approx(np.mean(same))


def test_a_model_is_no_distance_from_itself() -> None:
    result = perplexity(Bigrams(1), IDS, window=4, reference=Bigrams(1))
    assert result.divergence is not None
    assert (result.divergence.largest_kl, result.divergence.same_top) == (0.0, 1.0)
    assert result.divergence.reference_perplexity == result.perplexity


def test_what_is_refused() -> None:
    model = Bigrams(1)
    with pytest.raises(OptionError):
        perplexity(model, IDS, window=3)
    with pytest.raises(OptionError):
        perplexity(model, IDS, window=8, most_windows=0)
    with pytest.raises(InputError, match="shorter than a window"):
        perplexity(model, IDS, window=30)
    with pytest.raises(InputError, match="another vocabulary"):
        perplexity(model, IDS, window=8, reference=Bigrams(2, VOCAB + 1))
