"""The peers of the command line: `--peer llama.cpp=PATH,torch,openvino-bf16`.

Out: a `System` for each peer that is installed, a `Missing` with what to install for each that is not. A path on the
command line beats the environment, which beats what is on PATH or in this interpreter. Next: `llama_bench.py`,
`python_peer.py`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlx.cli.peers.llama_bench import LlamaBench
from rlx.cli.peers.peer import Missing, PeerSetting, System
from rlx.cli.peers.python_peer import PythonPeer, missing_modules
from rlx.config import IK_LLAMA_BENCH, LLAMA_BENCH, PEER_PYTHON, settings
from rlx.errors import OptionError

LLAMA_BENCHES = ("llama.cpp", "ik_llama.cpp")
PYTHON_PEERS = {"torch": ("f32", "bf16"), "onnxruntime": ("f32", "int8"), "openvino": ("f32", "bf16")}
"""Peers that are Python packages, with the arithmetic each is measured in: as exact as RLX's `exact`, and faster."""
PEERS = (*LLAMA_BENCHES, *PYTHON_PEERS)


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """A peer of the command line.

    Attributes:
        name: as it was written, such as "openvino-bf16".
        peer: one of `PEERS`.
        precision: what stands behind the dash; empty for what fits the precision of RLX.
        path: the program, or for a Python package the interpreter.
    """

    name: str
    peer: str
    precision: str
    path: Path | None


def parse_peers(values: Sequence[str]) -> list[PeerRequest]:
    """`["llama.cpp=/opt/llama-bench,torch", "openvino-bf16"]`: names with commas between them, a path behind `=`.

    Raises:
        OptionError: a name is unknown or given twice, or nothing is where a path points.
    """
    found: dict[str, PeerRequest] = {}
    for word in (part.strip() for value in values for part in value.split(",")):
        if not word:
            continue
        name, _, path = word.partition("=")
        peer, _, precision = name.partition("-")
        if peer not in PEERS or (precision and precision not in PYTHON_PEERS.get(peer, ())):
            every = [*LLAMA_BENCHES, *(f"{peer}[-{'|-'.join(kinds)}]" for peer, kinds in PYTHON_PEERS.items())]
            raise OptionError("there is no such peer", where="--peer", found=name, expected=", ".join(every))
        if name in found:
            raise OptionError("a peer is given twice", where="--peer", found=name)
        found[name] = PeerRequest(name, peer, precision, _existing(path, "--peer"))
    return list(found.values())


def find_peers(requests: Sequence[PeerRequest], setting: PeerSetting) -> tuple[list[System], list[Missing]]:
    """Those that are installed, and those that are not.

    Raises:
        OptionError: an environment variable names a program that is not there.
    """
    systems: list[System] = []
    missing: list[Missing] = []
    for request in requests:
        result = _llama_bench(request, setting) if request.peer in LLAMA_BENCHES else _python_peer(request, setting)
        if isinstance(result, Missing):
            missing.append(result)
        elif result.name not in {system.name for system in systems}:  # "torch" may stand for "torch-bf16"
            systems.append(result)
    return systems, missing


def _llama_bench(request: PeerRequest, setting: PeerSetting) -> System | Missing:
    is_ik = request.peer == "ik_llama.cpp"
    if is_ik:
        variable, known = IK_LLAMA_BENCH.name, settings().ik_llama_bench
    else:
        variable, known = LLAMA_BENCH.name, settings().llama_bench or shutil.which("llama-bench")
    path = request.path or _existing(known or "", variable)
    if path is None:
        # a llama-bench on PATH is taken for llama.cpp's: both programs have this name
        return Missing(
            request.name,
            "its llama-bench is not known" if is_ik else "no llama-bench on PATH",
            f"build {request.peer}, then --peer {request.name}=PATH or {variable}=PATH of its llama-bench",
        )
    return LlamaBench(request.name, path / "llama-bench" if path.is_dir() else path, setting, ik=is_ik)


def _python_peer(request: PeerRequest, setting: PeerSetting) -> System | Missing:
    known = _existing(settings().peer_python or "", PEER_PYTHON.name)
    python = request.path or known or Path(sys.executable)
    lacking = missing_modules(request.peer, python)
    if lacking:
        return Missing(
            request.name,
            f"{python} has no {', '.join(lacking)}",
            f"{python} -m pip install {' '.join(lacking)}, or name an interpreter that has it: "
            f"--peer {request.name}=PYTHON or {PEER_PYTHON.name}=PYTHON",
        )
    exact, quick = PYTHON_PEERS[request.peer]
    precision = request.precision or (exact if setting.precision == "exact" else quick)
    return PythonPeer(f"{request.peer}-{precision}", request.peer, precision, python, setting)


def _existing(path: str, where: str) -> Path | None:
    if not path:
        return None
    expanded = Path(path).expanduser()
    if not expanded.exists():
        raise OptionError("there is no such program", where=where, found=path, expected="the path of a program")
    # not resolved: a virtual environment's interpreter is a link, and is another one behind it
    return expanded.absolute()
