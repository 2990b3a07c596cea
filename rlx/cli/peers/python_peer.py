"""Peers that are Python packages (torch, onnxruntime, openvino), run by an interpreter that has them.

In: the interpreter and a `Work`. Out: a speed. One process of `python_worker.py` serves all runs, so that its model is
loaded once; a line of JSON each way is one run. Next: `python_worker.py`.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, cast

from rlx.cli.peers.peer import PeerSetting
from rlx.cli.peers.work import Work
from rlx.config import child_environment
from rlx.errors import PeerError

NEEDS = {
    "torch": ("torch", "transformers"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
}
_LOOK_SECONDS = 60
_WORKER = Path(__file__).with_name("python_worker.py")
_LAST_LINES = 3


def missing_modules(peer: str, python: Path) -> list[str]:
    """What `python` has to install for this peer; nothing is imported, so that it takes a moment only."""
    code = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    try:
        done = subprocess.run(
            [str(python), "-c", code, *NEEDS[peer]], capture_output=True, text=True, check=False, timeout=_LOOK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return list(NEEDS[peer])
    return done.stdout.split() if done.returncode == 0 else list(NEEDS[peer])


class PythonPeer:
    """A package in an interpreter.

    Args:
        name: how tables call it.
        library: a key of `NEEDS`.
        precision: "f32", "bf16" or "int8".
        python: the interpreter.
        setting: model, threads, time limit.
    """

    def __init__(self, name: str, library: str, precision: str, python: Path, setting: PeerSetting) -> None:
        self.name = name
        self.version: str | None = None
        self._library, self._precision, self._python, self._setting = library, precision, python, setting
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def refuses(self, work: Work) -> str | None:
        """Why it cannot do this work; None if it can."""
        if self._library != "torch" and work.name != "encode":
            return f"{self._library} is measured on encoders only"
        return None

    def run(self, work: Work) -> float:
        """Do the work once (the first time twice: it warms up); gives its speed in `work.unit`.

        Raises:
            PeerError: the package cannot read the model, failed, or took too long.
        """
        process = self._started()
        expired = threading.Event()
        watch = threading.Timer(self._setting.timeout_seconds, lambda: (expired.set(), process.kill()))
        watch.start()
        try:
            answer = self._ask(process, work)
        except BaseException:
            self.close()
            raise
        finally:
            watch.cancel()
        if answer is None:
            said = self._last_words()
            self.close()
            if expired.is_set():
                limit = self._setting.timeout_seconds
                raise PeerError(f"{self.name} took longer than {limit:g} s", fix="--peer-timeout gives it more")
            raise PeerError(f"{self.name} ended in the middle of its work", found=said or "no word of why")
        return self._speed(answer, work)

    def finish(self) -> None:
        """Caches for a depth are kept by the process, which holds one of them at a time."""

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None:
            return self._process
        threads = str(self._setting.threads)
        request = {
            "library": self._library,
            "precision": self._precision,
            "model": str(self._setting.model),
            "threads": self._setting.threads,
        }
        # a file, not a pipe: nobody reads it while the peer works, and a full pipe would stop it
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [str(self._python), str(_WORKER), json.dumps(request)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=child_environment(
                    OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads, PYTHONPATH=""
                ),
            )
        except OSError as error:
            raise PeerError(f"{self.name} cannot be started", where=str(self._python), found=error.strerror) from error
        return self._process

    @staticmethod
    def _ask(process: subprocess.Popen[str], work: Work) -> str | None:
        """The line that answers; None if the process is gone."""
        if process.stdin is None or process.stdout is None:
            return None
        try:
            process.stdin.write(json.dumps(work.to_json()) + "\n")
            process.stdin.flush()
            return process.stdout.readline() or None
        except BrokenPipeError:
            return None

    def _speed(self, answer: str, work: Work) -> float:
        try:
            document = cast("dict[str, Any]", json.loads(answer))
            error, self.version = document.get("error"), document.get("version", self.version)
            seconds = float(document.get("seconds", math.nan))
        except (ValueError, TypeError, AttributeError) as problem:
            raise PeerError(f"{self.name} gave an answer that cannot be read", found=repr(answer[:200])) from problem
        if error is not None:
            raise PeerError(f"{self.name} failed", found=" ".join(str(error).split())[:400])
        if not (math.isfinite(seconds) and seconds > 0):
            raise PeerError(f"{self.name} gave an answer that cannot be read", found=repr(answer[:200]))
        return work.amount / seconds

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return " ".join(self._errors.read().strip().splitlines()[-_LAST_LINES:])
