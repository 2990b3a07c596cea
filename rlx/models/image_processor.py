"""How a picture becomes the pixels that a model takes: resize, crop, scale, normalise.

In: `preprocessor_config.json` of a folder (or the part of `processor_config.json` that newer ones have) and pictures
`uint8[height, width, 3]`. Out: `float32[3, height, width]`. Source: transformers' image processors of CLIP, ViT, SigLIP
and BiT; a field that is not understood is refused by name. Next: `rlx/io/resample.py`, `rlx/runtime/image_model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.io.json_file import read_object_if_present
from rlx.io.resample import resize_picture
from rlx.models.fields import Fields

Picture = NDArray[np.uint8]
Pixels = NDArray[np.float32]
FILTERS = {2: "bilinear", 3: "bicubic"}
"""`resample` of a configuration, as Pillow counts its filters."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
STANDARD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SUFFIXES = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
MAX_SIDE = 1 << 14
"""Pixels along a side of what a configuration may ask for."""
HARMLESS = frozenset(
    (
        "_processor_class", "_valid_processor_keys", "auto_map", "data_format", "device", "do_convert_rgb",
        "input_data_format", "processor_class", "return_tensors",
    )
)  # fmt: skip
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "do_pad": (None, False),
    "pad_size": (None,),
    "disable_grouping": (None, False, True),
    "image_seq_length": (None,),
}


