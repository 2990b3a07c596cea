"""`rlx chat`: a conversation, with the model's own chat template.

In: lines from a person at a terminal, or from a pipe (one turn a line). Out: the answers on stdout. The commands a
person may type are in `chat_commands.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlx.cli import options as flags
from rlx.cli.chat_commands import Conversation, run_command
from rlx.cli.generate import checked_text, follow, summary
from rlx.cli.output import use_utf8, write_json, write_text
from rlx.cli.reporting import INTERRUPTED, is_terminal, remark, tell_error
from rlx.errors import ContextLengthError, OptionError

if TYPE_CHECKING:
    from rlx.runtime.model import Model


def chat_command(
    model: flags.ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens of an answer.")] = 1024,
    temperature: flags.TemperatureOption = None,
    top_k: flags.TopKOption = None,
    top_p: flags.TopPOption = None,
    min_p: flags.MinPOption = None,
    repetition_penalty: flags.RepetitionOption = None,
    frequency_penalty: flags.FrequencyOption = None,
    presence_penalty: flags.PresenceOption = None,
    penalty_window: flags.PenaltyWindowOption = None,
    seed: flags.SeedOption = None,
    stop: flags.StopOption = None,
    logit_bias: flags.LogitBiasOption = None,
    precision: flags.PrecisionOption = None,
    threads: flags.ThreadsOption = None,
    target: flags.TargetOption = None,
    context: flags.ContextOption = None,
    kv_cache: flags.KvCacheOption = None,
    profile: flags.ProfileOption = None,
    json_output: flags.JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell what each answer took.")] = False,
) -> None:
    """Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves; /help lists the commands.

    With a pipe as its input, each line is a turn. --json prints one JSON document per answer, each on a line.

    Example: rlx chat --system "You answer in one sentence."

    Example: echo "What is the capital of France?" | rlx chat --temperature 0
    """
    from rlx.cli.loading import LoadFlags, loaded_model

    chosen = flags.generation_options(
        stop=stop,
        logit_bias=logit_bias,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        penalty_window=penalty_window,
        seed=seed,
    )
    use_utf8()
    conversation = Conversation(checked_text(system) if system is not None else None)
    with loaded_model(LoadFlags(model, precision, threads, target, context, kv_cache, profile)) as loaded:
        answer = Answerer(loaded, chosen, json_output=json_output, verbose=verbose)
        if is_terminal(sys.stdin):
            _talk(loaded.name, conversation, answer)
        else:
            _read_turns(conversation, answer)


class Answerer:
    """Answers the last turn of a conversation on stdout and adds the answer to it."""

    def __init__(self, model: Model, options: dict[str, Any], *, json_output: bool, verbose: bool) -> None:
        self._model, self._options = model, options
        self._json_output, self._verbose = json_output, verbose

    def __call__(self, conversation: Conversation) -> bool:
        """Returns False when Ctrl-C stopped the answer; what there was of it is kept.

        Raises:
            RlxError: the conversation has become too long, or the like; its last turn is taken back.
        """
        try:
            with self._model.stream_chat(conversation.messages, **self._options) as stream:
                result = follow(stream, echo=not self._json_output)
        except BaseException:
            conversation.messages.pop()
            raise
        conversation.add("assistant", result.text)
        if self._json_output:
            write_json(result.to_json(), indent=None)
        if self._verbose:
            remark(summary(result))
        return result.finish_reason != "cancelled"


def _read_turns(conversation: Conversation, answer: Callable[[Conversation], bool]) -> None:
    """One turn a line, from a pipe. Ctrl-C ends it all; an error ends it with its exit code."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  # None when the descriptor is closed
        raise OptionError("there is nobody to talk to", found="a closed stdin", fix="give a terminal or a pipe")
    try:
        for line in sys.stdin:
            if text := line.strip():
                conversation.add("user", text)
                if not answer(conversation):
                    raise typer.Exit(INTERRUPTED)
    except UnicodeDecodeError as error:
        raise OptionError("the input is not UTF-8", where="stdin", found=str(error)) from None


def _talk(name: str, conversation: Conversation, answer: Callable[[Conversation], bool]) -> None:
    """A person at a terminal: errors and Ctrl-C lead back to the prompt."""
    _use_line_editor()
    remark(f"{name}. /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            write_text("\n")
            return
        except KeyboardInterrupt:
            write_text("\n")
            remark("Ctrl-D or /exit leaves")
            continue
        if text.startswith("/"):
            if not run_command(conversation, text):
                return
        elif text:
            conversation.add("user", checked_text(text))
            _answer_or_tell(conversation, answer)


def _answer_or_tell(conversation: Conversation, answer: Callable[[Conversation], bool]) -> None:
    try:
        if not answer(conversation):
            remark("stopped")
    except ContextLengthError as error:
        tell_error(f"{error.message}\n  or:       /reset forgets the conversation")
    except KeyboardInterrupt:
        remark("stopped")


def _use_line_editor() -> None:
    """Arrow keys and history where the platform has readline; `input` finds it once it is imported."""
    try:
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return
