"""The native side of a run: the step loop and the worker loop, emitted like the kernels.

Shared state is an array of 64-bit words (`Words`), one cache line for each thing that several threads touch. A worker
is sleeping (in Python, on a lock), ready (spinning here), claimed for a run, or running. A run claims whoever is ready;
results do not depend on how many that is.

The units of a step are cut into chunks that threads claim one after the other, and a step is over when all its chunks
are done. Threads wait at the end of each group of steps that run beside each other. So a thread that the system has put
aside holds up no step unless it sits in the middle of a chunk: the others do its share, and when it comes back it walks
past what is done.

A traced runtime is another one, with a clock read before and after each chunk and each wait (`native_trace.py`); it is
compiled when somebody asks for it, and the ordinary one knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rlx.backends.cpu.emit import I32, I64, PTR, Emit, Val, ir
from rlx.backends.cpu.native_trace import emit_clock, recorded
from rlx.backends.cpu.target import Target
from rlx.backends.cpu.words import CLAIMED, LINE, READY, RUNNING, SLEEPING, STEP, WORDS

SPINS_BEFORE_YIELD = 4000
CHUNKS_PER_THREAD = 1


Recorded = Callable[[Emit, Val, Val, Val, Val], AbstractContextManager[None]]
"""`(emit, state, thread, step, units)`: what surrounds a piece of work, or a wait, whose units are -1."""


def emit_runtime(module: Any, target: Target, *, traced: bool = False) -> None:
    """Add `rlx_run` and `rlx_worker` to a module; a traced runtime has `rlx_clock` too."""
    if traced:
        emit_clock(*_function(module, target, "rlx_clock", I64, []), finish=_finish)
    run_steps = _emit_run_steps(module, target, recorded if traced else _unrecorded)
    _emit_run(module, target, run_steps)
    _emit_worker(module, target, run_steps)


def _unrecorded(e: Emit, state: Val, thread: Val, step: Val, units: Val) -> AbstractContextManager[None]:
    return nullcontext()


class _Callee:
    """The address of a function together with its type, which is what llvmlite's call looks at."""

    def __init__(self, address: Val, arguments: list[Any]) -> None:
        self.address, self.type = address.v, address.type
        self.function_type = ir.FunctionType(ir.VoidType(), arguments)

    def get_reference(self) -> str:
        """How the operand is printed."""
        return str(self.address.get_reference())


def _function(module: Any, target: Target, name: str, result: Any, arguments: list[Any]) -> tuple[Emit, list[Val], Any]:
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    entry, start = function.append_basic_block("entry"), function.append_basic_block("start")
    e = Emit(module, ir.IRBuilder(start), target, entry)
    return e, [Val(e, argument) for argument in function.args], function


def _finish(e: Emit, result: Val | None) -> None:
    if result is None:
        e.b.ret_void()
    else:
        e.b.ret(result.v)
    with e.b.goto_block(e.entry):
        e.b.branch(e.entry.function.blocks[1])


def _word(e: Emit, state: Val, word: Val | int) -> Val:
    return e.at(state, word, I64)


def _atomic_load(e: Emit, pointer: Val) -> Val:
    return Val(e, e.b.load_atomic(pointer.v, "acquire", 8, typ=I64))


def _atomic_store(e: Emit, value: Val | int, pointer: Val) -> None:
    e.b.atomic_rmw("xchg", pointer.v, e.typed(value, I64).v, "acq_rel")


def _compare_and_swap(e: Emit, pointer: Val, old: int, new: int) -> Val:
    pair = e.b.cmpxchg(pointer.v, e.i64(old).v, e.i64(new).v, "seq_cst", "seq_cst")
    return Val(e, e.b.extract_value(pair, 1))


def _pause(e: Emit) -> None:
    """Tell the core that this is a spin loop."""
    if e.target.is_x86:
        e.void_call("llvm.x86.sse2.pause")
    elif e.target.is_arm:
        e.void_call("llvm.aarch64.hint", e.typed(1, I32))


def _spin(e: Emit, state: Val, keep_on: Callable[[], Val]) -> None:
    """Spin while the condition holds; give the core away now and then if that takes long."""
    spins = e.var(e.i64(0))
    with e.loop_while(keep_on):
        _pause(e)
        spins.set(spins.get() + 1)
        with e.when(spins.get() > SPINS_BEFORE_YIELD):
            spins.set(0)
            address = _word(e, state, WORDS.yield_now)
            with e.when(e.load(address, I64) > 0):
                e.b.call(_Callee(e.load(address, PTR), []), [])


def _emit_run_steps(module: Any, target: Target, recorded: Recorded) -> Any:
    """`rlx_run_steps(state, thread)`: take chunks of every step in order until the last step is done."""
    e, (state, thread), function = _function(module, target, "rlx_run_steps", ir.VoidType(), [PTR, I64])
    function.linkage = "internal"
    threads, count = (e.load(_word(e, state, word), I64) for word in (WORDS.threads, WORDS.count))
    steps, fault = (e.load(_word(e, state, word), PTR) for word in (WORDS.steps, WORDS.fault))
    with e.loop(0, count) as index:
        row = e.at(steps, index * STEP.count, I64)
        units = e.load(row, I64, STEP.units)
        with e.either(threads.equals(1)) as (alone, together):
            with alone, recorded(e, state, thread, index, units):
                _call_kernel(e, row, e.i64(0), units, fault)
            with together:
                shared = _shared_chunk(e, row, units, _chunks(e, units, threads))
                with shared as (begin, end), recorded(e, state, thread, index, end - begin):
                    _call_kernel(e, row, begin, end, fault)
                with recorded(e, state, thread, index, e.i64(-1)), e.loop(0, e.load(row, I64, STEP.group)) as back:
                    _wait_for_step(e, state, e.at(row, -(back * STEP.count), I64), threads)
    _finish(e, None)
    return function


