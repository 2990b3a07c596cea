"""Pictures from what a caller gives: an array, or a file.

In: `uint8[height, width, 3]`, a .npy file that holds such an array, or a picture in any format that Pillow opens. Out:
the array. Pillow is an optional package (`pip install rlx[image]`); transformers turns a picture by its EXIF mark and
makes it RGB, and so does this. Next: `rlx/models/image_processor.py`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError

Picture = NDArray[np.uint8]
Image: TypeAlias = "NDArray[Any] | str | Path"
"""What a caller may give for a picture."""
MAX_PIXELS = 1 << 28
"""Of a file's picture: what is larger is more likely an attack on memory than a photograph."""


def read_image(image: Image) -> Picture:
    """The picture `uint8[height, width, 3]`.

    Raises:
        InputError: it is no picture, cannot be read, or Pillow is needed and not installed.
    """
    if isinstance(image, np.ndarray):
        return _checked(image, "an array")
    path = Path(image)
    return _checked(_read_npy(path), str(path)) if path.suffix == ".npy" else _read_with_pillow(path)


def _checked(array: NDArray[Any], where: str) -> Picture:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(
            "this is no picture",
            where=where,
            found=f"{array.dtype} {list(array.shape)}",
            expected="uint8 [height, width, 3], red, green and blue",
        )
    return array


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        # mapped, so that a header that lies about the size costs no memory
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError("the picture cannot be read", where=str(path), found=str(error)[:200]) from None


def _read_with_pillow(path: Path) -> Picture:
    try:
        pillow: Any = import_module("PIL.Image")
        operations: Any = import_module("PIL.ImageOps")
    except ImportError:
        raise InputError(
            "reading a picture needs the package Pillow",
            where=str(path),
            fix="pip install 'rlx[image]', or pass a uint8 array [height, width, 3] or a .npy file",
        ) from None
    try:
        with pillow.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError("the picture is too large", where=str(path), found=f"{opened.width} x {opened.height}")
            return np.asarray(operations.exif_transpose(opened).convert("RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise InputError("the picture cannot be read", where=str(path), found=str(error)[:200]) from None
