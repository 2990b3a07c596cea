"""`rlx inspect`: what a model file holds.

In: a model reference. Out: its facts as tables or JSON. The weights are not read; the facts come from
`rlx/inspect/model_file.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.output import use_utf8, write_json, write_table, write_text
from rlx.cli.units import bytes_text, count_text

if TYPE_CHECKING:
    from rlx.inspect.model_file import ModelFileSummary

_MAX_VALUE_CHARACTERS = 100


def inspect_command(
    model: Annotated[str, typer.Argument(help=flags.MODEL_HELP, metavar="FILE")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json_output: flags.JsonOption = False,
) -> None:
    """Show what a model file holds: architecture, tensors, types, sizes, tokenizer, chat template, metadata.

    Example: rlx inspect model.gguf

    Example: rlx inspect model.gguf --tensors --json
    """
    from rlx.cli.loading import fetch
    from rlx.inspect.model_file import summarize
    from rlx.io.reference import open_model

    summary = summarize(open_model(fetch(model)))
    use_utf8()
    if json_output:
        write_json(summary.to_json(tensors=tensors))
    else:
        _show(summary, tensors=tensors)


def _show(summary: ModelFileSummary, *, tensors: bool) -> None:
    write_table(_shown_line(summary.path), _overview(summary))
    write_text("\n")
    types = [
        (
            entry.dtype + ("" if entry.is_computable else " (listed only)"),
            str(entry.tensors),
            count_text(entry.parameters),
            bytes_text(entry.nbytes),
        )
        for entry in summary.types
    ]
    write_table("tensors by type", types, header=("type", "tensors", "parameters", "size"))
    if tensors:
        write_text("\n")
        rows = [(_shown(t.name), t.dtype, " x ".join(map(str, t.shape)), bytes_text(t.nbytes)) for t in summary.tensors]
        write_table("tensors", rows, header=("name", "type", "shape", "size"))
    write_text("\n")
    rows = [(_shown(key), _shown(value)) for key, value in summary.metadata.items() if value != summary.chat_template]
    write_table("metadata", rows)
    if summary.chat_template is not None:
        write_text("\nchat template\n" + "\n".join(map(_shown_line, summary.chat_template.splitlines())) + "\n")


def _overview(summary: ModelFileSummary) -> list[tuple[str, str]]:
    context = summary.context_length
    tokenizer = ", ".join(f"{key} {_shown(value)}" for key, value in summary.tokenizer.items())
    return [
        ("name", _shown(summary.name or "not said")),
        ("architecture", _shown(summary.architecture or "not said")),
        ("format", summary.kind),
        ("size", f"{bytes_text(summary.file_bytes)} ({summary.file_bytes} bytes)"),
        ("parameters", f"{count_text(summary.parameters)} ({summary.parameters})"),
        ("bits per parameter", f"{summary.bits_per_parameter:.2f}"),
        ("context", f"{context} tokens" if context is not None else "not said"),
        ("tokenizer", tokenizer or "none"),
        ("chat template", "none" if summary.chat_template is None else f"{len(summary.chat_template)} characters"),
    ]


def _shown(value: object) -> str:
    """A value on one line; text without quotes unless it holds something that a terminal would act upon."""
    text = _shown_line(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_VALUE_CHARACTERS else text[: _MAX_VALUE_CHARACTERS - 3] + "..."


def _shown_line(text: str) -> str:
    return text if text.isprintable() else repr(text)
