"""`rlx doctor`: what this machine offers, what RLX uses of it, what slows it now, and what is wrong.

In: nothing. Out: host, target, threads, versions, caches, environment variables, a list of slowdowns and one of
problems. Exit code 1 if there are problems; a slow machine is none. Next: `host.py`.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import cast

import typer

from rlx import __version__
from rlx.cli import options as flags
from rlx.cli.host import Slowdown, huge_page_mode, offers, slowdowns, vector_extensions
from rlx.cli.output import use_utf8, write_json, write_table, write_text
from rlx.cli.reporting import tell_error
from rlx.cli.units import bytes_text
from rlx.config import KNOBS, Knob, Settings, settings
from rlx.errors import RlxError

PACKAGES = (
    "numpy",
    "llvmlite",
    "ml-dtypes",
    "safetensors",
    "tokenizers",
    "huggingface-hub",
    "jinja2",
    "typer",
)


def doctor_command(json_output: flags.JsonOption = False) -> None:
    """Show what the machine offers, what RLX uses, what slows it now, and what is wrong, with one thing to do each.

    Exit code 1 if something is wrong; being slowed is not.

    Example: rlx doctor

    Example: RLX_THREADS=2 rlx doctor --json
    """
    use_utf8()
    report = examine()
    if json_output:
        write_json(report.to_json())
    else:
        _show(report)
    if report.problems:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Report:
    """What `rlx doctor` tells; `environment` has (variable, value in force, what it does)."""

    host: dict[str, object]
    target: dict[str, object]
    packages: dict[str, str | None]
    caches: dict[str, dict[str, object]]
    environment: tuple[tuple[str, str, str], ...]
    slowdowns: tuple[Slowdown, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "host": self.host,
            "target": self.target,
            "packages": self.packages,
            "caches": self.caches,
            "environment": {name: {"value": value, "help": text} for name, value, text in self.environment},
            "slowdowns": [asdict(slowdown) for slowdown in self.slowdowns],
            "problems": list(self.problems),
        }


def examine() -> Report:
    """Look at the machine and the installation; nothing is changed.

    Raises:
        OptionError: an environment variable has a value that is not allowed.
    """
    problems: list[str] = []
    current = settings()
    packages = {name: _version(name) for name in PACKAGES}
    problems += [f"the package {name} is not installed" for name, version in packages.items() if version is None]
    if not _is_writable(current.cache_dir):
        problems.append(f"the cache folder cannot be written: {current.cache_dir}")
    target = _target(current, problems)
    return Report(
        host=_host(),
        target=target,
        packages=packages,
        caches=_caches(current.cache_dir),
        environment=tuple((knob.name, _in_force(knob.name, current), _help(knob)) for knob in KNOBS),
        slowdowns=tuple(slowdowns(int(str(target.get("threads", 1))))),
        problems=tuple(problems),
    )


def _host() -> dict[str, object]:
    facts: dict[str, object] = {
        "rlx": __version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "processor": _processor(),
        **offers(),
    }
    try:
        from rlx.backends.cpu import target

        facts["vector_extensions"] = vector_extensions(target.host().features)
    except ImportError:
        pass  # told as a problem of the target
    return facts


def _processor() -> str:
    """The processor's trade name: from /proc/cpuinfo on Linux, otherwise what Python knows."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _target(current: Settings, problems: list[str]) -> dict[str, object]:
    facts: dict[str, object] = {"precision": current.precision}
    try:
        from rlx.backends.cpu import target
        from rlx.backends.cpu.threads import available_cores

        facts["threads"] = current.threads or available_cores()
        chosen = target.resolve(current.target)
        facts["target"] = chosen.name
        facts["vector_bits"] = chosen.vector_bits
        facts["huge_pages"] = (
            "no" if huge_page_mode() in (None, "never") else "for weights, where the system finds them"
        )
        facts["llvm_cpu"] = chosen.cpu
        facts["available_targets"] = list(target.available())
    except RlxError as error:
        problems.append(error.message)
    except ImportError as error:
        problems.append(f"LLVM cannot be loaded: {error}")
    return facts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_writable(folder: Path) -> bool:
    """Whether files could be made in the folder, or in the nearest one above it that exists."""
    existing = next((place for place in (folder, *folder.parents) if place.exists()), None)
    return existing is not None and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _caches(cache_dir: Path) -> dict[str, dict[str, object]]:
    """Path, files and bytes of every folder in the cache."""
    found: dict[str, dict[str, object]] = {}
    try:
        folders = sorted(place for place in cache_dir.iterdir() if place.is_dir())
    except OSError:
        folders = []
    for folder in folders:
        sizes = [_size(place) for place in folder.rglob("*") if place.is_file() and not place.is_symlink()]
        found[folder.name] = {"path": str(folder), "files": len(sizes), "bytes": sum(sizes)}
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _in_force(name: str, current: Settings) -> str:
    """The value of the setting that belongs to a variable: RLX_CACHE_DIR is `Settings.cache_dir`."""
    value: object = getattr(current, name.removeprefix("RLX_").lower())
    if isinstance(value, bool):
        return "on" if value else "off"
    return "not set" if value is None else str(value)


def _help(knob: Knob) -> str:
    return knob.help + (f" One of: {', '.join(knob.choices)}." if knob.choices else "")


def _show(report: Report) -> None:
    for title, facts in (("host", report.host), ("target", report.target), ("packages", report.packages)):
        write_table(title, [(key, _text(key, value)) for key, value in facts.items()])
        write_text("\n")
    caches = [
        (name, f"{c['files']} files", bytes_text(int(str(c["bytes"]))), str(c["path"]))
        for name, c in report.caches.items()
    ]
    write_table("caches", caches or [("empty",)])
    write_text("\n")
    write_table("environment (value in force)", report.environment)
    for slowdown in report.slowdowns:
        write_text(f"\nslowed: {slowdown.what}\n  do:   {slowdown.fix}\n")
    everything = "everything" if not report.slowdowns else "the installation"
    write_text("\n" + (f"{everything} is in order\n" if not report.problems else ""))
    for problem in report.problems:
        tell_error(problem)


def _text(key: str, value: object) -> str:
    match value:
        case None:
            return "missing"
        case list():
            return ", ".join(map(str, cast(list[object], value))) or "none"
        case dict():
            return ", ".join(f"{name} {size // 1024} KiB" for name, size in cast(dict[str, int], value).items())
        case int() if key.startswith("memory"):
            return bytes_text(value)
        case _:
            return str(value)
