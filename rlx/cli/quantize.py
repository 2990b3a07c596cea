"""`rlx quantize`: a GGUF file with quantised weights.

In: a model reference, a path and the name of a type. Out: the file. The work is in `rlx/models/convert.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.output import use_utf8, write_json, write_text
from rlx.cli.units import bytes_text


def quantize_command(
    source: Annotated[str, typer.Argument(help=flags.MODEL_HELP, metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="The .gguf file to write.", metavar="DST")],
    type_name: Annotated[
        str, typer.Option("--type", help="Q4_K_M, Q8_0, F16...; a wrong name lists all.", metavar="NAME")
    ] = "Q4_K_M",
    threads: flags.ThreadsOption = None,
    json_output: flags.JsonOption = False,
) -> None:
    """Write a model as a GGUF file with quantised weights, which llama.cpp loads too.

    Example: rlx quantize ./SmolLM2-135M smollm2-q4_k_m.gguf --type Q4_K_M

    Example: rlx quantize model-f16.gguf model-q6_k.gguf --type Q6_K
    """
    from rlx.cli.loading import fetch
    from rlx.cli.progress import FetchProgress
    from rlx.io.reference import open_model
    from rlx.models.convert import quantize
    from rlx.runtime.load import checked_threads

    start = time.perf_counter()
    checkpoint = open_model(fetch(source))
    with FetchProgress() as progress:
        types = quantize(
            checkpoint, destination, type_name.upper(), threads=checked_threads(threads), progress=progress
        )
    counts = Counter(str(dtype) for dtype in types.values())
    size, seconds = destination.stat().st_size, time.perf_counter() - start
    use_utf8()
    if json_output:
        write_json(
            {"path": str(destination), "bytes": size, "seconds": seconds, "type": type_name.upper(), "tensors": counts}
        )
    else:
        kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        write_text(f"{destination}: {bytes_text(size)}, {kinds}, in {seconds:.1f} s\n")
