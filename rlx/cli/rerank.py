"""`rlx rerank`: the lines of a file by how well they answer a query.

In: a query, and a text file with one document a line, or stdin. Out: a line for each on stdout, best first, or JSON;
progress on stderr.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.lines import TextProgress, read_lines
from rlx.cli.output import use_utf8, write_json, write_text
from rlx.cli.reporting import remark
from rlx.cli.units import seconds_text


def rerank_command(
    query: Annotated[str, typer.Argument(help="The question.")],
    file: Annotated[str, typer.Argument(help="A text file in UTF-8, one document a line; - for stdin.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A folder, org/name or pypi:PACKAGE of a cross-encoder.", metavar="MODEL"),
    ],
    top: Annotated[int | None, typer.Option(help="Give this many documents; all by default.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Put this before the query.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Put the model's prompt of this name before the query.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    profile: flags.ProfileOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.")] = False,
) -> None:
    """Rank the lines of a file by how well they answer a query, best first.

    Prints score, number of the line (from 0) and text, with tabs between them.

    Example: rlx rerank "How do I reset my password?" answers.txt --model cross-encoder/ms-marco-MiniLM-L6-v2
    """
    from rlx.cli.loading import LoadFlags, loaded_encoder

    documents = read_lines(file)
    use_utf8()
    with loaded_encoder(LoadFlags(model, precision, threads, target, None, profile)) as encoder:
        start = time.perf_counter()
        ranking = encoder.rerank(
            query,
            documents,
            top=top,
            prompt=prompt,
            prompt_name=prompt_name,
            progress=None if quiet else TextProgress(),
        )
        seconds = time.perf_counter() - start
    rows = [{"index": entry.index, "score": entry.score, "text": documents[entry.index]} for entry in ranking]
    if json:
        write_json({"query": query, "ranking": rows})
    else:
        for row in rows:
            write_text(f"{row['score']:.6f}\t{row['index']}\t{row['text']}\n")
    if not quiet:
        remark(f"{len(documents)} texts in {seconds_text(seconds)} ({len(documents) / seconds:.0f} texts/s)")
