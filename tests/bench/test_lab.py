"""The kernel lab: limits are plausible, cases are checked against their plain form, a wrong kernel is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.kernels import chosen, show
from bench.lab.cases import Built, Case, all_cases
from bench.lab.timing import CacheSizes, measure_case
from rlx.backends.cpu.kernels.registry import KERNELS
from rlx.backends.cpu.target import resolve
from rlx.inspect.limits import DramProbe, Limits, measure_limits

ROOT = Path(__file__).parents[2]
LIMITS = Limits(1, "native", dram=30.0, l3=100.0, l2=200.0, f32=100.0, int8=400.0, bf16=200.0)
SMALL = (
    "rms_norm 1x",
    "quantize 1x",
    "rope 1x",
    "silu(x) * y 1x",
    "chain of 6 1x",
    "cache_append 1x",
    "causal_conv 1 ",
)


def measured(case: Case, threads: int = 1):
    target = resolve("native")
    with closing(DramProbe(target, threads, 1 << 20)) as probe:
        return measure_case(case, target, threads, LIMITS, CacheSizes.of({}, threads), probe)


@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_what_a_machine_can_have(threads):
    limits = measure_limits(resolve("native"), threads, dram_bytes=8 << 20, run_seconds=1e-4)
    figures = [limits.dram, limits.l3, limits.l2, limits.f32, limits.int8]
    # from a slow virtual machine that does other work as well to threads * 5 GHz * 2 * 64 bytes
    assert all(0.01 < figure < threads * 5 * 2 * 64 * 4 for figure in figures)
    assert "limit" not in KERNELS, "its kernels belong to no op"


@pytest.mark.parametrize("case", [case for case in all_cases() if case.name.startswith(SMALL)], ids=lambda c: c.name)
def test_a_case_gives_what_its_plain_form_gives(case):
    row = measured(case, threads=2)
    assert row.is_right, row
    assert row.seconds > 0
    assert row.plain_seconds > 0
    assert row.operations_per_second > 0
    assert row.limit in ("l2", "l3", "dram", "f32")


def test_a_kernel_that_is_wrong_is_seen():
    case = next(case for case in all_cases() if case.name.startswith("rms_norm 1x"))

    def build() -> Built:
        built = case.build()
        return replace(built, plain=lambda: built.plain() * np.float32(1.001))

    row = measured(Case(case.group, case.name, build))
    assert not row.is_right
    assert row.error == pytest.approx(0.001, rel=0.01)


def test_every_case_has_a_name_of_its_own():
    names = [(case.group, case.name) for case in all_cases()]
    assert len(set(names)) == len(names)


def test_where_operands_come_from():
    sizes = CacheSizes.of({"L2": 1 << 20, "L3": 32 << 20}, 2)
    assert [sizes.level(n << 10) for n in (1, 1536, 1537, 24 << 10, (24 << 10) + 1)] == ["l2", "l2", "l3", "l3", "dram"]


def test_choosing_cases():
    assert {case.group for case in chosen(["attention"])} == {"attention"}
    with pytest.raises(SystemExit):
        chosen(["no such kernel"])


def test_the_table(capsys):
    row = measured(next(case for case in all_cases() if case.name.startswith("rms_norm 1x")))
    show({"limits": LIMITS.to_json(), "kernels": [row.to_json(), replace(row, is_right=False).to_json()]})
    out = capsys.readouterr().out
    for word in ("reads 30.0 GB/s from memory", "rows, 1 thread", "rms_norm 1x2048", "x NumPy", "WRONG"):
        assert word in out


def test_the_command():
    command = [sys.executable, "-m", "bench.kernels", "-t", "1", "--only", "rms_norm 1x", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    (run,) = json.loads(done.stdout)["runs"]
    assert run["limits"]["threads"] == 1
    assert [row["name"] for row in run["kernels"]] == ["rms_norm 1x2048"]
