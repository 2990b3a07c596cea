"""The `rlx` command: arguments in, an exit code out.

Everything here runs before the first token, so a command's module is imported only when that command is asked for (or
for the list of `rlx --help`), and a plain command line is read without typer (`declare.py`). Next: `generate.py` for a
command, `reporting.py` for how errors are told.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, NoReturn

from rlx import __version__
from rlx.cli.declare import call_plainly, option, with_typer
from rlx.cli.reporting import BROKEN_PIPE, discard_stdout, open_missing_streams, report_failure, reported

if TYPE_CHECKING:
    import typer

COMMANDS = (
    "generate",
    "chat",
    "embed",
    "rerank",
    "classify",
    "transcribe",
    "perplexity",
    "bench",
    "profile",
    "explain",
    "inspect",
    "quantize",
    "convert",
    "cache",
    "doctor",
)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"rlx {__version__}\n")
        raise SystemExit(0)


def _root(
    debug: Annotated[bool, option("--debug", help="Show the Python traceback of an error. Goes first.")] = False,
    version: Annotated[
        bool, option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run transformer models, compiled on this machine.

    Example: rlx generate "The capital of France is"

    A flag beats the environment, the environment beats the default; `rlx doctor` lists the environment variables.

    Exit codes: 0 done, 1 failed, 2 wrong option or input, 3 model not found or not fetched, 4 damaged model,
    5 unsupported model, 6 cannot write, 7 out of context, 8 compiler error, 70 internal error, 130 interrupted.
    """


def build_app(names: Sequence[str] = COMMANDS, *, debug: bool = False) -> typer.Typer:
    """The command line with the commands in `names`; with `debug`, their errors come out as exceptions."""
    import typer

    # Plain help: the decorated one costs 60 ms of imports on every usage error.
    app = typer.Typer(
        name="rlx",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(with_typer(_root))
    for name in names:
        command = _command(name)
        app.command(name)(with_typer(command if debug else reported(command)))
    return app


def _command(name: str) -> Callable[..., None]:
    return getattr(import_module(f"rlx.cli.{name}"), f"{name}_command")


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
        if words and words[0] in COMMANDS and call_plainly(reported(_command(words[0])), words[1:]):
            return 0
        app = build_app([first] if first in COMMANDS else COMMANDS, debug=debug)
        app(args=words, prog_name="rlx")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (Exception, KeyboardInterrupt) as error:
        code = _chosen_exit(error)
        return report_failure(error, debug=debug) if code is None else code
    return 0


def _chosen_exit(error: BaseException) -> int | None:
    """The exit code of a `typer.Exit`, which typer itself does not see when the command line was plain."""
    if "typer" not in sys.modules:
        return None
    import typer

    return error.exit_code if isinstance(error, typer.Exit) else None


def run() -> NoReturn:
    """The `rlx` program: `main`, and the end of the process.

    What was registered for the end is done and the streams are flushed, but the interpreter is not taken apart: that
    takes 0.1 s of the user's time, to free memory that the system is about to take back.
    """
    code = main()
    try:
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]  # there is no public name for it
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        discard_stdout()
        code = code or BROKEN_PIPE
    except KeyboardInterrupt:
        code = report_failure(KeyboardInterrupt(), debug=False)
    except OSError as error:
        code = code or report_failure(error, debug=False)
    os._exit(code)
