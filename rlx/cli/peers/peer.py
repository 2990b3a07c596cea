"""What a system that is measured has to offer.

RLX (`rlx/cli/runner.py`), a `llama-bench` (`llama_bench.py`) and a Python package (`python_peer.py`) are `System`s; a
peer that is not installed is a `Missing`. Next: `find.py`, which finds them; `rlx/cli/compare.py`, which runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlx.cli.peers.work import Work


class System(Protocol):
    """RLX or a peer, with a model."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    @property
    def version(self) -> str | None:
        """What it says of itself, once it has run."""
        ...

    def refuses(self, work: Work) -> str | None:
        """Why it cannot do this work; None if it can."""
        ...

    def run(self, work: Work) -> float:
        """Do the work once; gives its speed in `work.unit`.

        Raises:
            PeerError: it failed, or said something that cannot be read.
        """
        ...

    def finish(self) -> None:
        """Let go of what was kept for the work that was run."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(frozen=True, slots=True)
class Missing:
    """A peer that was asked for and is not there."""

    name: str
    found: str
    fix: str


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """What all peers are given.

    Attributes:
        model: a GGUF file, or a model folder.
        threads: compute threads.
        precision: RLX's: "fast" or "exact".
        timeout_seconds: how long one run may take.
    """

    model: Path
    threads: int
    precision: str
    timeout_seconds: float
