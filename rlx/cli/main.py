"""The `rlx` command: arguments in, an exit code out.

Everything here runs before the first token, so a command's module is imported only when that command is asked for (or
for the list of `rlx --help`). Next: `generate.py` for a command, `reporting.py` for how errors are told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated

import typer

from rlx import __version__
from rlx.cli.reporting import open_missing_streams, report_failure, reported

COMMANDS = ("generate", "chat", "embed", "bench", "inspect", "cache", "doctor")


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"rlx {__version__}")
        raise typer.Exit


def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error. Goes first.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run transformer language models, compiled on this machine.

    Example: rlx generate "The capital of France is"

    A flag beats the environment, the environment beats the default; `rlx doctor` lists the environment variables.

    Exit codes: 0 done, 1 failed, 2 wrong option or input, 3 model not found or not fetched, 4 damaged model,
    5 unsupported model, 6 cannot write, 7 out of context, 8 compiler error, 70 internal error, 130 interrupted.
    """


def build_app(names: Sequence[str] = COMMANDS, *, debug: bool = False) -> typer.Typer:
    """The command line with the commands in `names`; with `debug`, their errors come out as exceptions."""
    # Plain help: the decorated one costs 60 ms of imports on every usage error.
    app = typer.Typer(
        name="rlx",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in names:
        command: Callable[..., None] = getattr(import_module(f"rlx.cli.{name}"), f"{name}_command")
        app.command(name)(command if debug else reported(command))
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes them from the process.

    Returns:
        The exit code.
    """
    open_missing_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = words[:1] == ["--debug"]
    first = next((word for word in words if not word.startswith("-")), None)
    try:
        app = build_app([first] if first in COMMANDS else COMMANDS, debug=debug)
        app(args=words, prog_name="rlx")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Exception, KeyboardInterrupt) as error:
        return report_failure(error, debug=debug)
    return 0
