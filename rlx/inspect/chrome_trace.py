"""A profile as a trace that Perfetto (ui.perfetto.dev) and Chrome (chrome://tracing) show: a track for each thread.

In: a `ProfileReport`. Out: a file in the Trace Event Format (complete events, "ph": "X"; times in microseconds).
Source: the document "Trace Event Format" of the Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlx.backends.cpu.trace import TracedRun
from rlx.errors import StorageError
from rlx.inspect.profile_report import ProfileReport
from rlx.inspect.steps import StepInfo

PYTHON_TRACK = 0
SHORTEST_WAIT = 1e-7
"""Seconds: a wait that is over before it began is not worth a bar."""


def write_trace(report: ProfileReport, path: Path) -> None:
    """Write the trace.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
            for index, event in enumerate(trace_events(report)):
                file.write((",\n" if index else "") + json.dumps(event))
            file.write("\n]}\n")
    except OSError as error:
        raise StorageError("the trace cannot be written", where=str(path), found=error.strerror) from error


def trace_events(report: ProfileReport) -> Iterator[dict[str, Any]]:
    """Every event: names of the tracks, what Python did, and each chunk and wait of each thread."""
    threads = max((len(run.threads) for recording in report.recordings for run in recording.runs), default=0)
    yield _named("process_name", PYTHON_TRACK, f"rlx {report.model}")
    yield _named("thread_name", PYTHON_TRACK, "Python")
    for thread in range(threads):
        yield _named("thread_name", thread + 1, "caller" if thread == 0 else f"worker {thread}")
    starts = [run.begin for recording in report.recordings for run in recording.runs]
    starts += [span.begin for recording in report.recordings for span in recording.spans]
    origin = min(starts, default=0.0)
    for recording in report.recordings:
        for span in recording.spans:
            yield _event(span.name, recording.phase, PYTHON_TRACK, span.begin - origin, span.seconds)
        for run in recording.runs:
            yield from _run_events(report, recording.phase, run, origin)


def _run_events(report: ProfileReport, phase: str, run: TracedRun, origin: float) -> Iterator[dict[str, Any]]:
    yield _event("native run", phase, PYTHON_TRACK, run.begin - origin, run.end - run.begin)
    for thread, events in enumerate(run.threads):
        columns = (events.step.tolist(), events.begin.tolist(), events.end.tolist(), events.units.tolist())
        for step, begin, end, units in zip(columns[0], columns[1], columns[2], columns[3], strict=True):
            if units < 0:
                if end - begin >= SHORTEST_WAIT:
                    yield _event("wait", "wait", thread + 1, begin - origin, end - begin)
                continue
            info: StepInfo = report.infos[int(step)]
            event = _event(info.name, phase, thread + 1, begin - origin, end - begin)
            yield {**event, "args": {"block": info.location.path, "step": step, "units": units}}


def _event(name: str, category: str, track: int, begin: float, seconds: float) -> dict[str, Any]:
    times = {"ts": round(begin * 1e6, 3), "dur": round(seconds * 1e6, 3)}
    return {"ph": "X", "pid": 1, "tid": track, "name": name, "cat": category, **times}


def _named(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 1, "tid": track, "name": kind, "args": {"name": name}}
