"""RLX itself as a `System`: a loaded model does a `Work`, through its engine, as every user's requests do.

In: a model and a `Work`. Out: a speed. Next: `rlx/cli/compare.py`, which runs it beside others.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rlx import __version__
from rlx.cli.peers.work import Work

if TYPE_CHECKING:
    from rlx.runtime.model import Model
    from rlx.runtime.request import RequestHandle

RLX = "RLX"
_SEED = 0  # of the random tokens: their values do not change the work, but a run should repeat exactly
_PAGE_SIZE = 16  # where the model does not say


class ModelRunner:
    """A model of RLX, measured in this process."""

    name = RLX
    version: str | None = __version__

    def __init__(self, model: Model) -> None:
        self._model = model
        self._deep: RequestHandle | None = None

    def refuses(self, work: Work) -> str | None:
        """Why it cannot do this work; None if it can."""
        model = self._model
        if work.name == "encode":
            return "it is a language model, not an encoder"
        longest = work.depth + work.tokens + 1
        if longest > model.context:
            return f"{longest} tokens do not fit into a context of {model.context}"
        size = model.info.get("page_size")
        page_size = size if isinstance(size, int) else _PAGE_SIZE
        pages = work.sequences * -(-longest // page_size)
        if pages > model.engine.num_free_pages:
            return f"{work.sequences} sequences of {longest} tokens do not fit into the KV cache; -c makes it larger"
        return None

    def run(self, work: Work) -> float:
        """Do the work once; gives tokens per second."""
        if work.name == "depth":
            return work.amount / self._seconds_at_depth(work)
        prompt = self._random_tokens(work.tokens if work.name == "prefill" else 1)
        max_tokens = 1 if work.name == "prefill" else work.tokens
        return work.amount / self._seconds(prompt, max_tokens, work.sequences)

    def finish(self) -> None:
        """Free the pages of the sequence that was kept for a depth."""
        if self._deep is not None:
            self._model.engine.cancel(self._deep.request.id)
            self._deep = None

    def close(self) -> None:
        """The model is closed by whoever loaded it."""
        self.finish()

    def _seconds(self, prompt: list[int], max_tokens: int, sequences: int) -> float:
        """Seconds from fresh sequences to the last of `max_tokens` greedy tokens of each: that many steps.

        The prompt is one step (or several, if it is long) with logits for its last row only; each further token is a
        step of one row for each sequence. With a prompt of one token, all the steps are of that kind.
        """
        engine = self._model.engine
        start = time.perf_counter()
        handles = [self._add(prompt, max_tokens) for _ in range(sequences)]
        while any(handle.finish is None for handle in handles):
            engine.step()
        seconds = time.perf_counter() - start
        for handle in handles:
            _raise_error(handle)
        return seconds

    def _seconds_at_depth(self, work: Work) -> float:
        """Seconds of `tokens` steps of one sequence that has at least `depth` tokens.

        The sequence is kept for the next run, which goes on where this one ended, for as long as the context lasts: a
        prompt of 8192 tokens takes longer than what is measured after it.
        """
        handle = self._deep
        if handle is None or work.depth + len(handle.sampled) + work.tokens >= self._model.context:
            self.finish()
            handle = self._deep = self._add(self._random_tokens(work.depth), None)
            self._step_until(handle, 1)
        start, seen = time.perf_counter(), len(handle.sampled)
        self._step_until(handle, seen + work.tokens)
        return time.perf_counter() - start

    def _step_until(self, handle: RequestHandle, tokens: int) -> None:
        while len(handle.sampled) < tokens and handle.finish is None:
            self._model.engine.step()
        _raise_error(handle)

    def _add(self, prompt: list[int], max_tokens: int | None) -> RequestHandle:
        from rlx.runtime.request import Request
        from rlx.runtime.sampler import SamplingOptions

        options = SamplingOptions(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        return self._model.engine.add(Request(prompt, options))

    def _random_tokens(self, count: int) -> list[int]:
        import numpy as np

        return [int(token) for token in np.random.default_rng(_SEED).integers(0, self._model.vocab_size, count)]


def _raise_error(handle: RequestHandle) -> None:
    if handle.finish is not None and handle.finish.error is not None:
        raise handle.finish.error
