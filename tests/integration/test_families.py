"""Every family on the CPU, exact precision: transformers' logits and greedy tokens, and the same bits in any chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.integration.driving import Drive, in_chunks
from tests.integration.tiny import recipe_of, session_of
from tests.models.family_files import FAMILIES, context_of, folder

TOLERANCE = 1e-4  # of the largest logit, which is the bar of exact mode


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = FAMILIES[name]
    with session_of(recipe_of(folder(case, tmp_path), context_of(case))) as session:
        (logits,) = Drive(session, [case.ids]).step([(0, len(case.ids))])
        assert np.abs(logits - case.logits).max() <= TOLERANCE * np.abs(case.logits).max()
        for chunk in (1, 7):
            np.testing.assert_array_equal(in_chunks(session, case.ids, chunk), logits)
        count = len(case.greedy)
        assert Drive(session, [case.ids], room=count, seed=3).greedy(count) == [case.greedy.tolist()]