def _chunks(e: Emit, units: Val, threads: Val) -> Val:
    """How many chunks the units of a step make: whoever takes one and whoever waits for all must agree."""
    return e.minimum(units, threads * CHUNKS_PER_THREAD)


def _wait_for_step(e: Emit, state: Val, row: Val, threads: Val) -> None:
    chunks = _chunks(e, e.load(row, I64, STEP.units), threads)
    done = _word(e, row, STEP.done)
    _spin(e, state, lambda: _atomic_load(e, done) < chunks)


@contextmanager
def _shared_chunk(e: Emit, row: Val, units: Val, chunks: Val) -> Generator[tuple[Val, Val]]:
    """The first and the last unit, exclusive, of each chunk that this thread gets; the body is done for each."""
    claimed, done = _word(e, row, STEP.claimed), _word(e, row, STEP.done)
    chunk = e.var(e.i64(0))

    def take() -> Val:
        # look before adding, so that a latecomer does not write to the line
        free = _atomic_load(e, claimed) < chunks
        with e.when(free):
            chunk.set(Val(e, e.b.atomic_rmw("add", claimed.v, e.i64(1).v, "acq_rel")))
        return free & (chunk.get() < chunks)

    with e.loop_while(take):
        yield units * chunk.get() // chunks, units * (chunk.get() + 1) // chunks
        e.b.atomic_rmw("add", done.v, e.i64(1).v, "acq_rel")


def _call_kernel(e: Emit, row: Val, begin: Val, end: Val, fault: Val) -> None:
    code, buffers, sizes = (e.load(row, PTR, word, I64) for word in (STEP.function, STEP.buffers, STEP.sizes))
    with e.when(begin < end):
        arguments = [buffers, sizes, begin, end, fault]
        e.b.call(_Callee(code, [a.type for a in arguments]), [a.v for a in arguments])


def _emit_run(module: Any, target: Target, run_steps: Any) -> None:
    """`rlx_run(state, workers, patience)`: claim ready workers and run. Gives the number of threads claimed.

    A worker that is not ready within `patience` spins is done without.
    """
    e, (state, workers, patience), _ = _function(module, target, "rlx_run", I64, [PTR, I64, I64])
    threads, go = e.var(e.i64(1)), _word(e, state, WORDS.go)
    run = _atomic_load(e, go) + 1
    with e.loop(0, workers) as worker:
        line = worker * LINE + WORDS.workers
        pointer, spins = _word(e, state, line), e.var(e.i64(0))
        with e.loop_while(lambda: (_atomic_load(e, pointer) < READY) & (spins.get() < patience)):
            _pause(e)
            spins.set(spins.get() + 1)
        # written before the claim, read after it
        _atomic_store(e, run, _word(e, state, line + 1))
        with e.when(_compare_and_swap(e, pointer, READY, CLAIMED)):
            threads.set(threads.get() + 1)
    e.store(threads.get(), _word(e, state, WORDS.threads))
    _atomic_store(e, run, go)
    e.b.call(run_steps, [state.v, e.i64(0).v])
    with e.loop(0, workers) as worker:
        pointer = _word(e, state, worker * LINE + WORDS.workers)
        # one that has not begun need not begin; one that has must leave before the step table is used again
        _compare_and_swap(e, pointer, CLAIMED, READY)
        _spin(e, state, lambda pointer=pointer: _atomic_load(e, pointer).equals(RUNNING))
    _finish(e, threads.get())


def _emit_worker(module: Any, target: Target, run_steps: Any) -> None:
    """`rlx_worker(state, index, patience)`: take part in runs until none came for `patience` spins.

    Gives the stop word.
    """
    e, (state, index, patience), _ = _function(module, target, "rlx_worker", I64, [PTR, I64, I64])
    line = index * LINE + WORDS.workers
    pointer, run = (_word(e, state, line + i) for i in range(2))
    go, stop = _word(e, state, WORDS.go), _word(e, state, WORDS.stop)
    _atomic_store(e, READY, pointer)
    idle, awake = e.var(e.i64(0)), e.var(e.i64(1))
    with e.loop_while(lambda: awake.get() > 0), e.either(_atomic_load(e, pointer).equals(CLAIMED)) as (claimed, free):
        with claimed:
            _spin(e, state, lambda: _atomic_load(e, go) < _atomic_load(e, run))
            with e.when(_compare_and_swap(e, pointer, CLAIMED, RUNNING)):
                # again: between the two this claim may have been given up and another one made
                _spin(e, state, lambda: _atomic_load(e, go) < _atomic_load(e, run))
                e.b.call(run_steps, [state.v, (index + 1).v])
                _atomic_store(e, READY, pointer)
            idle.set(0)
        with free:
            _pause(e)
            idle.set(idle.get() + 1)
            tired = (idle.get() > patience) | (_atomic_load(e, stop) > 0)
            with e.when(tired), e.when(_compare_and_swap(e, pointer, READY, SLEEPING)):
                awake.set(0)
    _finish(e, _atomic_load(e, stop))
