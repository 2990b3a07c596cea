"""`rlx bench`: how fast a model file is on this machine, alone or beside other programs.

In: a model, sizes, peers. Out: medians with their range, as tables or JSON. What is measured and how is in
`measure.py`, how it is compared in `compare.py`, who can be compared with in `peers/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.compare import Result, Samples
from rlx.cli.loading import LoadFlags
from rlx.cli.measure import Measurement, Plan, measure
from rlx.cli.output import use_utf8, write_json, write_table, write_text
from rlx.cli.peers.work import NAMES, Sizes, works_of
from rlx.cli.progress import StatusLine
from rlx.cli.runner import RLX
from rlx.cli.units import bytes_text, count_text, seconds_text
from rlx.errors import OptionError

if TYPE_CHECKING:
    from rlx.cli.peers.find import PeerRequest

PEER_HELP = (
    "Programs to run in turn with RLX on the same file: llama.cpp, ik_llama.cpp, torch, onnxruntime, openvino, with "
    "commas between them. NAME=PATH says where one is (llama-bench, or a Python that has the package); torch-bf16, "
    "onnxruntime-int8 and the like choose the arithmetic."
)

REASON_LENGTH = 200  # of a peer's failure in the report; JSON has all of it


def bench_command(
    model: Annotated[str | None, typer.Argument(help=flags.MODEL_HELP, show_default=False)] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", help="Length of the prompt to read.")] = 512,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", "-n", help="Tokens to generate one by one.")] = 128,
    batch: Annotated[int, typer.Option("--batch", "-b", help="Sequences that generate at once.")] = 8,
    depth: Annotated[
        int, typer.Option("--depth", "-d", help="Also generate after this many cached tokens; 0 leaves it out.")
    ] = 0,
    texts: Annotated[int, typer.Option(help="Texts of one call of an encoder.")] = 32,
    text_tokens: Annotated[int, typer.Option(help="Tokens of each text for an encoder.")] = 128,
    what: Annotated[
        str | None,
        typer.Option(
            "--measure",
            help=f"Only these of {', '.join(NAMES)}. Default: prefill,decode,batch, and depth if that is given; "
            "encode for an encoder.",
            metavar="LIST",
        ),
    ] = None,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Times each is measured.")] = 5,
    starts: Annotated[
        int, typer.Option(help="Fresh processes to start for the warm start, and one for the cold one; 0 for none.")
    ] = 3,
    peer: Annotated[list[str] | None, typer.Option("--peer", help=PEER_HELP, metavar="NAME[=PATH],...")] = None,
    peer_timeout: Annotated[float, typer.Option(help="Seconds that one run of a peer may take.")] = 600.0,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    context: flags.ContextOption = None,
    kv_cache: flags.KvCacheOption = None,
    profile: flags.ProfileOption = None,
    json_output: flags.JsonOption = False,
) -> None:
    """Measure a model: reading a prompt, generating, starting, memory; alone, or in turn with other programs.

    first_token_seconds counts from the start of this very process to its first token, before anything else is measured
    (of an encoder, its first vector);
    `cache` says whether its kernels came from the cache (warm) or were compiled (cold). The other starts are fresh
    processes afterwards. Generation begins with an empty context, as llama-bench measures it. Ctrl-C ends the
    measuring, and what was measured is told.

    Example: rlx bench model.gguf -p 512 -n 128 --threads 2

    Example: rlx bench model.gguf --peer llama.cpp,ik_llama.cpp=ik/bin/llama-bench --depth 8192

    Example: rlx bench model.gguf --target avx2 --peer llama.cpp=avx2/bin/llama-bench --measure prefill,decode

    Example: rlx bench --json > result.json
    """
    for name, value, least in (("-r", repetitions, 1), ("--starts", starts, 0), ("--depth", depth, 0)):
        if value < least:
            raise OptionError("there is nothing to measure", where=name, found=value, expected=f"at least {least}")
    if peer_timeout <= 0:
        raise OptionError("a peer needs some time", where="--peer-timeout", found=peer_timeout, expected="above 0")
    names = ["prefill", "decode", "batch", *(["depth"] if depth else [])] if what is None else _words(what)
    sizes = Sizes(prompt_tokens, decode_tokens, batch, depth, texts, text_tokens)
    works = works_of(names, sizes)
    encoder_works = works_of(["encode"], sizes) if what is None else works
    plan = Plan(works, encoder_works, repetitions, starts, _peers(peer), peer_timeout)
    use_utf8()
    kept: list[Measurement] = []
    try:
        with StatusLine() as status:
            measure(
                LoadFlags(model, precision, threads, target, context, kv_cache, profile),
                plan,
                kept.append,
                status.show if plan.peers else None,
            )
    finally:
        # an interrupt or an error ends the measuring, not the output
        if kept and (kept[0].is_complete or any(result.speeds for result in kept[0].results)):
            _write(kept[0], json_output)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _peers(values: list[str] | None) -> list[PeerRequest]:
    if not values:
        return []
    from rlx.cli.peers.find import parse_peers

    return parse_peers(values)


def _write(result: Measurement, json_output: bool) -> None:
    if json_output:
        write_json(result.to_json())
        return
    title = f"{result.model} ({_facts(result)})"
    write_table(title, _rows(result), header=("", "median", "least", "most"))
    if len(result.systems) > 1:
        write_text("\n")
        rows = [row for entry in result.results for row in _peer_rows(entry, result)]
        header = ("", "RLX", "peer", "RLX / peer", "least", "most")
        write_table("beside other programs, in turn; above 1 RLX is faster", rows, header=header)
    for line in _remarks(result):
        write_text(line + "\n")


def _facts(result: Measurement) -> str:
    facts = [str(result.info[key]) for key in ("architecture", "precision", "target") if key in result.info]
    parameters, size, threads = (result.info.get(key) for key in ("parameters", "file_bytes", "threads"))
    if isinstance(parameters, int):
        facts.append(f"{count_text(parameters)} parameters")
    if isinstance(size, int):
        facts.append(bytes_text(size))
    if threads is not None:
        facts.append(f"{threads} thread{'' if threads == 1 else 's'}")
    return ", ".join(facts)


def _rows(result: Measurement) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for entry in result.results:
        if (samples := entry.samples(RLX)) is not None:
            values = (f"{value:.1f} {entry.work.unit}" for value in (samples.median, samples.least, samples.most))
            rows.append((entry.work.title, *values))
    rows.append((f"first token of this process ({result.first.cache})", seconds_text(result.first.first_token_seconds)))
    if result.warm_start is not None:
        warm = result.warm_start
        rows.append(("first token, warm start", *map(seconds_text, (warm.median, warm.least, warm.most))))
    if result.cold_start is not None:
        rows.append(("first token, nothing cached", seconds_text(result.cold_start.first_token_seconds)))
        rows.append(("compile, nothing cached", seconds_text(result.cold_start.compile_seconds)))
    rows.append(("load, compilation included", seconds_text(result.first.load_seconds)))
    rows.append(("compile", seconds_text(result.first.compile_seconds)))
    if result.peak_rss_bytes:
        rows.append(("peak memory", bytes_text(result.peak_rss_bytes)))
    return rows


def _peer_rows(entry: Result, result: Measurement) -> list[tuple[str, ...]]:
    """A line for each peer; the speed of RLX beside it is that of the same rounds."""
    rows: list[tuple[str, ...]] = []
    for system in result.systems[1:]:
        mine, theirs = entry.samples(RLX), entry.samples(system.name)
        ratios = entry.ratios(RLX, system.name)
        title = f"{entry.work.title}: {system.name}"
        if theirs is not None:
            rows.append((title, _median(mine), _median(theirs), *_ratio(ratios)))
    return rows


def _median(samples: Samples | None) -> str:
    return "-" if samples is None else f"{samples.median:.1f}"


def _ratio(samples: Samples | None) -> tuple[str, ...]:
    return ("-",) * 3 if samples is None else tuple(f"{v:.2f}" for v in (samples.median, samples.least, samples.most))


def _remarks(result: Measurement) -> list[str]:
    """What was asked for and has no figure, and why."""
    lines = [f"not installed: {peer.name}: {peer.found}\n  do: {peer.fix}" for peer in result.missing]
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in result.results:
        for name, why in entry.problems.items():
            reasons.setdefault((name, _one_line(why)), []).append(entry.work.name)
    for (name, why), works in reasons.items():
        lines.append(f"no figure: {name}: {', '.join(works)}: {why}")
    if not result.is_complete:
        lines.append("not complete: it ended before everything was measured")
    return lines


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."
