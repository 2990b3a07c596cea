"""`rlx chat` through a pipe, and at a real terminal (a pseudo-terminal)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cli.fake_model import CONTEXT, FakeStep, expected

ROOT = Path(__file__).parents[2]
CHILD = "import sys; from tests.cli.fake_model import run_main; sys.exit(run_main(sys.argv[1:], seconds=0.01))"


def _type(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    raw = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))


def test_a_line_is_a_turn_and_answers_are_part_of_the_conversation(fake, run, monkeypatch):
    _type(monkeypatch, "Hi\n\nAnd?\n")
    outcome = run("chat", "-n", "4", "--system", "Be kind.", "--temperature", "0", "--json")
    assert outcome.code == 0
    first, second = [json.loads(line) for line in outcome.out.splitlines()]
    conversation = "system: Be kind.\nuser: Hi"
    assert bytes(first["prompt_tokens"]).decode() == conversation
    assert bytes(first["tokens"]) == expected(len(conversation), 4)
    conversation += f"\nassistant: {first['text']}\nuser: And?"
    assert bytes(second["prompt_tokens"]).decode() == conversation


def test_plain_answers(fake, run, monkeypatch):
    _type(monkeypatch, "Hi\n")
    outcome = run("chat", "-n", "4", "--temperature", "0")
    assert outcome.out == expected(len("user: Hi"), 4).decode() + "\n"
    assert outcome.err == ""


def test_a_conversation_that_has_become_too_long(fake, run, monkeypatch):
    _type(monkeypatch, "x" * CONTEXT + "\n")
    assert run("chat").code == 7


def test_interrupt_through_a_pipe_ends_it(fake, run, monkeypatch):
    fake.step = FakeStep(interrupt_at=2)
    _type(monkeypatch, "Hi\nAnd?\n")
    outcome = run("chat", "--temperature", "0")
    assert outcome.code == 130
    assert outcome.out == expected(len("user: Hi"), 2).decode() + "\n"


def test_input_that_is_not_utf8(fake, run, monkeypatch):
    _type(monkeypatch, b"\xff\xfe\n")
    assert run("chat").code == 2


class Terminal:
    """A process at a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:  # the child; whatever happens, it must not go on as a second test run
            try:
                os.chdir(ROOT)
                os.execv(sys.executable, [sys.executable, "-c", CHILD, *arguments])
            finally:
                os._exit(99)
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 20) -> None:
        """Read up to and including `text`."""
        assert self._has(text, seconds), f"no {text!r} in {self.seen!r}"
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def _has(self, text: str, seconds: float) -> bool:
        """Whether `text` has come, or comes within so many seconds."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            self.seen += os.read(self.descriptor, 65536).decode(errors="replace")
        return True

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def type_at_prompt(self, text: str, answer: str) -> None:
        """Type until `answer` appears: keys that arrive while the line editor sets up the terminal may be lost."""
        self.wait_for("> ")
        for _ in range(20):
            time.sleep(0.05)
            self.type(text)
            if self._has(answer, 3):
                self.wait_for(answer)
                return
        raise AssertionError(f"no {answer!r} after {text!r} in {self.seen!r}")

    def leave(self) -> int:
        """Ctrl-D at the next prompt; gives the exit code."""
        self.wait_for("> ")
        for _ in range(100):
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                self.type("\x04")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("the chat does not end")

    def close(self) -> None:
        """Whatever happened, leave no process behind."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.descriptor)


@pytest.fixture
def terminal():
    chat = Terminal("chat", "--temperature", "0", "-n", "500")
    yield chat
    chat.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_at_a_terminal(terminal, tmp_path):
    terminal.type_at_prompt("Hi\n", "Paris")
    terminal.type("\x03")
    terminal.wait_for("stopped")  # the answer ends, the chat does not
    terminal.type_at_prompt("\x03", "/exit leaves")
    terminal.type_at_prompt("/help\n", "/save FILE")
    terminal.type_at_prompt("/nonsense\n", "is not a command")
    path = tmp_path / "talk.json"
    terminal.type_at_prompt(f"/save {path}\n", "2 messages")
    terminal.type_at_prompt("/system Be brief.\n", "new conversation")
    terminal.type_at_prompt("/save /does/not/exist\n", "cannot be written")
    assert terminal.leave() == 0
    user, assistant = json.loads(path.read_text(encoding="utf-8"))
    assert user == {"role": "user", "content": "Hi"}
    assert assistant["role"] == "assistant"
    assert "Paris" in assistant["content"]
