"""The kernel lab: each kernel of RLX beside its plain form and the limits of this machine.

    python -m bench.kernels                              # everything, on 1 and 2 threads
    python -m bench.kernels --only 'linear, 1 row' -t 1  # a group, or a part of a name
    python -m bench.kernels --torch PYTHON --json        # torch (oneDNN) too, from an interpreter that has it

In: which cases, how many threads. Out: a table, or JSON. Each thread count is a process of its own, because NumPy's
BLAS takes its threads when it is loaded. Next: `lab/cases.py`, `rlx/inspect/limits.py`, `lab/timing.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from bench.lab.cases import Case, all_cases
from bench.lab.timing import CacheSizes, Row, measure_case
from rlx.backends.cpu.target import resolve
from rlx.cli.host import offers
from rlx.cli.output import write_json, write_table, write_text
from rlx.cli.progress import StatusLine
from rlx.errors import RlxError
from rlx.inspect.limits import DramProbe, Limits, measure_limits

TORCH_SECONDS = 120
_SLOWING = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # make NumPy's BLAS use kernels of another machine


def chosen(only: Sequence[str]) -> list[Case]:
    """The cases whose group or name has one of the words; all without words.

    Raises:
        SystemExit: no case has one of them.
    """
    cases = [case for case in all_cases() if not only or any(word in f"{case.group}: {case.name}" for word in only)]
    if not cases:
        groups = ", ".join(dict.fromkeys(case.group for case in all_cases()))
        sys.exit(f"error: no kernel is called {' or '.join(only)}\n  expected: a part of a name, or one of: {groups}")
    return cases


def run_here(cases: Sequence[Case], target_name: str, threads: int, torch: str | None) -> dict[str, Any]:
    """Measure in this process; its BLAS has to have `threads` threads."""
    target = resolve(target_name)
    times = _torch_times(cases, threads, torch)
    limits = measure_limits(target, threads)
    caches = CacheSizes.of(_cache_bytes(), threads)
    rows: list[Row] = []
    with StatusLine() as status, closing(DramProbe(target, threads)) as probe:
        for case in cases:
            status.show(f"threads {threads}: {case.group}: {case.name}")
            rows.append(measure_case(case, target, threads, limits, caches, probe, times.get(case.product)))
    return {"limits": limits.to_json(), "kernels": [row.to_json() for row in rows]}


def _cache_bytes() -> dict[str, int]:
    found = offers().get("caches")
    return {str(k): v for k, v in found.items() if isinstance(v, int)} if isinstance(found, dict) else {}


def _torch_times(cases: Sequence[Case], threads: int, python: str | None) -> dict[object, float]:
    products = [case.product for case in cases if case.product is not None]
    if python is None or not products:
        return {}
    script = os.path.join(os.path.dirname(__file__), "lab", "torch_times.py")
    request = json.dumps({"threads": threads, "products": products})
    done = subprocess.run(
        [python, script, request],
        capture_output=True,
        text=True,
        check=False,
        timeout=TORCH_SECONDS,
        env=_environment(threads),
    )
    if done.returncode:
        sys.exit(f"error: torch could not be measured with {python}\n{done.stderr.strip()[-500:]}")
    return dict(zip(products, json.loads(done.stdout), strict=True))


def _environment(threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _SLOWING}
    return kept | {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def run_in_child(flags: argparse.Namespace, threads: int) -> dict[str, Any]:
    """`run_here` in a process whose BLAS has that many threads."""
    command = [sys.executable, "-m", "bench.kernels", "--here", "--json", "-t", str(threads), "--target", flags.target]
    command += [f"--only={word}" for word in flags.only] + ([f"--torch={flags.torch}"] if flags.torch else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=_environment(threads))
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


# ---- tables ----


def show(document: dict[str, Any]) -> None:
    """The limits, then a table for each group."""
    limits = Limits(**document["limits"])
    plural = "" if limits.threads == 1 else "s"
    facts = [f"reads {limits.dram:.1f} GB/s from memory, {limits.l3:.0f} from L3, {limits.l2:.0f} from L2"]
    facts.append(f"f32 {limits.f32:.0f} GFLOP/s, int8 {limits.int8:.0f} GOP/s")
    if limits.bf16 is not None:
        facts.append(f"bf16 {limits.bf16:.0f} GFLOP/s")
    write_text(f"limits of this machine, {limits.threads} thread{plural}, {limits.target}: {'; '.join(facts)}\n")
    rows = [Row(**row) for row in document["kernels"]]
    for group in dict.fromkeys(row.group for row in rows):
        write_text("\n")
        lines = [_line(row) for row in rows if row.group == group]
        header = ("kernel", "time", "GB/s", "Gop/s", "of limit", "limit", "x NumPy", "x torch", "error", "")
        write_table(f"{group}, {limits.threads} thread{plural}", lines, header=header)


def _line(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.seconds * 1e6:.1f} us" if row.seconds < 1e-3 else f"{row.seconds * 1e3:.2f} ms",
        f"{row.bytes_per_second / 1e9:.1f}",
        f"{row.operations_per_second / 1e9:.1f}",
        f"{row.of_limit:.0%}",
        row.limit,
        f"{row.plain_seconds / row.seconds:.2f}",
        "-" if row.torch_seconds is None else f"{row.torch_seconds / row.seconds:.2f}",
        f"{row.error:.0e}",
        "" if row.is_right else "WRONG",
    )


def main() -> int:
    """Parse the flags, measure, print; 1 if a kernel was wrong."""
    parser = argparse.ArgumentParser(description="Each kernel beside its plain form and the limits of this machine.")
    parser.add_argument("--only", action="append", default=[], help="a part of a kernel's group and name; repeatable")
    parser.add_argument("-t", "--threads", default="1,2", help="thread counts with commas between them")
    parser.add_argument("--target", default="native", help="instruction set: native, avx512, avx2 or portable")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has torch, to run beside")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    counts = [int(word) for word in flags.threads.split(",") if word.isdecimal() and int(word)]
    if not counts or len(counts) != len(flags.threads.split(",")):
        parser.error(f"--threads {flags.threads}: expected numbers with commas between them")
    cases = chosen(flags.only)
    try:
        resolve(flags.target)
        if flags.here:
            documents = [run_here(cases, flags.target, counts[0], flags.torch)]
        else:
            documents = [run_in_child(flags, count) for count in counts]
    except RlxError as error:
        sys.exit(f"error: {error.message}")
    except KeyboardInterrupt:
        return 130
    if flags.json:
        write_json(documents[0] if flags.here else {"runs": documents})
    else:
        for number, document in enumerate(documents):
            write_text("\n\n" if number else "")
            show(document)
    return int(not all(row["is_right"] for document in documents for row in document["kernels"]))


if __name__ == "__main__":
    sys.exit(main())
