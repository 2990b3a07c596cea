"""`rlx explain`: a page that shows a model on every level, from its blocks to the instructions.

In: a model, a path. Out: an HTML file. What is on it: `rlx/inspect/explain/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.loading import LoadFlags, loaded
from rlx.cli.progress import StatusLine
from rlx.cli.reporting import remark
from rlx.cli.units import bytes_text


def explain_command(
    model: Annotated[str | None, typer.Argument(help=flags.MODEL_HELP, show_default=False)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.", metavar="FILE")] = Path(
        "explain.html"
    ),
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", help="Length of the prompt to read.")] = 512,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", "-n", help="Tokens to generate one by one.")] = 32,
    depth: Annotated[int, typer.Option("--depth", "-d", help="Tokens in the cache before those.")] = 0,
    texts: Annotated[int, typer.Option(help="Texts of one call of an encoder.")] = 16,
    text_tokens: Annotated[int, typer.Option(help="Tokens of each text for an encoder.")] = 128,
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", help="Times each is run; the quickest counts.")
    ] = 3,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    context: flags.ContextOption = None,
    kv_cache: flags.KvCacheOption = None,
    profile: flags.ProfileOption = None,
) -> None:
    """Write one HTML page that shows a model on every level, with the times that were measured.

    Example: rlx explain model.gguf -o model.html
    """
    from rlx.runtime.explainer import explain_model
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
    with loaded(load) as opened, StatusLine() as status:
        explain_model(opened, output, work, progress=status.show)
    remark(f"{output}: {bytes_text(output.stat().st_size)}; open it in a browser")
