"""Time stamps of real runs: every unit of every step once, sums that are the wall, costs counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlx.backends.cpu.codegen import emit_module, optimise, target_machine
from rlx.backends.cpu.target import describe
from rlx.core.dim import evaluate
from rlx.errors import ContextLengthError, OptionError
from rlx.inspect.chrome_trace import write_trace
from rlx.inspect.profile_report import ProfileReport
from rlx.inspect.steps import Reach
from rlx.inspect.timing import Phase
from rlx.runtime.loaded_model import LoadedModel
from rlx.runtime.profiler import Work, module_of
from tests.inspect.conftest import LAYERS, LIMITS, WORK


def phase_of(report: ProfileReport, name: str) -> Phase:
    return next(phase for phase in report.phases if phase.name == name)


def test_every_unit_of_every_step_is_done_once_and_within_its_run(
    report: ProfileReport, deep_model: LoadedModel
) -> None:
    program = module_of(deep_model).program
    for recording in report.recordings:
        assert len(recording.runs) == (1 if recording.phase == "prefill" else WORK.new_tokens)
        for run in recording.runs:
            done = np.zeros(len(program.steps), np.int64)
            for events in run.threads:
                work = events.is_work
                np.add.at(done, events.step[work], events.units[work])
                # the two clocks are read a few microseconds apart
                assert np.all(events.begin >= run.begin - 2e-5)
                assert np.all(events.end <= run.end + 2e-5)
                assert np.all(events.begin[1:] >= events.end[:-1])
            rows = 40 if recording.phase == "prefill" else 1
            dims = {"T": rows, "R": 1, "S": 1, "P": 4, "N": 4}
            assert done.tolist() == [evaluate(step.units, dims) for step in program.steps]


def test_the_parts_are_the_whole(report: ProfileReport) -> None:
    for phase in report.phases:
        steps = sum(row.seconds for row in phase.steps)
        for rows in (phase.kernels, phase.blocks):
            assert abs(sum(row.seconds for row in rows) - steps) < 1e-9
        assert min(phase.others.values()) >= -1e-6
        # the bar is 0.95; what is left is the loop of the test, which another process may interrupt
        assert 0.9 < phase.accounted < 1.001


def test_layers_are_one_block(report: ProfileReport) -> None:
    decode = phase_of(report, "decode")
    mlp = next(row for row in decode.blocks if row.name == "layers.*.mlp")
    assert len(mlp.steps) % LAYERS == 0
    assert len([row for row in decode.blocks if row.name.startswith("layers.0")]) == 0


def test_bytes_and_operations_are_those_counted_by_hand(report: ProfileReport, deep_model: LoadedModel) -> None:
    decode, prefill = (phase_of(report, name) for name in ("decode", "prefill"))
    module = module_of(deep_model)
    (head,) = [info for info in report.infos if info.location.path == "lm_head"]
    vocab, hidden = head.node.inputs[1].type.shape
    assert decode.steps[head.index].operations == WORK.new_tokens * 2 * vocab * hidden
    packed = module.held(
        next(b for b in module.program.steps[head.index].buffers if module.program.buffers[b].kind == "weight")
    )
    activations = 4 * (hidden + vocab)
    assert decode.steps[head.index].bytes == WORK.new_tokens * (packed.nbytes + activations)
    attention = next(info for info in report.infos if info.node.op == "paged_attention")
    width = attention.node.inputs[0].type.shape[-1]
    pairs = sum(range(1, 41))
    assert prefill.steps[attention.index].operations == 4 * width * pairs
    # one token of prompt, and a row for each of the positions 1 to 4
    assert decode.steps[attention.index].operations == 4 * width * sum(range(2, 6))


def test_the_roofline_is_the_larger_of_two_times(report: ProfileReport) -> None:
    (head,) = [info for info in report.infos if info.location.path == "lm_head"]
    row = phase_of(report, "decode").steps[head.index]
    by_arithmetic = row.operations / (1e9 * LIMITS.f32)
    # 4.5 MB of weights lie in L3 whatever their step, the arena of a few kilobytes in L2
    weights = WORK.new_tokens * head.weight_bytes
    by_memory = weights / (1e9 * LIMITS.l3) + (row.bytes - weights) / (1e9 * LIMITS.l2)
    assert abs(row.bound_seconds - max(by_arithmetic, by_memory)) < 1e-12
    assert row.bounded_by == "memory"


def test_reach_counts_pairs_and_keys() -> None:
    for reach in (Reach(), Reach(window=3), Reach(window=100), Reach(is_causal=False)):
        for start in range(6):
            for count in range(1, 7):
                end, window = start + count, reach.window or 1000
                seen = [
                    [key for key in range(end) if not reach.is_causal or (key <= query and query - key < window)]
                    for query in range(start, end)
                ]
                assert reach.attended(start, count) == sum(map(len, seen))
                assert reach.cached(start, count) == len({key for keys in seen for key in keys})


def test_a_traced_run_gives_the_same_bits(deep_model: LoadedModel) -> None:
    tokens = list(range(1, 30))
    plain = deep_model.logits(tokens)
    with module_of(deep_model).traced(None) as trace:
        traced = deep_model.logits(tokens)
        assert len(trace.runs) == 1
    assert np.array_equal(plain, traced)
    assert np.array_equal(plain, deep_model.logits(tokens))


@pytest.mark.parametrize(("name", "clock"), [("avx2", "rdtsc"), ("neon", "cntvct_el0")])
def test_only_a_traced_runtime_reads_the_clock(name: str, clock: str) -> None:
    machine = target_machine(describe(name))
    ordinary, traced = (
        str(machine.emit_assembly(optimise(emit_module((), describe(name), traced=traced), machine))).lower()
        for traced in (False, True)
    )
    assert clock not in ordinary
    assert traced.count(clock) >= 7  # rlx_clock, and before and after the work alone, a chunk and a wait


def test_the_trace_has_a_track_for_each_thread(report: ProfileReport, tmp_path: Path) -> None:
    write_trace(report, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {0: "Python", 1: "caller", 2: "worker 1"}
    bars = [event for event in events if event["ph"] == "X"]
    assert min(event["ts"] for event in bars) >= 0
    assert {event["name"] for event in bars if event["tid"] == 0} >= {"native run", "sampling", "scheduling"}
    kernels = [event for event in bars if event["tid"] == 1 and event["cat"] == "decode"]
    assert {event["args"]["block"] for event in kernels} >= {"layers.0.mlp", f"layers.{LAYERS - 1}.mlp", "lm_head"}


def test_json_has_what_the_tables_have(report: ProfileReport) -> None:
    document = json.loads(json.dumps(report.to_json()))
    decode = next(phase for phase in document["phases"] if phase["name"] == "decode")
    assert decode["tokens"] == WORK.new_tokens
    assert len(decode["steps"]) == len(report.infos)
    assert {"seconds", "bytes_per_second", "operations_per_second", "of_roofline", "bounded_by"} <= set(
        decode["kernels"][0]
    )


def test_sizes_that_cannot_be_run_are_refused(deep_model: LoadedModel) -> None:
    with pytest.raises(OptionError, match="unknown size of work"):
        deep_model.profile(tokens=3)
    with pytest.raises(OptionError, match="repetitions"):
        Work.of({"repetitions": 0})
    with pytest.raises(ContextLengthError, match="do not fit"):
        deep_model.profile(prompt_tokens=128)
