"""`rlx convert`: a Hugging Face folder as a GGUF file, or the other way round.

In: a model reference and a path. Out: the file or folder. The work is in `rlx/models/convert.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.output import use_utf8, write_json, write_text


def convert_command(
    source: Annotated[str, typer.Argument(help=flags.MODEL_HELP, metavar="SRC")],
    destination: Annotated[
        Path, typer.Argument(help="The .gguf file, or the folder, to write; which one follows from SRC.", metavar="DST")
    ],
    threads: flags.ThreadsOption = None,
    json_output: flags.JsonOption = False,
) -> None:
    """Convert a model between a folder of safetensors and GGUF; every value stays as it is.

    Example: rlx convert ./SmolLM2-135M smollm2.gguf

    Example: rlx convert smollm2.gguf ./SmolLM2-again
    """
    from rlx.cli.loading import fetch
    from rlx.cli.progress import FetchProgress
    from rlx.io.reference import open_model
    from rlx.models.convert import convert
    from rlx.runtime.load import checked_threads

    checkpoint = open_model(fetch(source))
    with FetchProgress() as progress:
        convert(checkpoint, destination, threads=checked_threads(threads), progress=progress)
    written = open_model(destination)
    use_utf8()
    if json_output:
        write_json({"path": str(destination), "format": written.kind, "bytes": written.file_size})
    else:
        write_text(f"{destination}: {written.kind}, {len(written.tensors)} tensors, {written.file_size} bytes\n")
