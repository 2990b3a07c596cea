"""Compiled objects on disk: `<cache>/objects/<key>.o`, with a checksum in front. A damaged entry is thrown away.

Entries are written to a temporary file and renamed, so that a reader never sees half of one, whatever ends the writer.
A cache that cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

DIGEST_BYTES = 32


def load(folder: Path, key: str) -> bytes | None:
    """The object of that key, or None if it is not there or not whole."""
    path = folder / "objects" / f"{key}.o"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if body and hashlib.sha256(body).digest() == digest:
        return body
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def save(folder: Path, key: str, body: bytes) -> bool:
    """Keep an object; gives whether that worked."""
    objects = folder / "objects"
    temporary: str | None = None
    try:
        objects.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{key}.", dir=objects)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(body).digest() + body)
        os.replace(temporary, objects / f"{key}.o")
        temporary = None
        return True
    except OSError:
        return False
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
