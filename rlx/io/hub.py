"""Models on the Hugging Face Hub, through `huggingface_hub` with its cache, token and offline mode.

In goes `org/name[@revision][:quant]`, out comes the path of a GGUF file or of a folder in the hub's cache.
Used by `reference.py`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from rlx.errors import DownloadError, ModelNotFoundError, StorageError
from rlx.io.split_gguf import is_a_model, split_names

_REFERENCE = re.compile(
    r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?(?::(?P<quant>[A-Za-z0-9_.-]+))?"
)
_PREFIX = re.compile(r"^(?:https?://)?(?:hf\.co|huggingface\.co)/|^hf:")
_FOLDER_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "*_Pooling/config.json",
    "modules.json",
)
# Which file of a repository of GGUF files is taken when none is named: small first.
_PREFERRED = ("q4_k_m", "q4_1", "q4_0", "q5_k_m", "q6_k", "q8_0", "bf16", "f16", "f32")


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository, and what is wanted of it."""

    repository: str
    revision: str | None
    quant: str | None


def parse_hub(reference: str) -> HubReference | None:
    """The parts of a hub reference, or None if it is not one."""
    match = _REFERENCE.fullmatch(_PREFIX.sub("", reference).removesuffix("/"))
    if match is None:
        return None
    return HubReference(match["repository"], match["revision"], match["quant"])


def resolve_hub(reference: HubReference) -> Path:
    """Fetch what is missing in the hub's cache and give the model's path.

    Raises:
        DownloadError: the hub cannot be reached or refuses, or offline mode lacks the files.
        ModelNotFoundError: the repository has no file that fits.
        StorageError: the disk is full.
    """
    try:
        names, offline = _file_names(reference)
        gguf = choose_gguf(reference, names)
        folder = _snapshot(reference, offline, [*_FOLDER_PATTERNS] if gguf is None else _all_files(gguf))
    except (ModelNotFoundError, DownloadError):
        raise
    except Exception as error:  # the library raises its own, the HTTP client's and the system's errors
        raise _explain(reference, error) from None
    return folder if gguf is None else folder / gguf


def _snapshot(reference: HubReference, offline: bool, patterns: list[str] | None) -> Path:
    """The folder of the repository in the hub's cache, with the files of `patterns` in it (None: what is there)."""
    import huggingface_hub

    download = cast(Callable[..., str], huggingface_hub.snapshot_download)  # pyright: ignore[reportUnknownMemberType]
    return Path(
        download(reference.repository, revision=reference.revision, allow_patterns=patterns, local_files_only=offline)
    )


def _file_names(reference: HubReference) -> tuple[list[str], bool]:
    """The files of the repository, and whether the list comes from the cache because the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return list(HfApi().list_repo_files(reference.repository, revision=reference.revision)), False
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:  # pyright: ignore[reportUnnecessaryComparison]
            raise
        reason: Exception = error
    except Exception as error:  # offline mode and the many ways in which a network fails
        reason = error
    try:
        folder = _snapshot(reference, True, None)
    except LocalEntryNotFoundError:
        raise reason from None
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], True


def choose_gguf(reference: HubReference, names: list[str]) -> str | None:
    """The GGUF file to take from a repository (the first of a split model), or None to take its safetensors folder.

    Raises:
        ModelNotFoundError: nothing fits; the message lists what there is.
    """
    ggufs = sorted(name for name in names if is_a_model(PurePosixPath(name).name))
    if reference.quant is None and "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return None
    for quant in (reference.quant.lower(),) if reference.quant else ("", *_PREFERRED):
        fitting = [name for name in ggufs if not quant or _has_quant(name, quant)]
        if len(fitting) == 1:
            return fitting[0]
    raise ModelNotFoundError(
        "the repository has no single file that fits",
        where=f"{reference.repository}{f':{reference.quant}' if reference.quant else ''}",
        found=", ".join(ggufs[:40]) or f"{len(names)} files, no GGUF and no config.json with safetensors",
        expected="one GGUF file of the named quantisation, or config.json and safetensors",
        fix=f"name one, such as {reference.repository}:Q8_0" if ggufs else "check the name of the repository",
    )


def _all_files(gguf: str) -> list[str]:
    """A GGUF file of the repository, with its siblings if it is the first of several."""
    path = PurePosixPath(gguf)
    return [str(path.with_name(name)) for name in split_names(path.name) or [path.name]]


def _has_quant(name: str, quant: str) -> bool:
    stem = PurePosixPath(name).stem.lower()
    return re.search(rf"(^|[-._]){re.escape(quant)}($|[-.])", stem) is not None


def _explain(reference: HubReference, error: Exception) -> DownloadError | StorageError:
    """The hub's failure in one message, with what to do."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("the disk is full", where=reference.repository, fix="free some space, or move HF_HOME")
    fixes = {
        "GatedRepoError": "accept the model's conditions on its page and log in with `hf auth login`",
        "RepositoryNotFoundError": "check the spelling; a private repository needs `hf auth login`",
        "RevisionNotFoundError": "check the revision after the @",
        "OfflineModeIsEnabled": "switch HF_HUB_OFFLINE off once to fetch the model",
        "LocalEntryNotFoundError": "switch HF_HUB_OFFLINE off once to fetch the model, or check the network",
    }
    kinds = [kind.__name__ for kind in type(error).__mro__]
    fix = next((fixes[kind] for kind in kinds if kind in fixes), "check the network, or pass the path of a model file")
    return DownloadError(
        "the model could not be fetched from the Hugging Face Hub",
        where=reference.repository,
        found=f"{kinds[0]}: {' '.join(str(error).split())[:300]}",
        fix=fix,
    )
