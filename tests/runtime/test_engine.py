"""The engine: whatever is mixed, paused, cancelled or interrupted, each request gets what it gets alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.errors import ContextLengthError, InputError, OptionError, RlxError
from rlx.runtime.engine import Engine, Request, RequestHandle
from rlx.runtime.sampler import SamplingOptions
from tests.runtime.toy import VOCAB, ToyStep, alone, toy_logits

GREEDY = SamplingOptions(temperature=0.0, max_tokens=6)
CONTEXT = 24


def run_to_the_end(engine: Engine, limit: int = 10_000) -> None:
    for _ in range(limit):
        if not engine.num_requests:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


def check(handle: RequestHandle, context: int) -> None:
    request = handle.request
    seeded = SamplingOptions.from_keywords({"seed": handle.seed}, request.options)
    assert handle.sampled == alone(request.prompt_tokens, seeded, context, request.eos_ids)
    assert handle.finish is not None


def tokens_of(handle: RequestHandle) -> list[int]:
    return [sampled.token for sampled in handle.sampled]


OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.8]),
        "max_tokens": st.sampled_from([1, 2, 9, None]),
        "repetition_penalty": st.sampled_from([1.0, 1.4]),
        "penalty_window": st.sampled_from([-1, 3]),
        "ignore_eos": st.booleans(),
        "logprobs": st.sampled_from([None, 2]),
    }
)
REQUEST = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=CONTEXT - 1),
    OPTIONS,
    st.integers(0, 6),  # the step before which it arrives
    st.sampled_from([None, None, None, 1, 4, 9]),  # the step before which it is cancelled
)


@settings(max_examples=120, deadline=None)
@given(
    requests=st.lists(REQUEST, min_size=1, max_size=6),
    page_size=st.integers(1, 7),
    spare_pages=st.integers(0, 12),
    max_step_tokens=st.sampled_from([1, 2, 5, 16, 64]),
    max_sequences=st.integers(1, 6),
    num_slots=st.sampled_from([0, 1, 2, 6]),
    interrupts=st.sets(st.integers(0, 12), max_size=3),
)
def test_every_request_gets_what_it_gets_alone(
    requests: list[tuple[list[int], dict[str, Any], int, int | None]],
    page_size: int,
    spare_pages: int,
    max_step_tokens: int,
    max_sequences: int,
    num_slots: int,
    interrupts: set[int],
) -> None:
    num_pages = -(-CONTEXT // page_size) + spare_pages
    program = ToyStep(num_pages, page_size, CONTEXT, max_step_tokens, num_slots=num_slots)

    def interrupt() -> None:
        if len(program.calls) in interrupts:
            raise KeyboardInterrupt

    program.before_return = interrupt
    engine = Engine(program, max_step_tokens=max_step_tokens, max_sequences=max_sequences)
    handles: dict[int, RequestHandle] = {}
    cancelled: set[int] = set()
    eos_ids = frozenset({3, 17})
    step = 0
    while len(handles) < len(requests) or engine.num_requests:
        for index, (prompt, options, arrives, cancels) in enumerate(requests):
            if index not in handles and arrives <= step:
                parsed = SamplingOptions.from_keywords(options | {"seed": index})
                handles[index] = engine.add(Request(prompt, parsed, str(index), eos_ids))
            if index in handles and cancels == step and handles[index].finish is None:
                engine.cancel(str(index))
                cancelled.add(index)
        try:
            engine.step()
        except KeyboardInterrupt:
            assert engine.num_free_pages == num_pages
        step += 1
        assert step < 5000
    for index, handle in handles.items():
        assert handle.finish is not None
        if index in cancelled:
            assert handle.finish.reason == "cancelled"
            expected = alone(handle.request.prompt_tokens, handle.request.options, CONTEXT, eos_ids)
            assert handle.sampled == expected[: len(handle.sampled)]
        else:
            check(handle, CONTEXT)
    assert engine.num_free_pages == num_pages


def test_chunks_and_batches_are_used() -> None:
    """Three prompts of 10 tokens and 8 rows a step: chunks first, then one row of each, all in the same steps."""
    program = ToyStep()
    engine = Engine(program, max_step_tokens=8)
    handles = [engine.add(Request([index] * 10, GREEDY)) for index in range(3)]
    run_to_the_end(engine)
    for handle in handles:
        check(handle, 64)
    assert program.calls[:4] == [8, 8, 8, 8]
    assert max(program.calls) == 8
    assert sum(program.calls) == 3 * (10 + 5)
    # 45 rows take 6 full steps at least; one row of each at the end takes a few more.
    assert len(program.calls) <= 10


def test_running_sequences_are_not_held_up_by_a_prompt() -> None:
    program = ToyStep()
    engine = Engine(program, max_step_tokens=4)
    first = engine.add(Request([1], SamplingOptions(temperature=0, max_tokens=12)))
    engine.step()
    engine.add(Request([2] * 20, GREEDY))
    for count in range(2, 8):
        engine.step()
        assert len(first.sampled) == count


def test_pausing_frees_pages_and_changes_no_token() -> None:
    """Two sequences of up to 16 tokens on 5 pages of 4: the younger one must be paused, and computed again."""
    program = ToyStep(num_pages=5, page_size=4, max_context=16)
    engine = Engine(program)
    options = SamplingOptions(temperature=0, max_tokens=11)
    handles = [engine.add(Request([index, 5, 6, 7], options)) for index in range(2)]
    finished: list[str] = []
    while engine.num_requests:
        finished += [event.request_id for event in engine.step() if event.finish]
    for handle in handles:
        check(handle, 16)
    assert finished == [handle.request.id for handle in handles]
    rows_alone = 2 * (4 + 10)
    assert sum(program.calls) > rows_alone


def test_a_paused_request_goes_on_before_later_ones_begin() -> None:
    """The second request is paused while the first one runs; its place is not given to the third."""
    program = ToyStep(num_pages=5, page_size=4, max_context=16)
    engine = Engine(program, max_sequences=2)
    options = SamplingOptions(temperature=0, max_tokens=11)
    first, second, third = (engine.add(Request([index, 5, 6, 7], options)) for index in range(3))
    run_to_the_end(engine)
    assert sum(program.calls) > 3 * (4 + 10)
    assert second.finish is not None
    assert first.stats.last_token is not None
    assert third.stats.scheduled is not None
    assert third.stats.scheduled > first.stats.last_token


def test_a_request_is_not_admitted_to_be_paused_at_once() -> None:
    """Four pages of 4: the first request will need its second page, so the second prompt of 3 pages has to wait."""
    program = ToyStep(num_pages=4, page_size=4, max_context=16)
    engine = Engine(program)
    handles = [
        engine.add(Request([1, 2, 3], SamplingOptions(temperature=0, max_tokens=5))),
        engine.add(Request([1] * 12, SamplingOptions(temperature=0, max_tokens=2))),
    ]
    run_to_the_end(engine)
    for handle in handles:
        check(handle, 16)
    assert sum(program.calls) == (3 + 4) + (12 + 1)


def test_events_tell_all() -> None:
    engine = Engine(ToyStep())
    handle = engine.add(Request([1, 2], GREEDY, "a"))
    events = [event for _ in range(6) for event in engine.step()]
    assert [event.sampled for event in events] == handle.sampled
    assert [event.finish for event in events] == [None] * 5 + [handle.finish]
    assert handle.finish is not None
    assert (handle.finish.reason, handle.finish.detail) == ("length", "max_tokens")
    assert engine.step() == []


def test_context_is_the_end() -> None:
    engine = Engine(ToyStep(num_pages=3, page_size=4, max_context=100))
    assert engine.context == 12
    handle = engine.add(Request([1] * 7, SamplingOptions(temperature=0)))
    run_to_the_end(engine)
    assert len(handle.sampled) == 5
    assert handle.finish is not None
    assert (handle.finish.reason, handle.finish.detail) == ("length", "context")


def test_eos_ends_and_ignore_eos_never_chooses_it() -> None:
    free = alone([1, 2, 3], SamplingOptions(temperature=0, max_tokens=5))
    eos = frozenset({free[2].token})
    engine = Engine(ToyStep())
    ends = engine.add(Request([1, 2, 3], SamplingOptions(temperature=0, max_tokens=5), eos_ids=eos))
    goes_on = engine.add(Request([1, 2, 3], SamplingOptions(temperature=0, ignore_eos=True, max_tokens=5), eos_ids=eos))
    run_to_the_end(engine)
    assert tokens_of(ends) == [sampled.token for sampled in free[:3]]
    assert ends.finish is not None
    assert (ends.finish.reason, ends.finish.detail) == ("stop", "eos")
    assert len(goes_on.sampled) == 5
    assert not eos & set(tokens_of(goes_on))


def test_refusals() -> None:
    engine = Engine(ToyStep(max_context=8))
    with pytest.raises(ContextLengthError) as caught:
        engine.add(Request([1] * 8))
    assert "8 prompt tokens" in str(caught.value)
    assert "the context is 8 tokens" in str(caught.value)
    engine.add(Request([1] * 7, id="a"))
    bad: list[Any] = [[], [VOCAB], [1, -1], [1.5], ["a"], [None]]
    for tokens in bad:
        with pytest.raises(InputError):
            engine.add(Request(tokens))
    with pytest.raises(InputError, match="is running"):
        engine.add(Request([1], id="a"))
    with pytest.raises(OptionError, match="logit_bias"):
        engine.add(Request([1], SamplingOptions(logit_bias={VOCAB: 1.0})))
    with pytest.raises(OptionError, match="max_step_tokens"):
        Engine(ToyStep(), max_step_tokens=0)
    with pytest.raises(OptionError, match="max_sequences"):
        Engine(ToyStep(), max_sequences=0)
    assert engine.num_requests == 1


def test_a_prompt_list_may_be_changed_afterwards() -> None:
    engine = Engine(ToyStep())
    prompt = [1, 2, 3]
    handle = engine.add(Request(prompt, GREEDY))
    prompt.clear()
    run_to_the_end(engine)
    assert handle.sampled == alone([1, 2, 3], GREEDY)


class BrokenStep(ToyStep):
    """Logits are NaN after a sequence that begins with token 0."""

    def run(
        self, tokens: Any, positions: Any, sequences: Any, page_table: Any, logit_rows: Any, slots: Any = None
    ) -> Any:
        logits = super().run(tokens, positions, sequences, page_table, logit_rows)
        for index, row in enumerate(logit_rows):
            if self.cache[page_table[sequences[row], 0], 0] == 0:
                logits[index, 4] = np.nan
        return logits


def strike(line: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that plays Ctrl-C just before the `line`-th line that the runtime executes.

    `_exclusive` is left out: a tracer can strike between the end of a `with` and the release of its lock, a signal
    cannot.
    """
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        file = Path(frame.f_code.co_filename).name
        if file not in ("engine.py", "sampler.py", "kv_cache.py") or frame.f_code.co_name == "_exclusive":
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise KeyboardInterrupt
        return trace

    return trace


