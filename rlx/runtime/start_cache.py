"""What a start of a model found out, kept for the next one: `<cache>/starts/<key>.start`.

In: a model's files and how they are to be compiled. Out: plain values and arrays, as a start before wrote them
(`warm_start.py` says which). The key is a digest of everything they depend on:

- the files of the model: size, time of the last change, and pages spread over each (as in `rlx/io/identity.py`);
- the profile and the context length;
- this installation of RLX, of LLVM and of Python: the size and times of every source file;
- the processor, as the system describes it.

So no entry is ever out of date, and one that is not used any more is trimmed with the rest of the cache. The whole of
an entry is checked when it is read: a damaged one is removed, and the model is started as if it had none.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlx.backends.cpu import disk_cache
from rlx.io.identity import SAMPLE_BYTES, sample_offsets

if TYPE_CHECKING:
    from rlx.flow.profile import Profile

MAGIC = b"RLXSTRT1"
MAX_BYTES = 256 << 20
_HEAD = struct.Struct("<8s32sQ")
_ALIGNMENT = 64
_CPUINFO = Path("/proc/cpuinfo")
# of /proc/cpuinfo: what a program can tell two processors apart by
_CPU_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")


@dataclass(frozen=True, slots=True)
class StartEntry:
    """An entry: plain values for JSON, and arrays by name."""

    plain: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


def entry_key(path: Path, profile: Profile, context: int | None) -> str | None:
    """The key for a model and a way to compile it; None where nothing can be kept about it.

    Args:
        path: the file of a model, or its folder.
        profile: how it is compiled.
        context: the context length that was asked for.
    """
    try:
        digest = hashlib.sha256(MAGIC + f"{profile!r} {context} {sys.version} {sys.byteorder}\n".encode())
        for line in (*_processor(), *_installation()):
            digest.update(line.encode())
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(_file_stamp(file))
    except OSError:
        return None
    return digest.hexdigest()[:32]


def _processor() -> list[str]:
    """Raises OSError where the system does not say."""
    with _CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        first = _first_paragraph(lines)
    return [line for line in first if line.partition("\t")[0].partition(":")[0].strip() in _CPU_FIELDS]


def _first_paragraph(lines: Iterator[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if not line.strip():
            break
        found.append(line)
    return found


def _installation() -> list[str]:
    """A line for every source file of RLX, and one for LLVM's library."""
    places = [Path(__file__).parents[1]]
    # what importlib.util.find_spec does, without the import of that module
    specs = (finder.find_spec("llvmlite", None) for finder in sys.meta_path)
    compiler = next((spec for spec in specs if spec is not None), None)
    if compiler is not None and compiler.origin is not None:
        places.append(Path(compiler.origin).parent / "binding")
    return [line for place in places for line in sorted(_stamps(str(place)))]


def _stamps(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _stamps(entry.path)
            elif entry.name.endswith((".py", ".so", ".dylib", ".dll")):
                stat = entry.stat()
                yield f"{entry.path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n"


def _file_stamp(path: Path) -> bytes:
    with path.open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        parts = [f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode()]
        for offset in sample_offsets(stat.st_size) if stat.st_size else []:
            parts.append(os.pread(file.fileno(), SAMPLE_BYTES, offset))
    return hashlib.sha256(b"".join(parts)).digest()


def load(cache: Path, key: str) -> StartEntry | None:
    """The entry of a key; None if it is not there, or was damaged and is now removed."""
    path = disk_cache.entry_path(cache, "starts", key)
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    except ValueError:  # no bytes
        disk_cache.remove(path)
        return None
    entry = _read(content, key)
    if entry is None:
        disk_cache.remove(path)
    else:
        disk_cache.mark_used(path)
    return entry


def is_whole(path: Path) -> bool:
    """Whether every byte of an entry is as it was written, its name included.

    Raises:
        OSError: it cannot be read.
    """
    return _read(path.read_bytes(), path.stem) is not None


def _read(content: bytes | mmap.mmap, key: str) -> StartEntry | None:
    view = memoryview(content)
    if len(view) < _HEAD.size:
        return None
    magic, checksum, length = _HEAD.unpack(view[: _HEAD.size])
    if magic != MAGIC or hashlib.sha256(view[_HEAD.size - 8 :]).digest() != checksum:
        return None
    plain = json.loads(bytes(view[_HEAD.size : _HEAD.size + length]))
    if plain["key"] != key:
        return None
    base = _aligned(_HEAD.size + length)
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, count, offset in plain["arrays"]:
        arrays[name] = np.frombuffer(view, np.dtype(dtype), count, base + offset)
    return StartEntry(plain["plain"], arrays)


def save(cache: Path, key: str, entry: StartEntry) -> bool:
    """Keep an entry; gives whether that worked."""
    places: list[tuple[str, str, int, int]] = []
    content = bytearray()
    for name, array in entry.arrays.items():
        content += bytes(-len(content) % _ALIGNMENT)
        places.append((name, array.dtype.str, array.size, len(content)))
        content += array.tobytes()
    plain = json.dumps({"key": key, "arrays": places, "plain": entry.plain}).encode()
    body = struct.pack("<Q", len(plain)) + plain + bytes(-(_HEAD.size + len(plain)) % _ALIGNMENT) + content
    if len(body) > MAX_BYTES:
        return False
    try:
        with disk_cache.replacing(disk_cache.entry_path(cache, "starts", key)) as file:
            file.write(MAGIC + hashlib.sha256(body).digest() + body)
        return True
    except OSError:
        return False


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
