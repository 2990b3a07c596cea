# pyright: basic, reportMissingImports=false
"""Record what Pillow resizes pictures to, and what transformers' image processors make of them.

In: pictures of `load_images.picture` and the configurations below. Out: two files a case in answers/pictures: `resized`
uint8 [height, width, 3], or `config` (the preprocessor_config.json that `save_pretrained` writes) with `pixels` float32
[3, height, width]. Run `python -m tests.references.pictures` with transformers and
Pillow installed. Next: `load_images.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image

from tests.references.load_images import picture
from tests.references.recording import write_case

RESIZES = [
    ("down", (61, 83), (20, 31), 3),
    ("up", (17, 13), (40, 52), 3),
    ("mixed", (50, 12), (19, 33), 2),
    ("rows_alone", (31, 24), (12, 24), 2),
    ("columns_alone", (31, 24), (31, 7), 3),
    ("to_one_pixel", (9, 14), (1, 1), 3),
]
PROCESSORS: list[tuple[str, str, tuple[int, int], dict[str, Any]]] = [
    ("clip", "CLIPImageProcessorPil", (61, 47), {"size": {"shortest_edge": 24}, "crop_size": 24}),
    (
        "clip_small",
        "CLIPImageProcessorPil",
        (20, 33),
        {"size": {"shortest_edge": 15}, "crop_size": {"height": 22, "width": 19}},
    ),
    ("clip_uncropped", "CLIPImageProcessorPil", (20, 33), {"size": {"shortest_edge": 12}, "do_center_crop": False}),
    ("vit", "ViTImageProcessorPil", (40, 31), {"size": {"height": 18, "width": 24}}),
    ("vit_plain", "ViTImageProcessorPil", (16, 12), {"do_resize": False, "do_normalize": False}),
    ("siglip", "SiglipImageProcessorPil", (40, 31), {"size": {"height": 16, "width": 16}, "resample": 2}),
    (
        "dinov2",
        "BitImageProcessorPil",
        (70, 50),
        {
            "size": {"shortest_edge": 30},
            "crop_size": {"height": 28, "width": 28},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ),
    (
        "unscaled",
        "SiglipImageProcessorPil",
        (12, 12),
        {
            "size": {"height": 8, "width": 8},
            "do_rescale": False,
            "image_mean": [10.0, 20.0, 30.0],
            "image_std": [2.0, 3.0, 4.0],
        },
    ),
]


def main() -> None:
    """Record every case."""
    packages = ["pillow", "transformers"]
    for name, old, new, resample in RESIZES:
        resized = Image.fromarray(picture(name, *old)).resize(new[::-1], resample=resample)
        description = {"name": f"resize_{name}", "picture": [name, *old], "size": new, "resample": resample}
        write_case("pictures", description, {"resized": np.asarray(resized)}, packages)
    for name, class_name, old, options in PROCESSORS:
        processor = getattr(transformers, class_name)(**options)
        pixels = processor(Image.fromarray(picture(name, *old)), return_tensors="np")["pixel_values"][0]
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            config = json.loads((Path(folder) / "preprocessor_config.json").read_text())
        description = {"name": f"processor_{name}", "picture": [name, *old], "config": config}
        write_case("pictures", description, {"pixels": np.asarray(pixels, np.float32)}, packages)


if __name__ == "__main__":
    main()