def test_interrupted_at_any_line_the_engine_goes_on() -> None:
    """Two requests that have to pause each other, interrupted once, at every eleventh line in turn."""
    options = SamplingOptions(temperature=0.9, max_tokens=4, repetition_penalty=1.2)  # no seed: it draws its own
    previous = sys.gettrace()
    line, is_reached = 1, True
    while is_reached:
        engine = Engine(ToyStep(num_pages=3, page_size=2, max_context=6))
        handles = [engine.add(Request([index, 4], options)) for index in range(2)]
        is_reached = False
        sys.settrace(strike(line))
        try:
            while engine.num_requests:
                engine.step()
        except KeyboardInterrupt:
            is_reached = True
        finally:
            sys.settrace(previous)
        run_to_the_end(engine)
        assert engine.num_free_pages == 3
        for handle in handles:
            check(handle, 6)
        line += 11
    assert line > 500


def test_one_broken_request_does_not_touch_the_others() -> None:
    engine = Engine(BrokenStep())
    broken, sound = engine.add(Request([0, 1], GREEDY)), engine.add(Request([1, 0], GREEDY))
    events = engine.step()
    assert events[0].sampled is None
    assert events[0].finish is broken.finish
    assert broken.finish is not None
    assert isinstance(broken.finish.error, RlxError)
    run_to_the_end(engine)
    check(sound, 64)
    assert engine.num_free_pages == 64


