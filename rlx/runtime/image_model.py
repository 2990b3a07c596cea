"""Loaded models of images: what `rlx.load` returns for a vision transformer.

In: pictures (arrays or files). Out: float32 vectors (`embed_images`), rows of the last layer (`features`), labels
(`classify`), and, where the model has a text tower beside it, vectors of texts and how alike both are. Pictures of one
size run together, up to a budget of rows; what one gives does not depend on the others. Next: `load_images.py`, which
makes one; `rlx/models/tower.py`, the program it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.core.dim import evaluate
from rlx.core.storage import decode
from rlx.errors import InputError, OptionError, RlxError
from rlx.io.images import Image, read_image
from rlx.io.resample import resize_grid
from rlx.models.image_processor import ImageProcessor, Pixels
from rlx.models.recipe import ImageRecipe, PairRecipe
from rlx.models.tower import GRID_POSITIONS, HIDDEN, MAX_GRID, PIXELS
from rlx.runtime.encoder import Encoder, Vectors
from rlx.runtime.executable import Executable
from rlx.runtime.loaded_model import LoadedModel

Progress = Callable[[int, int], None]
"""Called with how many pictures are done, and how many there are."""
ROWS_AT_ONCE = 512
"""Rows of one run, about: enough for whole tiles on all threads, few enough for activations to stay in the caches."""
GRIDS_KEPT = 16
"""Tables of positions that are kept, for pictures of so many sizes."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a picture may show, and how likely it is."""

    index: int
    name: str
    probability: float


