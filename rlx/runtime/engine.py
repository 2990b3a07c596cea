"""Many requests, one step program: schedule, run, postprocess.

In: `Request`s (`request.py`), at any time. Out: tokens, in `RequestHandle`s and as `TokenEvent`s. A step takes one row
of every sequence that is generating, then chunks of the prompts, oldest first, up to `max_step_tokens` rows. Room for a
whole prompt is reserved when it is admitted. When a generating sequence needs a page and none is free, the
youngest one is paused: its pages (and its recurrent state) are freed and it is computed anew from its tokens later.

What a request generates does not depend on the others: the rows of a step are independent (`step.py`), and a draw
depends on the request's seed and the token's index (`sampler.py`). The tokens in the handles are the only state that
matters: all else is derived from them, which is how the engine recovers when a step is interrupted anywhere.
Next: `generate.py`.
"""

from __future__ import annotations

import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rlx.errors import ContextLengthError, InputError, OptionError, RlxError
from rlx.runtime.kv_cache import PageAllocator, SequenceCache
from rlx.runtime.request import Finish, Request, RequestHandle, RequestStats, TokenEvent
from rlx.runtime.sampler import Sampler
from rlx.runtime.state_slots import SlotAllocator
from rlx.runtime.step import StepProgram

__all__ = ["Engine", "Finish", "Request", "RequestHandle", "RequestStats", "TokenEvent", "check_tokens"]


@dataclass(slots=True, eq=False)
class _Sequence:
    """The engine's side of a request: tokens = prompt + generated, the first `computed` of them are in the cache."""

    handle: RequestHandle
    arrival: int
    tokens: list[int]
    sampler: Sampler
    cache: SequenceCache
    computed: int = 0

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet: 1 while generating, more while the prompt is read."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class _Chunk:
    """`count` rows of one sequence in one step, from position `start`."""

    sequence: _Sequence
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def wants_logits(self) -> bool:
        """True when the step reaches the end of the sequence, so that its next token can be chosen."""
        return self.stop == len(self.sequence.tokens)


