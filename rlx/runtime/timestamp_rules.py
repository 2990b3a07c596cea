"""Which tokens may come next in the text of a window: the published rules of timestamps, and what is never written.

In: a row of logits and the tokens so far. Out: the logits, those of tokens that may not come at minus infinity. Source:
Radford et al. 2022, section 4.5, and openai-whisper's decoding.py. Next: `speech_decoder.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_FIRST_SECONDS = 1.0
"""How late the first timestamp of a window may be."""
SECONDS_PER_TIMESTAMP = 0.02


@dataclass(frozen=True, slots=True)
class TimestampRules:
    """The rules of one model.

    Attributes:
        end: the token that ends the text.
        no_timestamps, timestamps: the token that is never written beside timestamps, and the first of them; with
            `enabled` False, timestamps are not written at all.
        suppressed: tokens that are never written. suppressed_first: those that do not come first.
    """

    end: int
    no_timestamps: int
    timestamps: int
    suppressed: NDArray[np.int64]
    suppressed_first: NDArray[np.int64]
    enabled: bool = True

    @staticmethod
    def of(
        end: int,
        no_timestamps: int,
        suppressed: Collection[int],
        suppressed_first: Collection[int],
        *,
        enabled: bool = True,
    ) -> TimestampRules:
        """The rules, from plain collections of ids."""
        ids = [np.array(sorted(tokens), np.int64) for tokens in ({*suppressed, no_timestamps}, suppressed_first)]
        return TimestampRules(end, no_timestamps, no_timestamps + 1, ids[0], ids[1], enabled)

    def apply(self, logits: NDArray[np.float32], written: Sequence[int]) -> NDArray[np.float32]:
        """The logits of the next token of a window; a copy.

        Args:
            logits: `[vocab]`.
            written: the tokens of the window so far, without its prompt.
        """
        logits = logits.copy()
        logits[self.suppressed] = -np.inf
        if not written:
            logits[self.suppressed_first] = -np.inf
        if self.enabled:
            self._timestamps(logits, written)
        else:
            logits[self.timestamps :] = -np.inf
        return logits

    def _timestamps(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        first = self.timestamps
        if not written:  # the first token is a timestamp, and an early one
            logits[:first] = -np.inf
            logits[first + round(MAX_FIRST_SECONDS / SECONDS_PER_TIMESTAMP) + 1 :] = -np.inf
            return
        after_timestamp = written[-1] >= first
        after_pair = len(written) < 2 or written[-2] >= first
        if after_timestamp and after_pair:  # the text of a segment follows
            logits[first:] = -np.inf
        elif after_timestamp:  # the end of a segment: the next one begins, or the text ends
            logits[: self.end] = -np.inf
        last = next((token for token in reversed(written) if token >= first), None)
        if last is not None:
            # time does not go back, and a segment is longer than nothing
            logits[first : last if after_timestamp and not after_pair else last + 1] = -np.inf
        if _log_sum_exp(logits[first:]) > logits[:first].max():
            logits[:first] = -np.inf


def _log_sum_exp(values: NDArray[np.float32]) -> float:
    top = values.max()
    return float(top) if np.isinf(top) else float(top + np.log(np.exp(values - top).sum()))