class ImageTower:
    """The program of an image's tower.

    Args:
        executable: the compiled program; the tower closes it.
        recipe: what it was made from.
    """

    def __init__(self, executable: Executable, recipe: ImageRecipe) -> None:
        self.executable, self.recipe = executable, recipe
        type_ = recipe.weights.type_of(GRID_POSITIONS)
        shape = tuple(evaluate(size, {}) for size in type_.shape)
        self._learned = np.array(decode(type_.dtype, recipe.weights.raw(GRID_POSITIONS), shape), np.float32)
        self._grids: dict[tuple[int, int], Pixels] = {}

    def rows(self, height: int, width: int) -> int:
        """Rows of a picture of this size.

        Raises:
            InputError: it has no patch, or too many.
        """
        side = self.recipe.side
        grid = height // side.patch_size, width // side.patch_size
        if not (1 <= grid[0] <= MAX_GRID and 1 <= grid[1] <= MAX_GRID):
            raise InputError(
                "a picture is too small or too large",
                found=f"{height} x {width}",
                expected=f"{side.patch_size} to {side.patch_size * MAX_GRID} along each side",
            )
        return side.prefix + grid[0] * grid[1]

    def run(self, pixels: Pixels) -> dict[str, NDArray[Any]]:
        """The outputs for `float32[images, channels, height, width]`; what is no whole patch is left out."""
        count, _, height, width = pixels.shape
        patch = self.recipe.side.patch_size
        rows, grid = self.rows(height, width), (height // patch, width // patch)
        return self.executable(
            **{
                PIXELS: np.ascontiguousarray(pixels[:, :, : grid[0] * patch, : grid[1] * patch]),
                GRID_POSITIONS: self._positions(*grid),
                "bounds": np.arange(count + 1, dtype=np.int32) * np.int32(rows),
            }
        )

    def _positions(self, rows: int, columns: int) -> Pixels:
        if (rows, columns) not in self._grids:
            if len(self._grids) >= GRIDS_KEPT:
                self._grids.pop(next(iter(self._grids)))
            self._grids[rows, columns] = resize_grid(self._learned, rows, columns, self.recipe.side.antialias)
        return self._grids[rows, columns]


class ImageModel(LoadedModel):
    """A model of images ready to run. Use it as a context manager, or call `close`.

    Args:
        name: what the model is called.
        tower: its program; the model closes it.
        processor: how pictures become pixels; None where no file says it.
        info: facts to show (architecture, parameters, precision, ...).
    """

    kind = "a model of images"

    def __init__(
        self, name: str, tower: ImageTower, processor: ImageProcessor | None, info: Mapping[str, object]
    ) -> None:
        self.name, self.processor, self.info = name, processor, dict(info)
        self._tower, self._is_closed = tower, False

    @property
    def width(self) -> int:
        """Elements of a vector; labels where the model classifies."""
        return self._tower.recipe.width

    def pixels(self, image: Image) -> Pixels:
        """What the model sees of a picture, `float32[3, height, width]`.

        Args:
            image: `uint8[height, width, 3]`, or the path of a picture.

        Raises:
            InputError: it is no picture, or the model's files do not say how pictures are prepared.
        """
        if self.processor is None:
            raise InputError(
                "the model does not say how pictures are prepared",
                where=self.name,
                expected="preprocessor_config.json",
                fix="put that file into its folder, or use run_pixels",
            )
        return self.processor.apply(read_image(image))

    def features(self, images: Sequence[Image], *, progress: Progress | None = None) -> list[Vectors]:
        """All rows of the last layer for each picture, `float32[rows, hidden]`: CLS, registers, then patches.

        They are behind the last norm, in a model that has one over all rows (CLIP has none).

        Raises:
            InputError: this is one picture, one cannot be read, or the model does not say how they are prepared.
        """
        return [row for rows in self._run(images, HIDDEN, progress) for row in rows]

    def run_pixels(self, pixels: Pixels) -> tuple[Vectors, Vectors]:
        """Vectors or scores `[images, width]`, and all rows of the last layer `[images, rows, hidden]`, of pixels.

        Args:
            pixels: `float32[images, channels, height, width]`, prepared by the caller.

        Raises:
            InputError: the shape or dtype is another.
        """
        channels = self._tower.recipe.side.channels
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1] != channels or not len(pixels):
            raise InputError(
                "these are not the pixels of images",
                found=f"{pixels.dtype} {list(pixels.shape)}",
                expected=f"float32 [images, {channels}, height, width]",
            )
        outputs = [self._outputs(part) for part in self._parts(pixels)]
        vectors, rows = (np.concatenate([part[name] for part in outputs]) for name in ("output", HIDDEN))
        return vectors[:, 0], rows

    def _parts(self, pixels: Pixels) -> Iterator[Pixels]:
        count = self._at_once(*pixels.shape[2:])
        return (pixels[first : first + count] for first in range(0, len(pixels), count))

    def _at_once(self, height: int, width: int) -> int:
        """Pictures of a size that run together."""
        return max(1, round(ROWS_AT_ONCE / self._tower.rows(height, width)))

    def _outputs(self, pixels: Pixels) -> dict[str, NDArray[Any]]:
        if self._is_closed:
            raise RlxError("the model is closed", where=self.name, fix="load it again")
        return self._tower.run(pixels)

    def _run(self, images: Sequence[Image], output: str, progress: Progress | None) -> Iterator[Vectors]:
        """An output of the program for each picture, in order, as many at once as run together."""
        if isinstance(images, str | Path | np.ndarray):
            raise InputError("a batch is a list of images", found="one image", fix="pass [image]")
        if self._tower.recipe.side.channels != 3:
            raise InputError(
                "this model takes no pictures of three colours",
                where=self.name,
                found=f"{self._tower.recipe.side.channels} channels",
                fix="use run_pixels",
            )
        done, waiting = 0, list[Pixels]()
        for image in images:
            pixels = self.pixels(image)
            if waiting and (pixels.shape != waiting[0].shape or len(waiting) == self._at_once(*pixels.shape[1:])):
                yield self._outputs(np.stack(waiting))[output]
                done += len(waiting)
                waiting.clear()
                if progress is not None:
                    progress(done, len(images))
            waiting.append(pixels)
        if waiting:
            yield self._outputs(np.stack(waiting))[output]
            if progress is not None:
                progress(len(images), len(images))

    def _vectors(self, images: Sequence[Image], progress: Progress | None) -> Vectors:
        """The program's output for each picture, `float32[images, width]`."""
        parts = [part[:, 0] for part in self._run(images, "output", progress)]
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""
        if not self._is_closed:
            self._is_closed = True
            self._tower.executable.close()

    def __repr__(self) -> str:
        facts = [f"{key} {value}" for key, value in self.info.items() if isinstance(value, str | int)]
        return f"<rlx.{type(self).__name__} {self.name}: {', '.join(facts)}{', closed' if self._is_closed else ''}>"


