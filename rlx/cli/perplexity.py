"""`rlx perplexity`: how well a model predicts a text, and how far it is from another model.

In: a text file. Out: a table on stdout, or JSON; progress on stderr. Next: `rlx/runtime/perplexity.py`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.lines import TextProgress, read_text
from rlx.cli.output import use_utf8, write_json, write_table
from rlx.cli.reporting import remark
from rlx.cli.units import seconds_text

if TYPE_CHECKING:
    from rlx.runtime.perplexity import Perplexity


def perplexity_command(
    file: Annotated[str, typer.Option("--file", "-f", help="A text file in UTF-8; - for stdin.", metavar="FILE")],
    model: Annotated[str | None, typer.Argument(help=flags.MODEL_HELP, metavar="MODEL")] = None,
    window: Annotated[int, typer.Option(help="Tokens of a window; its second half is scored.", metavar="N")] = 512,
    windows: Annotated[
        int | None, typer.Option(help="Read this many windows at most; all by default.", metavar="N")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Another form of the model, which is run with precision exact: give the KL divergence from it.",
            metavar="MODEL",
        ),
    ] = None,
    json: flags.JsonOption = False,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    kv_cache: flags.KvCacheOption = None,
    profile: flags.ProfileOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """How well a model predicts a text: exp of the mean negative log-likelihood of a token.

    The text is cut into windows that do not overlap, and the second half of each is scored, as llama.cpp does.

    Example: rlx perplexity model-Q4_K_M.gguf --file book.txt --reference model-F32.gguf
    """
    from rlx.cli.loading import LoadFlags, loaded_model

    text = read_text(file)
    with ExitStack() as stack:
        own = stack.enter_context(loaded_model(LoadFlags(model, precision, threads, target, window, kv_cache, profile)))
        other = None
        if reference is not None:
            other = stack.enter_context(loaded_model(LoadFlags(reference, "exact", threads, target, window, "f32")))
        start = time.perf_counter()
        result = own.perplexity(
            text,
            window=window,
            most_windows=windows,
            reference=other,
            progress=None if quiet else TextProgress("windows"),
        )
        seconds = time.perf_counter() - start
        name = own.name
    use_utf8()
    if json:
        write_json({"model": name, **result.to_json(), "seconds": seconds})
    else:
        write_table(name, _rows(result))
    if not quiet:
        remark(f"{result.windows} windows of {result.window} tokens in {seconds_text(seconds)}")


def _rows(result: Perplexity) -> list[tuple[str, str]]:
    rows = [
        ("perplexity", f"{result.perplexity:.4f} ± {result.standard_error:.4f}"),
        ("tokens scored", f"{result.tokens} in {result.windows} windows of {result.window}"),
        ("tokens left over", str(result.left_over)),
    ]
    if (found := result.divergence) is not None:
        rows += [
            ("perplexity of the reference", f"{found.reference_perplexity:.4f}"),
            ("mean KL (nats)", f"{found.mean_kl:.6f}"),
            ("median, 99%, largest KL", f"{found.median_kl:.6f}, {found.p99_kl:.4f}, {found.largest_kl:.4f}"),
            ("same most likely token", f"{found.same_top:.2%}"),
        ]
    return rows
