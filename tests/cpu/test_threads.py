"""The worker threads: many runs, idle workers, several modules, closing, dropping, interrupts, two callers."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlx.backends.cpu import threads as pool_module
from rlx.core.dim import Dim
from rlx.core.dtype import f32, i32
from rlx.core.graph import GraphBuilder
from rlx.core.type import tensor
from rlx.errors import InputError
from rlx.ops.op import Emitter
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, compiled

TARGET = TARGETS[0]
STEPS = 6
ROOT = Path(__file__).parents[2]


def chain(threads: int, name: str = "chain") -> Executable:
    """Six steps that mix rows, so that a barrier that lets a thread through early gives a wrong number."""
    builder = GraphBuilder(name)
    emit = Emitter(builder)
    x = builder.input("x", tensor(f32, Dim("n", max=256), 64))
    value = x
    for _ in range(STEPS):
        value = emit("transpose", emit("add", value, x), axes=(1, 0))
        value = emit("transpose", emit("tanh", value), axes=(1, 0))
    builder.output("y", value)
    return compiled(builder.build(), TARGET, threads=threads)


def data(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 64)).astype(np.float32)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("rlx-")]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(autouse=True)
def no_worker_is_left():
    before = set(workers())
    yield
    gc.collect()
    assert until(lambda: set(workers()) <= before), "a test left worker threads"


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_many_runs_give_the_same_bits(threads: int) -> None:
    """Also with more threads than cores, and with extents below the number of threads."""
    exe = chain(threads)
    alone = chain(1)
    assert exe.module.threads == threads
    expected = {rows: alone(x=data(rows, rows))["y"] for rows in (1, 2, 3, 17, 64)}
    for run in range(150):
        rows = (1, 2, 3, 17, 64)[run % 5]
        assert np.array_equal(exe(x=data(rows, rows))["y"], expected[rows])
    exe.close()
    alone.close()


def test_idle_workers_sleep_and_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that finds nothing to do leaves native code; the next run wakes it."""
    monkeypatch.setattr(pool_module, "IDLE_SPINS", 2000)
    exe, x = chain(2), data(32)
    expected = exe(x=x)["y"]
    pool = exe.module._pool
    state = pool.state[pool_module.WORDS.workers :]
    for _ in range(20):
        assert until(lambda: state[0] == pool_module.SLEEPING)
        assert np.array_equal(exe(x=x)["y"], expected)
    exe.close()


def test_an_idle_worker_uses_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "IDLE_SPINS", 2000)
    exe = chain(2)
    exe(x=data(8))
    pool = exe.module._pool
    assert until(lambda: pool.state[pool_module.WORDS.workers] == pool_module.SLEEPING)
    before = time.process_time()
    time.sleep(0.3)
    # a spinning worker would use all of the 0.3 s
    assert time.process_time() - before < 0.1
    exe.close()


def test_several_modules_at_once() -> None:
    modules = [chain(2, f"m{i}") for i in range(4)]
    expected = [exe(x=data(9, i))["y"] for i, exe in enumerate(modules)]
    for _ in range(30):
        for i, exe in enumerate(modules):
            assert np.array_equal(exe(x=data(9, i))["y"], expected[i])
    for exe in modules:
        exe.close()


def test_close_ends_the_workers_and_may_be_repeated() -> None:
    before = set(workers())
    exe = chain(3)
    exe(x=data(4))
    mine = set(workers()) - before
    assert len(mine) == 2
    exe.close()
    exe.close()
    assert until(lambda: not any(thread.is_alive() for thread in mine))


def test_a_closed_program_still_runs_on_the_callers_thread() -> None:
    exe, x = chain(2), data(5)
    expected = exe(x=x)["y"]
    exe.close()
    assert np.array_equal(exe(x=x)["y"], expected)


