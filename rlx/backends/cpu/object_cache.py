"""Compiled objects on disk: `<cache>/objects/<key>.o`, with a checksum in front. A damaged entry is thrown away.

A cache that cannot be written is done without. How entries are written, and how they are bounded: `disk_cache.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rlx.backends.cpu import disk_cache

DIGEST_BYTES = 32


def load(folder: Path, key: str) -> bytes | None:
    """The object of that key, or None if it is not there or not whole."""
    path = disk_cache.entry_path(folder, "objects", key)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if is_whole(content):
        disk_cache.mark_used(path)
        return content[DIGEST_BYTES:]
    disk_cache.remove(path)
    return None


def is_whole(content: bytes) -> bool:
    """Whether an entry's bytes are those that were written."""
    digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return bool(body) and hashlib.sha256(body).digest() == digest


def save(folder: Path, key: str, body: bytes) -> bool:
    """Keep an object; gives whether that worked."""
    try:
        with disk_cache.replacing(disk_cache.entry_path(folder, "objects", key)) as file:
            file.write(hashlib.sha256(body).digest() + body)
        return True
    except OSError:
        return False
