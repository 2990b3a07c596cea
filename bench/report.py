"""docs/benchmarks.md: every measurement of RLX beside other programs, as tables and a plot.

    python -m bench.report --models FOLDER --list                     # the parts
    python -m bench.report --models FOLDER --only 'llama-1b-Q4_0.*'   # some of them
    python -m bench.report                                            # only write the document, of what is measured

In: a folder of models. Each part is one process of less than 90 seconds, and leaves a file in bench/results/; a part
that is run again replaces its file, with `--more` it adds rounds to it. The document is made of the files that are
there, so the parts may be run on a quiet machine one by one. Paths of peers come from the environment, as for `rlx
bench`. Next: `lab/document.py`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.lab.document import RESULTS, write_document

PART_SECONDS = 90
KERNEL_GROUPS = {
    "kernels-few": ("linear, 1 row",),
    "kernels-batch": ("linear, 8 rows",),
    "kernels-many": ("linear, 512 rows",),
    "kernels-rest": ("matmul", "attention", "rows"),
}
LLAMA_CPP = "llama.cpp,ik_llama.cpp"
ENCODER_PEERS = "torch-f32,onnxruntime-f32,onnxruntime-int8,openvino-f32,openvino-bf16"


@dataclass(frozen=True, slots=True)
class Part:
    """One process. `name` is its file in bench/results/, `flags` what is run."""

    name: str
    module: str
    flags: tuple[str, ...]


def parts_of(folder: Path | None, threads: tuple[int, ...] = (1, 2)) -> Iterator[Part]:
    """All parts: the kernels, and every model of the folder (GGUF files, and folders with a config.json)."""
    for count in threads:
        for name, groups in KERNEL_GROUPS.items():
            only = tuple(f"--only={group}" for group in groups)
            yield Part(f"{name}.t{count}", "bench.kernels", ("-t", str(count), *only))
    for model in sorted(folder.iterdir()) if folder is not None else ():
        if model.suffix == ".gguf":
            yield from _language_parts(model, threads, LLAMA_CPP)
        elif (model / "config.json").exists():
            yield from (
                _encoder_parts(model, threads) if _is_encoder(model) else _language_parts(model, threads, "torch")
            )


def _is_encoder(model: Path) -> bool:
    names = json.loads((model / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return not str(names[0]).endswith("ForCausalLM")


def _language_parts(model: Path, threads: tuple[int, ...], peers: str) -> Iterator[Part]:
    for count in threads:
        work = (str(model), "-t", str(count), "--peer", peers)
        name = model.stem if model.suffix == ".gguf" else model.name
        alone = (*work, "--starts", "0")
        yield Part(f"{name}.prefill.t{count}", "rlx", ("bench", *alone, "--measure", "prefill", "-r", "5"))
        yield Part(f"{name}.decode.t{count}", "rlx", ("bench", *alone, "--measure", "decode", "-n", "64", "-r", "7"))
        yield Part(f"{name}.batch.t{count}", "rlx", ("bench", *alone, "--measure", "batch", "-n", "64", "-r", "5"))
        long = ("-p", "8192", "-n", "32", "-d", "8192", "-r", "1", "-c", "8704")
        yield Part(f"{name}.depth.t{count}", "rlx", ("bench", *alone, "--measure", "depth", *long))
        yield Part(f"{name}.prefill8k.t{count}", "rlx", ("bench", *alone, "--measure", "prefill", *long))
    start = ("-t", str(threads[-1]), "--measure", "decode", "-n", "16", "-r", "1", "--starts", "5", "-c", "2048")
    yield Part(f"{model.stem}.start", "rlx", ("bench", str(model), *start))


def _encoder_parts(model: Path, threads: tuple[int, ...]) -> Iterator[Part]:
    for count in threads:
        for texts in (1, 32):
            flags = ("--measure", "encode", "--texts", str(texts), "-t", str(count), "--starts", "0")
            for precision in ("exact", "fast"):
                more = ("--precision", precision, "--peer", ENCODER_PEERS, "-r", "5")
                name = f"{model.name}.encode{texts}-{precision}.t{count}"
                yield Part(name, "rlx", ("bench", str(model), *flags, *more))


def run_part(part: Part, results: Path, *, more: bool) -> str | None:
    """Run a part and keep what it printed; gives what went wrong, or None."""
    command = [sys.executable, "-m", part.module, *part.flags, "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PART_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it took longer than {PART_SECONDS} s"
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return " ".join((done.stderr or done.stdout).split())[-300:] or f"exit code {done.returncode}"
    path = results / f"{part.name}.json"
    if more and path.exists():
        found = with_rounds_of(json.loads(path.read_text(encoding="utf-8")), found)
    results.mkdir(parents=True, exist_ok=True)
    found["command"] = " ".join(["python", "-m", part.module, *map(_without_folder, part.flags)])
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return None if not done.returncode else f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"


def _without_folder(flag: str) -> str:
    """A path as another machine would have it: the name alone."""
    return Path(flag).name if "/" in flag else flag


def with_rounds_of(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` with the rounds of `old` before its own; what has no rounds is `new`'s."""
    from rlx.cli.compare import Samples

    before = {work["name"]: work for work in old.get("works", [])}
    for work in new.get("works", []):
        for name, system in work["systems"].items():
            known = before.get(work["name"], {}).get("systems", {}).get(name, {})
            for key in ("speed", "rlx_ratio"):
                values = [*((known.get(key) or {}).get("values", [])), *((system.get(key) or {}).get("values", []))]
                system[key] = Samples(tuple(values)).to_json() if values else None
    return new


def main() -> int:
    """Run the parts that were asked for, then write the document; 1 if a part failed."""
    parser = argparse.ArgumentParser(description="Measure RLX beside other programs and write docs/benchmarks.md.")
    parser.add_argument(
        "--models", type=Path, help="a folder of GGUF files and model folders; without it nothing is run"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="parts to run, * allowed; repeatable"
    )
    parser.add_argument("--missing", action="store_true", help="only parts that have no result yet")
    parser.add_argument("--more", action="store_true", help="add rounds to a result instead of replacing it")
    parser.add_argument("--list", action="store_true", help="show the parts and end")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--output", type=Path, default=RESULTS.parents[1] / "docs" / "benchmarks.md")
    flags = parser.parse_args()
    if flags.models is not None and not flags.models.is_dir():
        parser.error(f"--models {flags.models}: there is no such folder")
    parts = list(parts_of(flags.models)) if flags.models is not None or flags.list or flags.only else []
    chosen = [part for part in parts if not flags.only or any(fnmatch.fnmatch(part.name, name) for name in flags.only)]
    if flags.missing:
        chosen = [part for part in chosen if not (flags.results / f"{part.name}.json").exists()]
    if flags.only and not chosen and not flags.missing:
        parser.error(f"--only {' '.join(flags.only)}: no part has such a name (--list shows them)")
    if flags.list:
        print("\n".join(part.name for part in chosen))
        return 0
    failed = 0
    for number, part in enumerate(chosen):
        start = time.perf_counter()
        problem = run_part(part, flags.results, more=flags.more)
        failed += problem is not None
        seconds = time.perf_counter() - start
        print(f"{number + 1} of {len(chosen)}: {part.name}: {problem or 'done'} ({seconds:.0f} s)", file=sys.stderr)
    write_document(flags.results, flags.output)
    print(f"written: {flags.output}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