def test_a_dropped_module_ends_its_workers() -> None:
    """The workers may be in native code at that moment: the code has to outlive them."""
    before = set(workers())
    for seed in range(20):
        exe = chain(3)
        exe(x=data(4, seed))
        del exe
    gc.collect()
    assert until(lambda: set(workers()) <= before)


def test_a_process_that_closes_nothing_ends() -> None:
    """Neither a hang nor a crash when the interpreter ends with workers spinning or asleep."""
    code = (
        "import time, numpy as np\n"
        "from tests.cpu.test_threads import chain, data\n"
        "exe = chain(3); exe(x=data(4)); time.sleep(0.2)\n"
        "other = chain(2); other(x=data(4))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_runs_without_the_workers_it_does_not_have() -> None:
    """The copied state says that workers are ready; nobody in the child may wait for them."""
    code = (
        "import os, signal, sys, warnings, numpy as np\n"
        "from tests.cpu.test_threads import chain, data\n"
        "warnings.simplefilter('ignore')\n"
        "exe = chain(3); expected = exe(x=data(16))['y']\n"
        "if not (child := os.fork()):\n"
        "    signal.alarm(20)\n"
        "    same = all(np.array_equal(exe(x=data(16))['y'], expected) for _ in range(5))\n"
        "    os._exit(0 if same else 1)\n"
        "sys.exit(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_an_interrupt_leaves_the_pool_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the wake-ups and the native call: the exception passes, the next run is as before."""
    exe, x = chain(3), data(16)
    expected = exe(x=x)["y"]
    pool, native = exe.module._pool, exe.module._pool._run

    def interrupted(*arguments: int) -> int:
        raise KeyboardInterrupt

    for _ in range(5):
        monkeypatch.setattr(pool, "_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            exe(x=x)
        monkeypatch.setattr(pool, "_run", native)
        assert np.array_equal(exe(x=x)["y"], expected)
    exe.close()


def test_an_exception_between_two_threads_runs_leaves_the_pool_usable() -> None:
    """A real asynchronous exception, thrown into a thread that calls the module in a loop."""
    exe, x = chain(2), data(16)
    expected = exe(x=x)["y"]
    stopped: list[bool] = []

    def loop() -> None:
        try:
            while True:
                exe(x=x)
        except KeyboardInterrupt:
            stopped.append(True)

    for _ in range(5):
        caller = threading.Thread(target=loop)
        caller.start()
        time.sleep(0.02)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(caller.ident or 0), ctypes.py_object(KeyboardInterrupt)
        )
        caller.join(10)
        assert not caller.is_alive()
        assert np.array_equal(exe(x=x)["y"], expected)
    assert len(stopped) == 5
    exe.close()


def test_a_refused_index_leaves_the_pool_usable() -> None:
    builder = GraphBuilder("rows")
    table = builder.input("table", tensor(f32, 5, 16))
    index = builder.input("index", tensor(i32, Dim("n")))
    builder.output("y", Emitter(builder)("take_rows", table, index))
    exe = compiled(builder.build(), TARGET, threads=2)
    values = data(5)[:, :16].copy()
    for bad in (5, -1, 2**31 - 1, -(2**31)):
        with pytest.raises(InputError, match="outside"):
            exe(table=values, index=np.array([0, bad, 1], np.int32))
        good = exe(table=values, index=np.array([4, 0], np.int32))["y"]
        assert np.array_equal(good, values[[4, 0]])
    exe.close()


def test_two_python_threads_may_call_one_module() -> None:
    """Each caller gets the result of its own arguments, though the tables of the module are shared."""
    exe = chain(2)
    sizes = (3, 40)
    expected = {rows: exe(x=data(rows, rows))["y"] for rows in sizes}
    wrong: list[int] = []

    def call(rows: int) -> None:
        x = data(rows, rows)
        wrong.extend(rows for _ in range(150) if not np.array_equal(exe(x=x)["y"], expected[rows]))

    callers = [threading.Thread(target=call, args=(rows,)) for rows in sizes]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong
    exe.close()
