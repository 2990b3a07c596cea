"""docs/benchmarks.md out of bench/results/*.json: the machine, tables of models and of kernels, a plot.

In: the JSON of `rlx bench` and of `bench/kernels.py`, one file for each part of `bench/report.py`. Out: Markdown, and
an SVG beside it where matplotlib is installed. Every ratio is in it, those below 1 in bold: losses are to be seen.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlx.cli.doctor import examine

RESULTS = Path(__file__).parents[1] / "results"
PLOT = "benchmarks.svg"
Results = Mapping[str, dict[str, Any]]


def write_document(results: Path, output: Path) -> None:
    """Make the document of what is measured so far."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))}
    works = list(_works(found))
    has_plot = _plot(works, output.with_name(PLOT)) or output.with_name(PLOT).exists()
    lines = [
        "# Benchmarks",
        "",
        "RLX beside other programs on the same files, and each kernel beside the limits of the machine. Made by",
        "`python -m bench.report --models FOLDER` (`--list` shows the parts, `--only` runs some); not edited by hand.",
        "",
        *_machine(found),
        "## Models",
        "",
        "Medians, in tokens or sequences a second. RLX and the peer take turns, and the ratio is the median of the",
        "ratios within the rounds, with the least and the most of them; it is not the ratio of the two medians beside",
        "it. **Bold: RLX is slower.**",
        "",
        *([f"![speed of RLX over that of its peers]({PLOT})", ""] if has_plot else []),
        *_table(
            ("model", "threads", "what", "RLX", "peer", "its speed", "RLX / peer", "range", "rounds"),
            _model_rows(works),
        ),
        *_missing(found),
        "## Start, compilation, memory",
        "",
        *_table(
            ("model", "first token, warm", "first token, nothing cached", "compile", "peak memory", "file"),
            _starts(found),
        ),
        "## Kernels",
        "",
        "Least times. The limit is the one that holds by the roofline: a level of memory or a kind of arithmetic,",
        "measured in the same run. Reads from memory are measured before and after each kernel that does them.",
        "",
        *_kernels(found),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["Not measured yet.", ""]
    lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
    return [lines[0], "|" + " --- |" * len(header), *lines[1:], ""]


def _machine(found: Results) -> list[str]:
    facts = examine()
    host, target = facts.host, facts.target
    names = (
        "system",
        "python",
        "processor",
        "cores",
        "vector_extensions",
        "caches",
        "memory",
        "huge_pages",
        "governor",
    )
    rows = [(name.replace("_", " "), _fact(host[name])) for name in names if name in host]
    rows.append(
        ("RLX", f"{host['rlx']}, target {target.get('target')}, LLVM's name of the processor {target.get('llvm_cpu')}")
    )
    limits: dict[int, dict[str, Any]] = {}
    for document in found.values():
        for run in document.get("runs", []):
            best = limits.setdefault(run["limits"]["threads"], dict(run["limits"]))
            for name, value in run["limits"].items():
                if isinstance(value, float):
                    best[name] = max(value, best[name] or 0.0)
    for threads, best in sorted(limits.items()):
        text = f"memory {best['dram']:.1f}, L3 {best['l3']:.0f}, L2 {best['l2']:.0f} GB/s of reads; "
        text += f"f32 {best['f32']:.0f} GFLOP/s, int8 {best['int8']:.0f} GOP/s"
        text += f", bf16 {best['bf16']:.0f} GFLOP/s" if best["bf16"] else ""
        rows.append((f"limits, {threads} thread{'s' if threads > 1 else ''}", text))
    return ["## The machine", "", *_table(("", ""), rows)]


def _fact(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(size)}" for name, size in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and value >= 1 << 10:  # memory and caches; the counts of a machine are smaller
        return f"{value >> 20} MiB" if value >= 1 << 20 else f"{value >> 10} KiB"
    return str(value)


def _works(found: Results) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Model, facts and work of every measured work beside peers."""
    for name, document in found.items():
        for work in document.get("works", []):
            if not name.endswith(".start"):
                yield name.partition(".t")[0].rpartition(".")[0], document["info"], work


def _what(work: Mapping[str, Any]) -> str:
    tokens, sequences, depth = work["tokens"], work["sequences"], work["depth"]
    return {
        "prefill": f"prefill {tokens}",
        "decode": f"decode {tokens}",
        "batch": f"decode {tokens}, {sequences} sequences",
        "depth": f"decode {tokens} after {depth}",
        "encode": f"encode {sequences} x {tokens}",
    }[work["name"]]


def _model_rows(works: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for model, info, work in works:
        mine = work["systems"]["RLX"]
        speed = f"{mine['speed']['median']:.1f}" if mine["speed"] else mine["problem"] or "-"
        shared = (
            f"{model} ({info.get('precision')}, {info.get('target')})",
            str(info.get("threads")),
            _what(work),
            speed,
        )
        peers = [(name, system) for name, system in work["systems"].items() if name != "RLX"]
        rows += [(*shared, *_peer_cells(name, system)) for name, system in peers] or [(*shared, *["-"] * 5)]
    return rows


def _peer_cells(name: str, system: Mapping[str, Any]) -> tuple[str, ...]:
    speed, ratio = system["speed"], system["rlx_ratio"]
    if not speed or not ratio:
        return name, f"no figure: {' '.join((system['problem'] or '').split())[:120]}", "-", "-", "-"
    text = f"{ratio['median']:.2f}"
    return (
        name,
        f"{speed['median']:.1f}",
        f"**{text}**" if ratio["median"] < 1 else text,
        f"{ratio['min']:.2f} to {ratio['max']:.2f}",
        str(len(ratio["values"])),
    )


def _missing(found: Results) -> list[str]:
    names = sorted({peer["name"] for d in found.values() for peer in d.get("peers", []) if "missing" in peer})
    versions = sorted(
        {f"{p['name']} {p['version']}" for d in found.values() for p in d.get("peers", []) if p.get("version")}
    )
    lines = [f"Versions: {', '.join(versions)}.", ""] if versions else []
    return lines + ([f"Not installed where this was measured: {', '.join(names)}.", ""] if names else [])


def _starts(found: Results) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, document in found.items():
        if name.endswith(".start"):
            seconds = [document.get(f"{kind}_start_first_token_seconds") for kind in ("warm", "cold")]
            seconds.append(document.get("cold_start_compile_seconds"))
            sizes = (document["peak_rss_bytes"], document["info"].get("file_bytes"))
            cells = (
                *("-" if s is None else f"{s:.2f} s" for s in seconds),
                *(f"{n / 1e6:.0f} MB" if n else "-" for n in sizes),
            )
            rows.append((name.removesuffix(".start"), *cells))
    return rows


def _kernels(found: Results) -> list[str]:
    lines: list[str] = []
    for document in found.values():
        for run in document.get("runs", []):
            for group in dict.fromkeys(row["group"] for row in run["kernels"]):
                threads = run["limits"]["threads"]
                lines += [f"### {group}, {threads} thread{'s' if threads > 1 else ''}", ""]
                rows = [_kernel_cells(row) for row in run["kernels"] if row["group"] == group]
                header = ("kernel", "time, us", "GB/s", "Gop/s", "of limit", "limit", "x NumPy", "x torch")
                lines += _table(header, rows)
    return lines or ["Not measured yet.", ""]


def _kernel_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    seconds, torch = row["seconds"], row["torch_seconds"]
    times = row["plain_seconds"] / seconds
    return (
        row["name"] + ("" if row["is_right"] else " (WRONG)"),
        f"{seconds * 1e6:.1f}",
        f"{row['bytes_per_second'] / 1e9:.1f}",
        f"{row['operations_per_second'] / 1e9:.1f}",
        f"{row['of_limit']:.0%}",
        row["limit"],
        f"{times:.2f}" if times >= 1 else f"**{times:.2f}**",
        "-" if torch is None else f"{torch / seconds:.2f}" if torch >= seconds else f"**{torch / seconds:.2f}**",
    )


def _plot(works: Sequence[tuple[str, dict[str, Any], dict[str, Any]]], path: Path) -> bool:
    """A bar for each ratio, with its range; False where there is no matplotlib or nothing to show."""
    bars: list[tuple[str, str, dict[str, Any]]] = []
    for model, info, work in works:
        for name, system in work["systems"].items():
            if name != "RLX" and system["rlx_ratio"]:
                bars.append((f"{model}, {_what(work)}, {info.get('threads')} thr.", name, system["rlx_ratio"]))
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        figure_module: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    if not bars:
        return False
    matplotlib.rcParams["svg.hashsalt"] = "rlx"  # the same picture is the same file
    labels, peers = list(dict.fromkeys(bar[0] for bar in bars)), list(dict.fromkeys(bar[1] for bar in bars))
    figure = figure_module.Figure(figsize=(9, 1 + 0.22 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(peers)
    for index, peer in enumerate(peers):
        mine = [(labels.index(label), ratio) for label, name, ratio in bars if name == peer]
        places = [place + index * height for place, _ in mine]
        medians = [ratio["median"] for _, ratio in mine]
        spread = [[r["median"] - r["min"] for _, r in mine], [r["max"] - r["median"] for _, r in mine]]
        axes.barh(places, medians, height, xerr=spread, label=peer, error_kw={"elinewidth": 0.8})
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(labels))], labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("speed of RLX / speed of the peer (right of the line RLX is faster; range of the rounds)")
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    return True
