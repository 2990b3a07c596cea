"""Random whole graphs through the public `rlx.compile` on every instruction set, against the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rlx
from rlx.backends.reference import run_graph
from rlx.core.graph import Graph
from rlx.runtime.executable import Executable
from tests.cpu.compiling import TARGETS, Array, object_folder, same_bits
from tests.strategies import bound_inputs, graphs


@pytest.fixture(scope="module", autouse=True)
def _kept_objects() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLX_CACHE_DIR", str(object_folder()))
        yield


def check_close(found: Array, exact: Array, rounded: Array) -> None:
    """The float32 interpreter tells how far rounding moves this graph; kernels may sum in another order.

    They are given 20 times that, or 2e-5 of the largest value where its own errors happen to cancel.
    """
    assert found.shape == exact.shape
    assert np.array_equal(np.isnan(found), np.isnan(exact))
    finite = np.isfinite(exact)
    assert np.array_equal(found[~finite], exact[~finite].astype(found.dtype), equal_nan=True)
    if not finite.any():
        return
    noise = np.abs(rounded[finite].astype(np.float64) - exact[finite])
    allowed = 20 * np.nan_to_num(noise, nan=0.0).max() + 2e-5 * max(1.0, np.abs(exact[finite]).max())
    assert np.abs(found[finite] - exact[finite]).max() <= allowed


@pytest.mark.parametrize("target", TARGETS)
@given(graph=graphs(), sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=3))
@settings(max_examples=25)
def test_a_random_graph_is_what_the_reference_says(target: str, graph: Graph, sizes: list[tuple[int, int]]) -> None:
    exe = rlx.compile(graph, target=target, threads=2)
    try:
        for seed, (seq, batch) in enumerate(sizes):
            inputs = bound_inputs(graph, seed, seq, batch)
            found = exe(**inputs)
            exact = run_graph(graph, inputs)
            rounded = run_graph(graph, inputs, dtype=np.float32)
            assert set(found) == set(exact)
            for name in found:
                check_close(found[name], exact[name], rounded[name])
            again = exe(**inputs)
            assert all(same_bits(found[name], again[name]) for name in found)
    finally:
        exe.close()


@given(graph=graphs())
@settings(max_examples=15)
def test_the_arena_of_the_module_is_the_plan_of_the_program(graph: Graph) -> None:
    """`CpuModule` computes the offsets anew; `Program.arena_offsets` is what the properties are shown for."""
    exe = rlx.compile(graph, target=TARGETS[0], threads=1)
    assert isinstance(exe, Executable)
    dims = {"seq": 13, "batch": 3}
    exe(**bound_inputs(graph, 0, **dims))
    offsets, total = exe.program.arena_offsets({name: dims.get(name, 0) for name in ("seq", "batch", "past")})
    module = exe.module
    assert all(module._addresses[buffer] == module._arena.ctypes.data + offset for buffer, offset in offsets.items())
    assert module._arena.nbytes >= total
    assert not total or module._arena.ctypes.data % 64 == 0
    exe.close()
