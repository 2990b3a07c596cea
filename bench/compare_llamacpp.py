"""RLX beside llama.cpp on one GGUF file: run by run in turns, medians and ratios.

In: the path of a GGUF file and of llama.cpp's `llama-bench`. Out: a table on stderr and JSON on stdout. The machine's
pace changes from one minute to the next, so the two take turns and a ratio is formed within each pair; the median ratio
is what counts.

    python bench/compare_llamacpp.py model.gguf --llama-bench PATH --threads 2 --pairs 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PREFILL, DECODE = "prefill_tokens_per_second", "decode_tokens_per_second"


@dataclass(frozen=True)
class Work:
    """What both systems do in one run."""

    model: str
    prompt_tokens: int
    decode_tokens: int
    threads: int
    repetitions: int


def run_rlx(work: Work) -> dict[str, float]:
    """Speeds in tokens per second, by `rlx bench` in a process of its own."""
    command = [sys.executable, "-m", "rlx", "bench", work.model, "--json", "--starts", "0"]
    command += ["-p", str(work.prompt_tokens), "-n", str(work.decode_tokens)]
    command += ["-t", str(work.threads), "-r", str(work.repetitions)]
    document = json.loads(_output(command))
    return {PREFILL: document[PREFILL], DECODE: document[DECODE]}


def run_llamacpp(work: Work, binary: str) -> dict[str, float]:
    """Speeds in tokens per second, by llama-bench, as the median of its own samples."""
    command = [binary, "-m", work.model, "-o", "json", "-t", str(work.threads), "-r", str(work.repetitions)]
    command += ["-p", str(work.prompt_tokens), "-n", str(work.decode_tokens)]
    speeds: dict[str, float] = {}
    for entry in json.loads(_output(command)):
        speeds[PREFILL if entry["n_prompt"] else DECODE] = statistics.median(entry["samples_ts"])
    return speeds


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(work: Work, binary: str, pairs: int) -> dict[str, Any]:
    """Run `pairs` pairs; which of the two goes first alternates."""
    systems: dict[str, Callable[[], dict[str, float]]] = {
        "rlx": lambda: run_rlx(work),
        "llama.cpp": lambda: run_llamacpp(work, binary),
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    run_rlx(Work(work.model, 8, 2, work.threads, 1))  # compiles, so that no measured run does
    for pair in range(pairs):
        for name in sorted(systems, reverse=bool(pair % 2)):
            runs[name].append(systems[name]())
            print(f"pair {pair + 1} of {pairs}: {name} {_speeds(runs[name][-1])}", file=sys.stderr)
    result: dict[str, Any] = {"work": vars(work), "runs": runs}
    for speed in (PREFILL, DECODE):
        ratios = [mine[speed] / other[speed] for mine, other in zip(runs["rlx"], runs["llama.cpp"], strict=True)]
        result[speed] = {
            **{name: statistics.median(run[speed] for run in runs[name]) for name in systems},
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return result


def _speeds(run: dict[str, float]) -> str:
    return ", ".join(f"{name.partition('_')[0]} {value:.1f}" for name, value in run.items())


def main() -> None:
    """Parse the flags, compare, print."""
    parser = argparse.ArgumentParser(description="RLX beside llama.cpp on one GGUF file.")
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--llama-bench", required=True, help="path of llama.cpp's llama-bench")
    parser.add_argument("-p", "--prompt-tokens", type=int, default=512)
    parser.add_argument("-n", "--decode-tokens", type=int, default=128)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="samples of each system within a run")
    parser.add_argument("--pairs", type=int, default=5)
    flags = parser.parse_args()
    work = Work(flags.model, flags.prompt_tokens, flags.decode_tokens, flags.threads, flags.repetitions)
    result = compare(work, flags.llama_bench, flags.pairs)
    print(f"{'tokens/s':10}{'rlx':>10}{'llama.cpp':>12}{'ratio':>8}   range", file=sys.stderr)
    for speed in (PREFILL, DECODE):
        row = result[speed]
        print(
            f"{speed.partition('_')[0]:10}{row['rlx']:10.1f}{row['llama.cpp']:12.1f}{row['ratio']:8.2f}"
            f"   {row['ratio_min']:.2f} to {row['ratio_max']:.2f}",
            file=sys.stderr,
        )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
