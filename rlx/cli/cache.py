"""`rlx cache list | clear | verify`: what RLX keeps on disk.

In: an action and which entries. Out: a table or JSON of the entries listed, freed or found damaged. Four kinds:
`models` (fetched packages, `rlx/io/model_cache.py`), `objects` (compiled code) and `weights` (packed weights), both of
`rlx/backends/cpu/`, and `starts` (what a start found out, `rlx/runtime/start_cache.py`). Nothing outside of the cache
folder is touched: links are not followed, and files with other names than RLX gives are left alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rlx.cli import options as flags
from rlx.cli.output import use_utf8, write_json, write_table, write_text
from rlx.cli.units import bytes_text
from rlx.config import settings
from rlx.errors import OptionError

UNFINISHED = "(unfinished)"
KINDS = ("models", "objects", "weights", "starts")
_AGE_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Action(StrEnum):
    """What to do with the entries."""

    LIST = "list"
    CLEAR = "clear"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model's folder, a compiled object, a file of packed weights, or a start. Times are seconds since 1970."""

    kind: str
    name: str
    path: str
    bytes: int
    written: float
    last_used: float


def cache_command(
    action: Annotated[Action, typer.Argument(help="list, clear, or verify (read all of it and compare checksums).")],
    models: Annotated[bool, typer.Option("--models", help="Fetched models.")] = False,
    objects: Annotated[bool, typer.Option("--objects", help="Compiled objects.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Packed weights.")] = False,
    starts: Annotated[bool, typer.Option("--starts", help="What a start of a model found out.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All of them (what list and verify do anyway).")] = False,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Only what was not used for so long: 90m, 12h, 30d, 4w.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="verify: remove what is damaged; it is made anew when it is needed.")
    ] = False,
    json_output: flags.JsonOption = False,
) -> None:
    """List, clear or verify what RLX keeps on disk: fetched models, compiled objects, packed weights, starts.

    All of it can be removed at any time, while RLX runs too; the next start makes or fetches it again. All but the
    models are bounded by RLX_CACHE_LIMIT without this command. Exit code 1 if something is damaged, or could not be
    removed.

    Example: rlx cache list

    Example: rlx cache clear --weights --older-than 30d
    """
    chosen = [kind for kind, on in zip(KINDS, (models, objects, weights, starts), strict=True) if on]
    if action is Action.CLEAR and not chosen and not everything:
        raise OptionError(
            "say what to clear",
            expected="--models, --objects, --weights, --starts or --all",
            fix="rlx cache list shows it",
        )
    if repair and action is not Action.VERIFY:
        raise OptionError("--repair goes with verify", fix="rlx cache verify --repair")
    folder = settings().cache_dir
    latest = time.time() - _seconds(older_than) if older_than is not None else None
    found = [
        entry
        for entry in find_entries(folder)
        if (everything or not chosen or entry.kind in chosen) and (latest is None or entry.last_used < latest)
    ]
    use_utf8()
    match action:
        case Action.LIST:
            _list(folder, found, json_output)
        case Action.CLEAR:
            _clear(folder, found, json_output)
        case Action.VERIFY:
            _verify(folder, found, repair, json_output)


def find_entries(cache: Path) -> list[Entry]:
    """Every entry, models first, then by name; leftovers of interrupted work among them."""
    from rlx.backends.cpu import disk_cache
    from rlx.io.model_cache import model_folders

    found = [_model(place) for place in model_folders(cache / "models")]
    # a partial folder may be that of a fetch under way
    stale = time.time() - disk_cache.STALE_SECONDS
    found = [entry for entry in found if entry.name != UNFINISHED or entry.last_used < stale]
    for entry in sorted(disk_cache.entries(cache), key=lambda entry: (entry.kind, entry.path)):
        name = _source(entry.path) if entry.kind == "weights" else entry.path.stem
        found.append(Entry(entry.kind, name, str(entry.path), entry.nbytes, entry.written, entry.last_used))
    for path in disk_cache.leftovers(cache):
        stat = path.lstat()
        found.append(Entry(path.parent.name, UNFINISHED, str(path), stat.st_size, stat.st_mtime, stat.st_mtime))
    return found


