"""An encoder of RLX as a `System`: texts that are token ids already go through it, as `embed` runs them.

In: an encoder and a `Work`. Out: a speed, in texts per second. The peers get token ids too; RLX pools and normalises as
the model says on top of what they do. Next: `rlx/cli/compare.py`, which runs it beside others.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rlx import __version__
from rlx.cli.peers.work import Work
from rlx.cli.runner import RLX

if TYPE_CHECKING:
    from rlx.runtime.encoder import Encoder

_SEED = 0  # of the random tokens: their values do not change the work, but a run should repeat exactly


class EncoderRunner:
    """An encoder, measured in this process."""

    name = RLX
    version: str | None = __version__

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def refuses(self, work: Work) -> str | None:
        """Why it cannot do this work; None if it can."""
        if work.name != "encode":
            return "it is an encoder, not a language model"
        most = self._encoder.max_tokens
        return f"a text of {work.tokens} tokens is longer than the model's {most}" if work.tokens > most else None

    def run(self, work: Work) -> float:
        """Do the work once; gives texts per second."""
        import numpy as np

        shape = (work.sequences, work.tokens)
        ids = np.random.default_rng(_SEED).integers(0, self._encoder.vocab_size, shape).tolist()
        start = time.perf_counter()
        self._encoder.run_tokens(ids)
        return work.amount / (time.perf_counter() - start)

    def finish(self) -> None:
        """Nothing is kept from run to run."""

    def close(self) -> None:
        """The encoder is closed by whoever loaded it."""
