"""Reads the small JSON files that lie beside a model, with a bound on their size and clear errors.

Used by `safetensors_folder.py`, `tokenizer_folder.py` and `chat_template.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from rlx.errors import FileFormatError, ModelNotFoundError

MAX_JSON_BYTES = 256 * 1024 * 1024


def parse_object(raw: bytes | str, where: str) -> dict[str, Any]:
    """Parse a JSON text that must be an object.

    Raises:
        FileFormatError: it is not JSON, is nested too deeply, names a key twice, or is not an object.
    """
    try:
        value: object = json.loads(raw, object_pairs_hook=_unique)
    except RecursionError:
        raise FileFormatError("the JSON is nested too deeply", where=where) from None
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError
        raise FileFormatError("the JSON is malformed", where=where, found=str(error)[:200]) from None
    if not isinstance(value, dict):
        raise FileFormatError("the JSON is not an object", where=where, found=type(value).__name__, expected="{...}")
    return cast(dict[str, Any], value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """Read and parse a JSON file.

    Raises:
        ModelNotFoundError: it does not exist or may not be read.
        FileFormatError: it is too large or malformed.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise FileFormatError(
                "the JSON file is too large", where=str(path), found=size, expected=f"at most {MAX_JSON_BYTES} bytes"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(f"{path.name} cannot be read", where=str(path), found=error.strerror) from None
    return parse_object(raw, str(path))


def read_object_if_present(path: Path) -> dict[str, Any]:
    """As `read_object`; an empty object if there is no such file."""
    return read_object(path) if path.exists() else {}
