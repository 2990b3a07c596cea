"""`rlx profile`: where the time of a model goes, by kernel and by block, beside the limits of the machine.

In: a model, how much to run. Out: tables or JSON, and a trace file. The measuring is in `rlx/runtime/profiler.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.loading import LoadFlags, loaded
from rlx.cli.output import use_utf8, write_json, write_table, write_text
from rlx.cli.progress import StatusLine
from rlx.cli.reporting import remark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlx.inspect.limits import Limits
    from rlx.inspect.profile_report import ProfileReport
    from rlx.inspect.timing import Phase, Row
    from rlx.runtime.profiler import Work

_HEADER = ("steps", "time", "share", "GB/s", "Gop/s", "bound by", "of limit")


def profile_command(
    model: Annotated[str | None, typer.Argument(help=flags.MODEL_HELP, show_default=False)] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", help="Length of the prompt to read.")] = 512,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", "-n", help="Tokens to generate one by one.")] = 32,
    depth: Annotated[int, typer.Option("--depth", "-d", help="Tokens in the cache before those.")] = 0,
    texts: Annotated[int, typer.Option(help="Texts of one call of an encoder.")] = 16,
    text_tokens: Annotated[int, typer.Option(help="Tokens of each text for an encoder.")] = 128,
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", help="Times each is run; the quickest counts.")
    ] = 3,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for ui.perfetto.dev, a track for each thread.", metavar="FILE")
    ] = None,
    rows: Annotated[int, typer.Option(help="Most rows of a table.")] = 16,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    context: flags.ContextOption = None,
    kv_cache: flags.KvCacheOption = None,
    profile: flags.ProfileOption = None,
    json_output: flags.JsonOption = False,
) -> None:
    """Show where the time of a model goes: by kernel and by block, with bytes, operations and the machine's limits.

    Example: rlx profile model.gguf

    Example: rlx profile model.gguf --trace trace.json --json
    """
    from rlx.inspect.chrome_trace import write_trace
    from rlx.runtime.profiler import Work

    work = Work.of(
        {
            "prompt_tokens": prompt_tokens,
            "new_tokens": decode_tokens,
            "depth": depth,
            "texts": texts,
            "text_tokens": text_tokens,
            "repetitions": repetitions,
        }
    )
    load = LoadFlags(model, precision, threads, target, context, kv_cache, profile)
    report = _measured(load, work)
    if trace is not None:
        write_trace(report, trace)
        remark(f"trace: {trace} (open it at ui.perfetto.dev)")
    use_utf8()
    if json_output:
        write_json(report.to_json())
        return
    write_text(limits_text(report.limits) + "\n")
    for phase in report.phases:
        _show(phase, report, max(1, rows))


def _measured(load: LoadFlags, work: Work) -> ProfileReport:
    from rlx.runtime.profiler import profile_model

    with loaded(load) as model, StatusLine() as status:
        return profile_model(model, work, progress=status.show)


def limits_text(limits: Limits) -> str:
    """One line about the machine."""
    bf16 = "" if limits.bf16 is None else f", bf16 {limits.bf16:.0f} GFLOP/s"
    return (
        f"limits of this machine, {limits.threads} thread{'' if limits.threads == 1 else 's'}, {limits.target}: "
        f"{limits.dram:.1f} GB/s from memory, {limits.l3:.0f} from L3, {limits.l2:.0f} from L2; "
        f"f32 {limits.f32:.0f} GFLOP/s, int8 {limits.int8:.0f} GOP/s{bf16}"
    )


def _show(phase: Phase, report: ProfileReport, rows: int) -> None:
    wall, speed = phase.wall_seconds, phase.amount / phase.wall_seconds
    write_text(
        f"\n{phase.name}: {phase.amount} {phase.unit} in {1e3 * wall:.2f} ms, {speed:.1f} {phase.unit}/s; "
        f"{phase.runs} run{'s' * (phase.runs != 1)}; tracing took {100 * phase.overhead:+.1f}%\n\n"
    )
    _table("by kernel", phase.kernels, phase, rows)
    _table("by block", phase.blocks, phase, rows)
    others = sorted(phase.others.items(), key=lambda item: -item[1])
    lines = [("kernels", phase.kernel_seconds), *others]
    lines.append(("not accounted for", wall * (1 - phase.accounted)))
    write_table(
        "the whole",
        [(name, f"{1e3 * seconds:.2f} ms", f"{100 * seconds / wall:.1f}%") for name, seconds in lines],
        header=("where", "time", "share"),
    )
    write_text(f"accounted for: {100 * phase.accounted:.1f}% of the wall time\n")


def _table(title: str, rows: Sequence[Row], phase: Phase, most: int) -> None:
    lines = [_line(row, phase) for row in rows[:most]]
    if len(rows) > most:
        left = sum(row.seconds for row in rows[most:])
        lines.append((f"and {len(rows) - most} more", "", _milliseconds(left), _share(left, phase), "", "", "", ""))
    write_table(title, lines, header=(title.removeprefix("by "), *_HEADER))
    write_text("\n")


def _line(row: Row, phase: Phase) -> tuple[str, ...]:
    return (
        row.name,
        str(len(row.steps)),
        _milliseconds(row.seconds),
        _share(row.seconds, phase),
        f"{row.bytes_per_second / 1e9:.1f}",
        f"{row.operations_per_second / 1e9:.1f}",
        row.bounded_by,
        f"{100 * row.of_roofline:.0f}%",
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def _share(seconds: float, phase: Phase) -> str:
    return f"{100 * seconds / phase.wall_seconds:.1f}%"