@dataclass(frozen=True, slots=True)
class ImageProcessor:
    """The steps, in their order; None for one that is left out.

    Attributes:
        shortest: the picture is resized so that its shorter side is this, or
        size: so that its height and width are these.
        resample: the filter: "bilinear" or "bicubic", as Pillow has them.
        crop: height and width that are cut out of the middle; a smaller picture gets black borders.
        scale: factor of the values 0 to 255.
        mean, std: of each channel: `(x - mean) / std`.
    """

    shortest: int | None
    size: tuple[int, int] | None
    resample: str
    crop: tuple[int, int] | None
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def apply(self, picture: Picture) -> Pixels:
        """`uint8[height, width, 3]` to `float32[3, height, width]`."""
        target = self.target(picture.shape[0], picture.shape[1])
        resized = resize_picture(picture, target, self.resample) if target is not None else picture
        cropped = resized if self.crop is None else center_crop(resized, self.crop)
        table = self._table()
        return np.stack([table[channel][cropped[:, :, channel]] for channel in range(3)])

    def target(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width after resizing; None where nothing is resized.

        Raises:
            InputError: the picture is so long and thin that nothing of it would be left.
        """
        if self.shortest is None:
            return self.size
        # the longer side is rounded down, in the arithmetic of transformers
        longer = int(self.shortest * max(height, width) / min(height, width))
        if longer > 1 << 16:
            raise InputError("a picture is too long for its width", found=f"{height} x {width}")
        return (longer, self.shortest) if width <= height else (self.shortest, longer)

    def _table(self) -> NDArray[np.float32]:
        """What each value of each channel becomes, `[3, 256]`; every step rounds to float32, as transformers does."""
        values = np.arange(256).astype(np.float64) * (1.0 if self.scale is None else self.scale)
        table = np.tile(values.astype(np.float32), (3, 1))
        if self.mean is not None and self.std is not None:
            mean, std = (np.array(x, np.float32)[:, None] for x in (self.mean, self.std))
            table = (table - mean) / std
        return table


def center_crop(picture: Picture, size: tuple[int, int]) -> Picture:
    """The middle of a picture, black where it does not reach; of an odd rest the larger part is on the right."""
    height, width = picture.shape[:2]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    result = np.zeros((*size, picture.shape[2]), picture.dtype)
    source = picture[max(top, 0) : max(top, 0) + size[0], max(left, 0) : max(left, 0) + size[1]]
    y, x = max(-top, 0), max(-left, 0)
    result[y : y + source.shape[0], x : x + source.shape[1]] = source
    return result


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What an absent field means to a class of transformers."""

    size: object
    resample: int
    normal: tuple[tuple[float, ...], tuple[float, ...]]
    crop: object = None
    square: bool = False


_KINDS = {
    "CLIP": _Defaults({"shortest_edge": 224}, 3, OPENAI_CLIP, {"height": 224, "width": 224}),
    "Bit": _Defaults({"shortest_edge": 224}, 3, OPENAI_CLIP, {"height": 224, "width": 224}),
    "ViT": _Defaults({"height": 224, "width": 224}, 2, STANDARD, square=True),
    "Siglip": _Defaults({"height": 224, "width": 224}, 3, STANDARD),
}


def read_image_processor(folder: Path) -> ImageProcessor | None:
    """The processor of a folder; None if it has no file that says how pictures are prepared.

    Raises:
        FileFormatError: the file is malformed.
        UnsupportedModelError: it asks for something that RLX does not have.
    """
    place = folder / "preprocessor_config.json"
    values = read_object_if_present(place)
    if not values:
        place = folder / "processor_config.json"
        nested = read_object_if_present(place).get("image_processor")
        values = cast("dict[str, object]", nested) if isinstance(nested, dict) else {}
    return processor_from(Fields(values, str(place))) if values else None


def processor_from(fields: Fields) -> ImageProcessor:
    """The processor that a configuration describes.

    Raises:
        UnsupportedModelError: naming the field and its value.
    """
    kind = _kind(fields)
    size = _sides(fields, "size", kind.size, kind.square) if fields.flag("do_resize", True) else {}
    crops = fields.flag("do_center_crop", kind.crop is not None)
    crop = _sides(fields, "crop_size", kind.crop or kind.size, square=True) if crops else {}
    scale = fields.number("rescale_factor", 1 / 255) if fields.flag("do_rescale", True) else None
    normalises = fields.flag("do_normalize", True)
    mean, std = (_channels(fields, name, kind.normal[i]) for i, name in enumerate(("image_mean", "image_std")))
    if crop and "height" not in crop:
        fields.refuse("crop_size", "a height and a width")
    resample = _filter(fields, kind.resample)
    # fields of a step that is left out are asked for as well, so that they are known
    for name in ("size", "crop_size", "rescale_factor"):
        fields.get(name)
    fields.refuse_unread(lambda name: name in HARMLESS, NEUTRAL)
    return ImageProcessor(
        shortest=size.get("shortest_edge"),
        size=(size["height"], size["width"]) if "height" in size else None,
        resample=resample,
        crop=(crop["height"], crop["width"]) if crop else None,
        scale=scale,
        mean=mean if normalises else None,
        std=std if normalises else None,
    )


def _kind(fields: Fields) -> _Defaults:
    """The class of transformers that wrote the file, of any age."""
    older = fields.get("feature_extractor_type")
    name = fields.text("image_processor_type", older if isinstance(older, str) else "")
    for suffix in SUFFIXES:
        kind = _KINDS.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if kind is not None:
            return kind
    return fields.refuse("image_processor_type", " or ".join(f"{kind}ImageProcessor" for kind in _KINDS))


def _filter(fields: Fields, default: int) -> str:
    value = fields.get("resample")
    value = default if value is None else value
    if type(value) is not int or value not in FILTERS:
        fields.refuse("resample", " or ".join(f"{number} ({name})" for number, name in FILTERS.items()))
    return FILTERS[value]


def _sides(fields: Fields, name: str, default: object, square: bool) -> dict[str, int]:
    """`height` and `width`, or `shortest_edge`; a single number is a square, or the shorter side."""
    value = fields.get(name)
    value = default if value is None else value
    if type(value) is int:
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    sides = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    whole = {key: side for key, side in sides.items() if type(side) is int and 1 <= side <= MAX_SIDE}
    if len(whole) != len(sides) or set(whole) not in ({"height", "width"}, {"shortest_edge"}):
        fields.refuse(name, f"height and width, or shortest_edge, each of 1 to {MAX_SIDE}")
    return whole


def _channels(fields: Fields, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """A number for each channel, finite, and none that may not be divided by."""
    value = fields.get(name)
    value = list(default) if value is None else value
    items = cast("list[object]", value) if isinstance(value, list) else [value] * 3
    numbers = tuple(float(x) for x in items if isinstance(x, int | float) and not isinstance(x, bool))
    usable = len(numbers) == len(items) == 3 and all(math.isfinite(x) for x in numbers)
    if not usable or (name == "image_std" and 0.0 in numbers):
        fields.refuse(name, "a number for each of three channels")
    return numbers
