"""`rlx bench`: how fast a model file is on this machine.

In: a model, a prompt length, a number of tokens. Out: medians with their range, as a table or JSON. What is measured
and how is in `measure.py`; `bench/compare_llamacpp.py` puts another system beside it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.loading import LoadFlags
from rlx.cli.measure import Measurement, check_sizes, measure
from rlx.cli.output import use_utf8, write_json, write_table
from rlx.cli.units import bytes_text, count_text, seconds_text


def bench_command(
    model: Annotated[str | None, typer.Argument(help=flags.MODEL_HELP, show_default=False)] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", help="Length of the prompt to read.")] = 512,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", "-n", help="Tokens to generate one by one.")] = 128,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", help="Times each is measured.")] = 5,
    starts: Annotated[
        int, typer.Option(help="Fresh processes to start, one after the other, for the warm start; 0 leaves it out.")
    ] = 3,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    context: flags.ContextOption = None,
    kv_cache: flags.KvCacheOption = None,
    profile: flags.ProfileOption = None,
    json_output: flags.JsonOption = False,
) -> None:
    """Measure a model: reading a prompt, generating, starting, memory.

    first_token_seconds counts from the start of this very process to its first token, before anything else is measured;
    `cache` says whether its kernels came from the cache (warm) or were compiled (cold). warm_start is the same in fresh
    processes afterwards. Generation begins with an empty context, as llama-bench measures it.

    Example: rlx bench model.gguf -p 512 -n 128 --threads 2

    Example: rlx bench --json > result.json
    """
    check_sizes(prompt_tokens, decode_tokens, repetitions, starts)
    use_utf8()
    result = measure(
        LoadFlags(model, precision, threads, target, context, kv_cache, profile),
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        repetitions=repetitions,
        starts=starts,
    )
    if json_output:
        write_json(result.to_json())
    else:
        write_table(f"{result.model} ({_facts(result)})", _rows(result), header=("", "median", "least", "most"))


def _facts(result: Measurement) -> str:
    facts = [str(result.info[key]) for key in ("architecture", "precision", "target") if key in result.info]
    parameters, size, threads = (result.info.get(key) for key in ("parameters", "file_bytes", "threads"))
    if isinstance(parameters, int):
        facts.append(f"{count_text(parameters)} parameters")
    if isinstance(size, int):
        facts.append(bytes_text(size))
    if threads is not None:
        facts.append(f"{threads} threads")
    return ", ".join(facts)


def _rows(result: Measurement) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    speeds = (
        (f"prefill, {result.prompt_tokens} tokens", result.prefill),
        (f"decode, {result.decode_tokens} tokens", result.decode),
    )
    for name, samples in speeds:
        values = (samples.median, samples.least, samples.most)
        rows.append((name, *(f"{value:.1f} tokens/s" for value in values)))
    rows.append((f"first token of this process ({result.cache})", seconds_text(result.first_token_seconds)))
    if result.warm_start is not None:
        warm = result.warm_start
        rows.append(("first token, warm start", *map(seconds_text, (warm.median, warm.least, warm.most))))
    rows.append(("load, compilation included", seconds_text(result.load_seconds)))
    rows.append(("compile", seconds_text(result.compile_seconds)))
    rows.append(("peak memory", bytes_text(result.peak_rss_bytes)))
    return rows
