"""Writing recorded answers: a JSON file for configurations and figures, an npz file for arrays.

In: plain objects and arrays from a recording script. Out: files beside this one. Next: `load.py`, which reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
ANSWERS = FOLDER / "answers"


def write(name: str, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], packages: list[str]) -> None:
    """Write `name`.json (with the versions of `packages`) and `name`.npz beside this file."""
    document = {"versions": {package: version(package) for package in packages}, **description}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / f"{name}.npz", allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]


def write_case(
    kind: str, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], packages: list[str]
) -> None:
    """Write one case of a kind into files of its own: `answers/kind/name.json`, and `.npz` where there are arrays."""
    document = {"versions": {package: version(package) for package in packages}, **description}
    fields = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in document.items())
    stem = ANSWERS / kind / description["name"]
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text("{" + ",\n".join(fields) + "}\n", encoding="utf-8")
    if arrays:
        np.savez_compressed(stem.with_suffix(".npz"), allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