class ImageEncoder(ImageModel):
    """A model that makes vectors of images."""

    def embed_images(self, images: Sequence[Image], *, progress: Progress | None = None) -> Vectors:
        """A vector for each picture, `float32[images, width]`.

        It is what transformers calls `pooler_output`, or `image_embeds` of a model with a projection; of length 1 where
        the model compares images with texts.

        Args:
            images: each `uint8[height, width, 3]`, or the path of a picture.
            progress: called after each run of the program.

        Raises:
            InputError: this is one picture, one cannot be read, or the model does not say how they are prepared.
        """
        return self._vectors(images, progress)


class ImageClassifier(ImageModel):
    """A model that says what a picture shows."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of what it knows."""
        return self._tower.recipe.labels

    def classify(self, image: Image, *, top: int | None = 5) -> list[Label]:
        """What a picture shows, the most likely first; probabilities are a softmax over all labels.

        Args:
            image: `uint8[height, width, 3]`, or the path of a picture.
            top: how many labels to give; None for all.

        Raises:
            InputError: it is no picture, or the model does not say how pictures are prepared.
            OptionError: `top` is not positive.
        """
        if top is not None and top < 1:
            raise OptionError("a picture has at least one label", found=top, expected="1 or more")
        scores = self._vectors([image], None)[0].astype(np.float64)
        weights = np.exp(scores - scores.max())
        probabilities = weights / weights.sum()
        order: list[int] = np.argsort(-scores, kind="stable")[:top].tolist()
        return [Label(index, self.labels[index], float(probabilities[index])) for index in order]


class ImageTextEncoder(ImageEncoder):
    """A model that puts images and texts into one space.

    Args:
        name, tower, processor, info: see `ImageModel`.
        texts: the encoder of texts; the model closes it.
        recipe: what both were made from.
    """

    kind = "a model of images and texts"

    def __init__(
        self,
        name: str,
        tower: ImageTower,
        processor: ImageProcessor | None,
        info: Mapping[str, object],
        texts: Encoder,
        recipe: PairRecipe,
    ) -> None:
        super().__init__(name, tower, processor, info)
        self.texts, self.scale, self.bias = texts, recipe.scale, recipe.bias

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        progress: Progress | None = None,
    ) -> Vectors:
        """A vector of length 1 for each text, `float32[texts, width]`; arguments and errors as of `Encoder.embed`."""
        return self.texts.embed(texts, prompt=prompt, prompt_name=prompt_name, progress=progress)

    def similarity(self, images: Sequence[Image], texts: Sequence[str]) -> Vectors:
        """How alike images and texts are, `float32[images, texts]`: transformers' `logits_per_image`.

        A softmax over the texts makes probabilities of a CLIP's, a sigmoid of each those of a SigLIP's.

        Raises:
            InputError: see `embed_images` and `embed`.
        """
        return compare(self.embed_images(images), self.embed(texts), self.scale, self.bias)

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""
        super().close()
        self.texts.close()


def compare(images: Vectors, texts: Vectors, scale: float, bias: float) -> Vectors:
    """`scale * images @ texts.T + bias`; each number alone, so that it does not depend on how many there are."""
    products = np.einsum("iw,jw->ij", images.astype(np.float64), texts.astype(np.float64), optimize=False)
    return (scale * products + bias).astype(np.float32)
