"""The conversation of `rlx chat`, and the commands that begin with a slash.

In: a line such as `/save talk.json`. Out: a changed conversation, a file, a remark on stderr. Used by `chat.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rlx.cli.reporting import remark, tell_error

HELP = """\
/help           this list
/reset          forget the conversation, keep the system text
/system TEXT    tell the model something first, and forget the conversation
/save FILE      write the conversation as JSON
/exit           leave (also Ctrl-D)"""


@dataclass
class Conversation:
    """The turns so far, as chat templates take them: `{"role": ..., "content": ...}`."""

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system text."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def add(self, role: str, content: str) -> None:
        """Add a turn."""
        self.messages.append({"role": role, "content": content})


def run_command(conversation: Conversation, line: str) -> bool:
    """Do what a line with a slash asks for. Returns False to leave the chat."""
    name, _, argument = line.partition(" ")
    if name in ("/exit", "/quit"):
        return False
    command = _COMMANDS.get(name)
    if command is None:
        tell_error(f"{name} is not a command; /help lists them")
    else:
        command(conversation, argument.strip())
    return True


def _help(conversation: Conversation, argument: str) -> None:
    remark(HELP)


def _reset(conversation: Conversation, argument: str) -> None:
    conversation.reset()
    remark("the conversation is forgotten")


def _system(conversation: Conversation, argument: str) -> None:
    conversation.system = argument or None
    conversation.reset()
    remark("a new conversation " + (f"with the system text {argument!r}" if argument else "without a system text"))


def _save(conversation: Conversation, argument: str) -> None:
    if not argument:
        tell_error("/save needs a file name")
        return
    path = Path(argument).expanduser()
    try:
        path.write_text(json.dumps(conversation.messages, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        tell_error(f"the conversation cannot be written: {error}")
        return
    remark(f"{len(conversation.messages)} messages are in {path}")


_COMMANDS: dict[str, Callable[[Conversation, str], None]] = {
    "/help": _help,
    "/reset": _reset,
    "/system": _system,
    "/save": _save,
}