def _model(place: Path) -> Entry:
    name = UNFINISHED if place.name.startswith(".") else place.name
    stats = [path.lstat() for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    written = place.stat().st_mtime
    last_used = max([written, *(max(stat.st_atime, stat.st_mtime) for stat in stats)])
    return Entry("models", name, str(place), sum(stat.st_size for stat in stats), written, last_used)


def _source(path: Path) -> str:
    from rlx.backends.cpu.weight_file import file_head

    try:
        head = file_head(path)
    except OSError:
        return "(unreadable)"
    return head.source if head is not None else "(damaged)"


def _list(folder: Path, found: Sequence[Entry], json_output: bool) -> None:
    limit = settings().cache_limit
    if json_output:
        write_json({"folder": str(folder), "limit": limit, "entries": [asdict(entry) for entry in found]})
        return
    _show(folder, found)
    made = sum(entry.bytes for entry in found if entry.kind != "models")
    write_text(f"\n{_count(found)}; objects, weights and starts {bytes_text(made)} of at most {bytes_text(limit)}\n")


def _clear(folder: Path, found: Sequence[Entry], json_output: bool) -> None:
    outcome = [(entry, _remove(entry)) for entry in found]
    freed = [entry for entry, gone in outcome if gone]
    kept = [entry for entry, gone in outcome if not gone]
    if json_output:
        write_json(
            {
                "folder": str(folder),
                "freed_bytes": sum(entry.bytes for entry in freed),
                "removed": [asdict(entry) for entry in freed],
                "not_removed": [asdict(entry) for entry in kept],
            }
        )
    else:
        if freed:
            _show(folder, freed)
            write_text("\n")
        write_text(f"freed {_count(freed)}\n" if freed else "nothing to clear\n")
        for entry in kept:
            write_text(f"could not be removed: {entry.path}\n")
    if kept:
        raise typer.Exit(1)


def _verify(folder: Path, found: Sequence[Entry], repair: bool, json_output: bool) -> None:
    damaged = [entry for entry in found if not _is_whole(entry)]
    removed = [entry for entry in damaged if repair and _remove(entry)]
    if json_output:
        write_json(
            {
                "folder": str(folder),
                "checked": len(found),
                "damaged": [asdict(entry) for entry in damaged],
                "removed": [asdict(entry) for entry in removed],
            }
        )
    else:
        for entry in damaged:
            write_text(f"damaged{' and removed' if entry in removed else ''}: {entry.path}\n")
        write_text(f"checked {_count(found)}: {f'{len(damaged)} damaged' if damaged else 'all whole'}\n")
        if len(removed) < len(damaged):
            write_text("`rlx cache verify --repair` removes what is damaged; it is made anew when it is needed\n")
    if len(removed) < len(damaged):
        raise typer.Exit(1)


def _is_whole(entry: Entry) -> bool:
    """Models by the sizes of their receipt, all else by the checksum of all bytes."""
    from rlx.backends.cpu import object_cache, weight_file
    from rlx.io.model_cache import find_entry
    from rlx.runtime import start_cache

    path = Path(entry.path)
    if entry.name == UNFINISHED:
        return False
    try:
        match entry.kind:
            case "models":
                return find_entry(path) is not None
            case "objects":
                return object_cache.is_whole(path.read_bytes())
            case "starts":
                return start_cache.is_whole(path)
            case _:
                return weight_file.is_whole(path)
    except FileNotFoundError:  # removed by another process meanwhile: nothing that is damaged
        return True
    except OSError:
        return False


def _remove(entry: Entry) -> bool:
    from rlx.backends.cpu import disk_cache
    from rlx.io.model_cache import remove_entry

    path = Path(entry.path)
    return remove_entry(path) if entry.kind == "models" else disk_cache.remove(path)


def _show(folder: Path, entries: Sequence[Entry]) -> None:
    now = time.time()
    rows = [
        (
            entry.kind,
            entry.name,
            bytes_text(entry.bytes),
            age_text(now - entry.written),
            age_text(now - entry.last_used),
            str(Path(entry.path).relative_to(folder)),
        )
        for entry in entries
    ]
    write_table(str(folder), rows, header=("kind", "of", "size", "age", "unused for", "path"))


def _count(entries: Sequence[Entry]) -> str:
    noun = "entry" if len(entries) == 1 else "entries"
    return f"{len(entries)} {noun}, {bytes_text(sum(entry.bytes for entry in entries))}"


def age_text(seconds: float) -> str:
    """A time span in its largest unit: `45 s`, `12 m`, `3 h`, `8 d`."""
    whole = max(0, int(seconds))
    for unit in ("d", "h", "m"):
        if whole >= _AGE_UNITS[unit]:
            return f"{whole // _AGE_UNITS[unit]} {unit}"
    return f"{whole} s"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([smhdw])", text.strip().lower())
    if match is None:
        raise OptionError("--older-than is not an age", found=repr(text), expected="such as 90m, 12h, 30d or 4w")
    return float(match[1]) * _AGE_UNITS[match[2]]
