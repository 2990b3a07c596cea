"""llama.cpp and ik_llama.cpp as peers: their own `llama-bench`, one process for each run.

In: a GGUF file and a `Work`. Out: tokens per second, the median of the samples that the program prints as JSON
(`samples_ts`; it warms up before them). Several sequences at once are measured by `llama-batched-bench` in the same
folder, which prints one JSON line (`speed_tg`). ik_llama.cpp packs weights when it loads them with `-rtr 1`, without
which it is slower, and names a depth otherwise (`-gp`).
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
from pathlib import Path

from rlx.cli.peers.peer import PeerSetting
from rlx.cli.peers.work import Work
from rlx.errors import PeerError

SAID = 400  # characters of a program's last words that an error repeats


class LlamaBench:
    """A `llama-bench` program.

    Args:
        name: how tables call it.
        binary: the program.
        setting: model, threads, time limit.
        ik: whether it is ik_llama.cpp's.
    """

    def __init__(self, name: str, binary: Path, setting: PeerSetting, *, ik: bool) -> None:
        self.name = name
        self._binary, self._setting, self._ik = binary, setting, ik
        self.version: str | None = None

    def refuses(self, work: Work) -> str | None:
        """Why it cannot do this work; None if it can."""
        if work.name == "encode":
            return "llama-bench measures no encoders"
        if self._setting.model.suffix != ".gguf":
            return "it reads .gguf files only"
        if work.name == "batch" and not self._batched.exists():
            return "no llama-batched-bench beside llama-bench; build that target"
        return None

    def run(self, work: Work) -> float:
        """Run the program once; gives tokens per second.

        Raises:
            PeerError: it ended with an error, took too long, or printed something else than expected.
        """
        return self._batched_speed(work) if work.name == "batch" else self._speed(work)

    def finish(self) -> None:
        """Nothing is kept between runs."""

    def close(self) -> None:
        """Nothing is open."""

    @property
    def _batched(self) -> Path:
        return self._binary.with_name("llama-batched-bench")

    def _speed(self, work: Work) -> float:
        prompt, generated = (work.tokens, 0) if work.name == "prefill" else (0, work.tokens)
        flags = ["-r", "1", "-o", "json"]
        if work.depth and self._ik:
            flags += ["-p", "0", "-n", "0", "-gp", f"{work.depth},{work.tokens}"]
        else:
            flags += ["-p", str(prompt), "-n", str(generated), *(["-d", str(work.depth)] if work.depth else [])]
        said = self._output(self._binary, [*flags, *(["-rtr", "1"] if self._ik else [])])
        try:
            entries = json.loads(said)
            entry = next(e for e in entries if e["n_gen"] == generated and (generated or e["n_prompt"] == prompt))
            self.version = str(entry.get("build_commit") or "") or None
            speed = statistics.median(float(value) for value in entry["samples_ts"])
        except (ValueError, TypeError, KeyError, StopIteration, AttributeError) as error:
            raise self._unreadable(said) from error
        return self._checked(speed, said)

    def _batched_speed(self, work: Work) -> float:
        # every sequence starts with one token; room for all of them, in whole blocks of 256 as it wants them
        context = -(-work.sequences * (work.tokens + 1) // 256) * 256
        sizes = ["-c", str(context), "-npp", "1", "-ntg", str(work.tokens), "-npl", str(work.sequences)]
        repack = ["-rtr"] if self._ik else []
        said = self._output(self._batched, [*sizes, *repack, "--output-format", "jsonl"])
        try:
            lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
            speed = next(float(line["speed_tg"]) for line in lines if line["pl"] == work.sequences)
        except (ValueError, TypeError, KeyError, StopIteration) as error:
            raise self._unreadable(said) from error
        return self._checked(speed, said)

    def _output(self, binary: Path, flags: list[str]) -> str:
        command = [str(binary), "-m", str(self._setting.model), "-t", str(self._setting.threads), *flags]
        limit = self._setting.timeout_seconds
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=limit,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"{self.name} took longer than {limit:g} s", fix="--peer-timeout gives it more") from error
        except OSError as error:
            raise PeerError(f"{self.name} cannot be started", where=str(binary), found=error.strerror) from error
        if done.returncode:
            raise PeerError(
                f"{self.name} ended with exit code {done.returncode}", found=_last_words(done.stderr or done.stdout)
            )
        return done.stdout

    def _checked(self, speed: float, said: str) -> float:
        if not math.isfinite(speed) or speed <= 0:
            raise self._unreadable(said)
        return speed

    def _unreadable(self, said: str) -> PeerError:
        return PeerError(
            f"{self.name} printed no speed", found=_last_words(said) or "nothing", expected="llama-bench's JSON"
        )


def _last_words(text: str) -> str:
    return " ".join(text.split())[-SAID:]