def test_cancel_at_any_time() -> None:
    engine = Engine(ToyStep(), max_sequences=1)
    running, waiting = engine.add(Request([1], GREEDY)), engine.add(Request([2], GREEDY))
    engine.step()
    engine.cancel(waiting.request.id)
    engine.cancel(running.request.id)
    engine.cancel("unknown")
    engine.cancel(running.request.id)
    assert engine.num_requests == 0
    assert engine.num_free_pages == 64
    assert engine.step() == []
    assert [handle.finish and handle.finish.reason for handle in (running, waiting)] == ["cancelled"] * 2


def test_cancel_within_a_step_does_not_block() -> None:
    """A garbage collector may drop a stream while the engine works."""
    program = ToyStep()
    engine = Engine(program)
    handle, other = engine.add(Request([1], GREEDY)), engine.add(Request([2], GREEDY))
    program.before_return = lambda: engine.cancel(handle.request.id)
    run_to_the_end(engine)
    assert handle.finish is not None
    assert handle.finish.reason == "cancelled"
    check(other, 64)


def test_threads_share_an_engine() -> None:
    engine = Engine(ToyStep(), max_step_tokens=5)
    handles = [engine.add(Request([index, 1], GREEDY)) for index in range(8)]

    def follow(handle: RequestHandle) -> None:
        while handle.finish is None:
            engine.wait(handle, len(handle.sampled))

    threads = [threading.Thread(target=follow, args=(handle,)) for handle in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    for handle in handles:
        check(handle, 64)


def test_waiting_for_a_stranger_is_an_error() -> None:
    handle = Engine(ToyStep()).add(Request([1], GREEDY))
    with pytest.raises(RlxError, match="does not belong"):
        Engine(ToyStep()).wait(handle, 0)


@pytest.mark.parametrize("num_slots", [0, 1, 3])
@pytest.mark.parametrize("max_step_tokens", [1, 3, 512])
def test_logits_in_chunks(max_step_tokens: int, num_slots: int) -> None:
    program = ToyStep(num_pages=6, page_size=4, max_context=24, max_rows=max_step_tokens, num_slots=num_slots)
    engine = Engine(program, max_step_tokens=max_step_tokens)
    handles = [engine.add(Request([index, 3], GREEDY)) for index in range(3)]
    engine.step()
    tokens = list(range(24))
    expected = np.stack([toy_logits(tokens[: count + 1]) for count in range(24)])
    np.testing.assert_array_equal(engine.logits(tokens), expected)
    run_to_the_end(engine)
    for handle in handles:
        check(handle, 24)
    assert engine.num_free_pages == 6
    with pytest.raises(ContextLengthError, match="25 prompt tokens"):
        engine.logits([0] * 25)
    with pytest.raises(InputError):
        engine.logits([])


def test_interrupted_logits_leave_the_engine_whole() -> None:
    program = ToyStep(num_pages=6, page_size=4, max_context=24)
    engine = Engine(program)
    handle = engine.add(Request([1, 3], GREEDY))
    engine.step()

    def interrupt() -> None:
        raise KeyboardInterrupt

    program.before_return = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.logits(list(range(24)))
    program.before_return = lambda: None
    run_to_the_end(engine)
    check(handle, 24)
    assert engine.num_free_pages == 6


def test_statistics() -> None:
    """With a clock that ticks once per reading: added at 1, scheduled at 2, first token at 5 (after two chunks), ..."""
    ticks = iter(range(1, 100))
    engine = Engine(ToyStep(), max_step_tokens=4, clock=lambda: float(next(ticks)))
    handle = engine.add(Request([1] * 6, SamplingOptions(temperature=0, max_tokens=3)))
    run_to_the_end(engine)
    stats = handle.stats
    assert (stats.added, stats.scheduled, stats.first_token, stats.last_token) == (1, 2, 5, 9)
    assert (stats.prompt_tokens, stats.prefill_seconds, stats.first_token_seconds, stats.decode_seconds) == (6, 3, 4, 4)
