"""From the recipe of an image model to something that sees: flow -> HIR -> packed attention -> executable -> model.

Next: `image_model.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlx.flow.profile import Profile
    from rlx.models.image_processor import ImageProcessor
    from rlx.models.recipe import ImageRecipe, PairRecipe
    from rlx.runtime.image_model import ImageModel, ImageTower


def start_images(
    name: str,
    path: Path,
    recipe: ImageRecipe | PairRecipe,
    profile: Profile,
    threads: int | None,
    info: Mapping[str, object],
) -> ImageModel:
    """A model of images, compiled; arguments as for `rlx.runtime.load_encoder.start_encoder`.

    Raises:
        OptionError: the profile asks for a backend that makes no machine code.
    """
    from rlx.models.recipe import PairRecipe
    from rlx.runtime.image_model import ImageClassifier, ImageEncoder, ImageTextEncoder

    start = time.perf_counter()
    image = recipe.image if isinstance(recipe, PairRecipe) else recipe
    processor = _processor(path, image)
    tower = image_tower(image, profile, threads)
    module = tower.executable.module
    facts: dict[str, object] = {
        "architecture": image.architecture,
        **info,
        "image_size": image.side.image_size,
        "patch_size": image.side.patch_size,
        "precision": profile.precision,
        "threads": module.threads,
        "target": module.target.name,
        "compile_seconds": module.compile_seconds,
        "cache": "warm" if module.cached else "cold",
        "load_seconds": time.perf_counter() - start,
    }
    if not isinstance(recipe, PairRecipe):
        return (ImageClassifier if image.labels else ImageEncoder)(name, tower, processor, facts)
    try:
        from rlx.runtime.load_encoder import start_encoder

        texts = start_encoder(name, path, recipe.text, profile, threads, info)
    except BaseException:
        tower.executable.close()
        raise
    facts |= {"max_tokens": texts.max_tokens, "load_seconds": time.perf_counter() - start}
    return ImageTextEncoder(name, tower, processor, facts, texts, recipe)


def image_tower(recipe: ImageRecipe, profile: Profile, threads: int | None) -> ImageTower:
    """The program of an image's tower.

    Raises:
        OptionError: the profile asks for a backend that makes no machine code.
    """
    from rlx.runtime.image_model import ImageTower
    from rlx.runtime.load_encoder import packed_executable

    return ImageTower(packed_executable(recipe, profile, threads), recipe)


def _processor(path: Path, recipe: ImageRecipe) -> ImageProcessor | None:
    from rlx.models.image_processor import read_image_processor

    return (read_image_processor(path) if path.is_dir() else None) or recipe.processor