class Engine:
    """Runs any number of requests through one step program. Any thread may call any method.

    Args:
        step: the compiled model.
        max_step_tokens: most rows of one step; a longer prompt is read in several.
        max_sequences: most sequences in flight (at most one per row of a step, and one per slot of recurrent state);
            the others wait their turn.
        clock: seconds, for the statistics.
    """

    def __init__(
        self,
        step: StepProgram,
        *,
        max_step_tokens: int = 512,
        max_sequences: int = 64,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        for name, value in (("max_step_tokens", max_step_tokens), ("max_sequences", max_sequences)):
            if value < 1:
                raise OptionError(f"{name} is not a number of rows", where=name, found=value, expected="at least 1")
        self._program = step
        self._max_step_tokens = max_step_tokens
        self._max_sequences = min(max_sequences, max_step_tokens, step.num_slots or max_sequences)
        self._clock = clock
        self._allocator = PageAllocator(step.num_pages, step.page_size)
        self._slots = SlotAllocator(step.num_slots)
        self._arrivals = 0
        self._live: dict[str, _Sequence] = {}
        self._running: list[_Sequence] = []  # oldest first, and all older than any that waits
        self._waiting: deque[_Sequence] = deque()  # oldest first
        self._cancelled: deque[str] = deque()
        self._lock = threading.Lock()

    @property
    def context(self) -> int:
        """Most tokens one sequence may have, prompt and generated together."""
        return min(self._program.max_context, self._program.num_pages * self._program.page_size)

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        with self._exclusive():
            return len(self._live)

    @property
    def num_free_pages(self) -> int:
        """Pages of the KV cache that nobody owns."""
        with self._exclusive():
            return self._allocator.num_free

    def add(self, request: Request) -> RequestHandle:
        """Queue a request; nothing runs yet.

        Raises:
            InputError: the prompt is empty, a token is not in the vocabulary, or the id is in use.
            ContextLengthError: the prompt leaves no room for one more token.
            OptionError: an option names a token beyond the vocabulary.
        """
        prompt = check_tokens(request.prompt_tokens, self._program.vocab_size)
        request = replace(request, prompt_tokens=tuple(prompt))  # the caller may change its list afterwards
        if len(prompt) >= self.context:
            raise _too_long(len(prompt), self.context, "one place is for the token to generate", self.context - 1)
        sampler = self._sampler(request, prompt, seed=None)
        with self._exclusive():
            is_known = request.id in self._live
            if not is_known:
                handle = RequestHandle(request, sampler.seed, RequestStats(len(prompt), self._clock()))
                sequence = _Sequence(handle, self._arrivals, prompt, sampler, self._new_cache())
                self._arrivals += 1
                self._waiting.append(sequence)
                self._live[request.id] = sequence
                return handle
        raise InputError("a request with this id is running", found=request.id, expected="an id not in use")

    def step(self) -> list[TokenEvent]:
        """Run the model once for whoever has work. Returns what happened; empty when there was nothing to do."""
        with self._exclusive():
            return self._step()

    def wait(self, handle: RequestHandle, seen: int) -> None:
        """Step until `handle` has more than `seen` tokens or has ended."""
        with self._exclusive():
            while len(handle.sampled) <= seen and handle.finish is None and handle.request.id in self._live:
                self._step()
        if len(handle.sampled) <= seen and handle.finish is None:
            raise RlxError("this request does not belong to this engine", found=handle.request.id)

    def cancel(self, request_id: str) -> None:
        """End a request and free its pages; nothing happens if it has ended or never was.

        The work is done when the engine is used next. So this never blocks: a garbage collector that drops a stream may
        call it in the middle of a step.
        """
        self._cancelled.append(request_id)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """`[len(tokens), vocab_size]` float32: logits after every token of one sequence.

        Running requests go on afterwards; some may be paused to make room.

        Raises:
            InputError, ContextLengthError: as for `add`, except that the context may be filled.
        """
        checked = check_tokens(tokens, self._program.vocab_size)
        if len(checked) > self.context:
            raise _too_long(len(checked), self.context, "every token needs a place", self.context)
        result = np.empty((len(checked), self._program.vocab_size), np.float32)
        with self._exclusive():
            cache = self._new_cache()
            while not cache.fits(len(checked)):
                self._pause(self._running[-1])
            cache.grow(len(checked))
            try:
                for start in range(0, len(checked), self._max_step_tokens):
                    part = np.array(checked[start : start + self._max_step_tokens], np.int32)
                    rows = np.arange(part.size, dtype=np.int32)
                    table = cache.table_row()[None, :]
                    positions = rows + np.int32(start)
                    result[start : start + part.size] = self._program.run(
                        part, positions, np.zeros_like(part), table, rows, **self._slots_of([cache])
                    )
            finally:
                cache.release()
        return result

    @contextmanager
    def _exclusive(self) -> Generator[None]:
        """One caller at a time, requests that were cancelled gone; whatever interrupts it, the engine stays usable."""
        with self._lock:
            try:
                self._drop_cancelled()
                yield
            except BaseException:
                self._recover()
                raise

    def _step(self) -> list[TokenEvent]:
        self._drop_cancelled()
        chunks = self._schedule()
        if not chunks:
            return []
        logits = self._run(chunks)
        return self._postprocess(chunks, logits)

    def _schedule(self) -> list[_Chunk]:
        """Choose the rows of the next step. Every running sequence gets at least one row before long: there are no more
        running sequences than rows, and those that generate take one each."""
        chunks: list[_Chunk] = []
        budget = self._max_step_tokens

        def take(sequence: _Sequence) -> None:
            nonlocal budget
            chunk = _Chunk(sequence, sequence.computed, min(sequence.pending, budget))
            chunks.append(chunk)
            budget -= chunk.count

        position = 0
        while position < len(self._running):  # making room may shorten the list, but only behind `position`
            sequence = self._running[position]
            if sequence.pending == 1 and self._make_room(sequence):
                take(sequence)
            position += 1
        for sequence in self._running:
            if sequence.pending > 1 and budget:
                take(sequence)
        while self._waiting and len(self._running) < self._max_sequences and budget:
            sequence = self._waiting[0]
            # One page more for each running sequence, or what is admitted now would soon be paused again.
            if sequence.cache.missing(len(sequence.tokens)) + len(self._running) > self._allocator.num_free:
                break
            sequence.cache.grow(len(sequence.tokens))
            self._running.append(self._waiting.popleft())
            take(sequence)
        return chunks

    def _make_room(self, sequence: _Sequence) -> bool:
        """See to it that all tokens of `sequence` have a page; False if it had to be paused itself."""
        while sequence.cache.missing(len(sequence.tokens)) > self._allocator.num_free:
            youngest = self._running[-1]
            self._pause(youngest)
            if youngest is sequence:
                return False
        sequence.cache.grow(len(sequence.tokens))
        return True

    def _pause(self, sequence: _Sequence) -> None:
        """Take back the pages of the youngest running sequence; it will be computed anew."""
        self._running.remove(sequence)
        self._waiting.appendleft(sequence)
        sequence.computed = 0
        sequence.cache.release()

    def _run(self, chunks: list[_Chunk]) -> NDArray[np.float32]:
        """`[R, vocab_size]` logits of the chunks that want them, in their order."""
        now = self._clock()
        tokens: list[int] = []
        positions: list[int] = []
        logit_rows: list[int] = []
        table = np.zeros((len(chunks), max(chunk.sequence.cache.num_pages for chunk in chunks)), np.int32)
        for index, chunk in enumerate(chunks):
            sequence = chunk.sequence
            tokens += sequence.tokens[chunk.start : chunk.stop]
            positions += range(chunk.start, chunk.stop)
            table[index, : sequence.cache.num_pages] = sequence.cache.table_row()
            if chunk.wants_logits:
                logit_rows.append(len(tokens) - 1)
            if sequence.handle.stats.scheduled is None:
                sequence.handle.stats.scheduled = now
        return self._program.run(
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            np.repeat(np.arange(len(chunks), dtype=np.int32), [chunk.count for chunk in chunks]),
            table,
            np.array(logit_rows, np.int32),
            **self._slots_of([chunk.sequence.cache for chunk in chunks]),
        )

    def _slots_of(self, caches: Sequence[SequenceCache]) -> dict[str, NDArray[np.int32]]:
        """The argument `slots` of a run, for a program that has some."""
        return {"slots": np.array([cache.slot for cache in caches], np.int32)} if self._slots.num_slots else {}

    def _new_cache(self) -> SequenceCache:
        return SequenceCache(self._allocator, self._slots)

    def _postprocess(self, chunks: list[_Chunk], logits: NDArray[np.float32]) -> list[TokenEvent]:
        now = self._clock()
        finished = [chunk for chunk in chunks if chunk.wants_logits]
        for chunk in chunks:
            chunk.sequence.computed = chunk.stop
        return [self._choose(chunk.sequence, logits[row], now) for row, chunk in enumerate(finished)]

    def _choose(self, sequence: _Sequence, logits: NDArray[np.float32], now: float) -> TokenEvent:
        """Choose the next token of one sequence; an error ends this request only."""
        handle = sequence.handle
        try:
            sampled = sequence.sampler.sample(logits)
        except RlxError as error:
            finish = Finish("error", error.what, error)
            self._retire(sequence, finish)
            return TokenEvent(handle.request.id, None, finish)
        handle.sampled.append(sampled)  # from here on the token exists, whatever interrupts the rest
        sequence.tokens.append(sampled.token)
        sequence.sampler.accept(sampled.token)
        handle.stats.last_token = now
        if handle.stats.first_token is None:
            handle.stats.first_token = now
        finish = self._finish_of(handle)
        if finish is not None:
            self._retire(sequence, finish)
        return TokenEvent(handle.request.id, sampled, finish)

    def _finish_of(self, handle: RequestHandle) -> Finish | None:
        """Whether the tokens generated so far are the end; a function of the handle alone."""
        options, sampled = handle.request.options, handle.sampled
        if not sampled:
            return None
        if sampled[-1].token in handle.request.eos_ids:
            return Finish("stop", "eos")
        if len(sampled) == options.max_tokens:
            return Finish("length", "max_tokens")
        if handle.stats.prompt_tokens + len(sampled) >= self.context:
            return Finish("length", "context")
        return None

    def _retire(self, sequence: _Sequence, finish: Finish) -> None:
        sequence.handle.finish = finish
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.cache.release()
        del self._live[sequence.handle.request.id]

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            sequence = self._live.get(self._cancelled.popleft())
            if sequence is not None:
                self._retire(sequence, Finish("cancelled"))

    def _recover(self) -> None:
        """Start over from the handles: every request that has not ended waits, and is computed anew from its tokens."""
        self._allocator = PageAllocator(self._program.num_pages, self._program.page_size)
        self._slots = SlotAllocator(self._program.num_slots)
        self._running.clear()
        self._waiting.clear()
        for key, sequence in sorted(self._live.items(), key=lambda item: item[1].arrival):
            handle = sequence.handle
            handle.finish = handle.finish or self._finish_of(handle)
            if handle.finish is not None:
                del self._live[key]
                continue
            prompt = list(handle.request.prompt_tokens)
            generated = [sampled.token for sampled in handle.sampled]
            sequence.tokens, sequence.computed = prompt + generated, 0
            sequence.cache = self._new_cache()
            sequence.sampler = self._sampler(handle.request, prompt, seed=handle.seed)
            for token in generated:
                sequence.sampler.accept(token)
            self._waiting.append(sequence)

    def _sampler(self, request: Request, prompt: list[int], *, seed: int | None) -> Sampler:
        banned = request.eos_ids if request.options.ignore_eos else frozenset[int]()
        return Sampler(request.options, self._program.vocab_size, prompt, banned, seed=seed)


def check_tokens(tokens: Sequence[int], vocab_size: int) -> list[int]:
    """The tokens as plain ints.

    Raises:
        InputError: there is none, or one is not a token id below `vocab_size`.
    """
    checked: list[int] = []
    for place, token in enumerate(tokens):
        try:
            value = operator.index(token)
        except TypeError:
            value = -1
        if not 0 <= value < vocab_size:
            raise InputError(
                "a prompt token is not in the vocabulary",
                where=f"token {place} of the prompt",
                found=repr(token),
                expected=f"an integer from 0 to {vocab_size - 1}",
            )
        checked.append(value)
    if not checked:
        raise InputError("the prompt has no tokens", found="an empty prompt", expected="at least one token")
    return checked


def _too_long(found: int, context: int, why: str, most: int) -> ContextLengthError:
    return ContextLengthError(
        "the prompt does not fit into the context",
        found=f"{found} prompt tokens",
        expected=f"at most {most}: the context is {context} tokens, and {why}",
        fix="shorten the prompt, or load the model with a larger context",
    )
