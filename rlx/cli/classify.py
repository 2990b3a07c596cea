"""`rlx classify`: what pictures show.

In: pictures and a model with labels. Out: the most likely labels of each, as lines or JSON. Next: `embed.py`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.output import use_utf8, write_json, write_table


def classify_command(
    image: Annotated[list[str], typer.Argument(help="Pictures, or .npy files of them.", metavar="IMAGE...")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="A model folder or org/name of an image classifier.", metavar="MODEL"),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many labels to show.")] = 5,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    profile: flags.ProfileOption = None,
    json_output: flags.JsonOption = False,
) -> None:
    """Say what pictures show, the most likely first.

    With --json a document a line, {"image": ..., "labels": [{"index": ..., "name": ..., "probability": ...}]}.

    Example: rlx classify cat.jpg --model google/vit-base-patch16-224
    """
    from rlx.cli.loading import LoadFlags, loaded

    use_utf8()
    with loaded(LoadFlags(model, precision, threads, target, None, profile)) as classifier:
        classify = classifier.classify
        for path in image:
            labels = classify(path, top=top)
            if json_output:
                write_json({"image": path, "labels": [asdict(label) for label in labels]}, indent=None)
            else:
                write_table(path, [(label.name, f"{label.probability:.4f}") for label in labels])
