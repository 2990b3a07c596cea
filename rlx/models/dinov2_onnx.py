"""A DINOv2 within an ONNX file, as `torch.onnx.export` writes it: the recipe of `dinov2.py` over its initialisers.

In: an open ONNX file. Out: its `ImageRecipe`, or a refusal that says where its graph is another one. What an exporter
does to a DINOv2: biases, norms and factors keep their names, behind a prefix if the model is a part of a larger one.
Matrices are turned round (`[in, out]`) and lose theirs (`onnx::MatMul_123`): each is known by the bias that is added to
its product. The table of positions falls into two, the row of the CLS token and those of the patches. There is no
configuration: sizes are those of tensors, the rest is read from constants. Next: `image_models.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from rlx.errors import UnsupportedModelError
from rlx.flow.blocks.pooling import PoolStage
from rlx.flow.tensor_part import TensorPart
from rlx.io.checkpoint import TensorInfo
from rlx.io.onnx_file import OnnxFile, OnnxNode
from rlx.models.dinov2 import dinov2_names
from rlx.models.image_family import image_recipe
from rlx.models.image_processor import IMAGENET, ImageProcessor
from rlx.models.recipe import ImageRecipe
from rlx.models.tower import GRID_POSITIONS, ImageSide, TowerConfig
from rlx.models.unread import refuse_unread_tensors

CLS = "embeddings.cls_token"
UNREAD = ("decoder.*", "head.*", "classifier.*")
"""What may stand behind a backbone."""
PROCESSOR = ImageProcessor(256, None, "bicubic", (224, 224), 1 / 255, *IMAGENET)
"""How the publishers of DINOv2 prepare pictures; an ONNX file does not say it."""
ROWS_OF = frozenset(("Transpose", "Cast", "Reshape", "Resize", "Expand", "Identity"))
"""Operators that move rows, and whose first input is what they move."""


def dinov2_onnx_recipe(file: OnnxFile) -> ImageRecipe:
    """The recipe of a DINOv2 in an ONNX file.

    Raises:
        UnsupportedModelError: its graph is not that of a DINOv2.
    """
    graph = _Graph(file)
    config, side = graph.config(), graph.side()
    names = dinov2_names(config, side)
    for key, part in names.items():
        names[key] = replace(part, name=graph.prefix + part.name)
    for key, part in names.items():
        shape = part.stored or ()
        if len(shape) == 2 and part.name not in file.tensors:
            names[key] = TensorPart(graph.matrix(part.name), transposed=True, stored=shape[::-1])
    names["cls_position"], names[GRID_POSITIONS] = graph.positions(config.hidden_size, side)
    refuse_unread_tensors(file, {part.name for part in names.values()}, UNREAD)
    recipe = image_recipe("dinov2", file, config, side, names, PoolStage("first"), config.hidden_size)
    return replace(recipe, processor=PROCESSOR)


class _Graph:
    """The graph of a file, asked for the facts that a configuration would have."""

    def __init__(self, file: OnnxFile) -> None:
        self.file = file
        self.made_by = {output: node for node in file.nodes for output in node.outputs}
        self.readers: dict[str, list[OnnxNode]] = {}
        for node in file.nodes:
            for value in node.inputs:
                self.readers.setdefault(value, []).append(node)
        prefixes = [name.removesuffix(CLS) for name in file.tensors if name.endswith(CLS)]
        if len(prefixes) != 1:
            raise self.refuse("its CLS token", f"{len(prefixes)} tensors ...{CLS}", "one")
        self.prefix = prefixes[0]

    def refuse(self, what: str, found: object, expected: object) -> UnsupportedModelError:
        """The error for a graph that is another one."""
        return UnsupportedModelError(
            f"this ONNX file is not a DINOv2 that RLX knows by {what}",
            where=str(self.file.path),
            found=found,
            expected=expected,
            fix="RLX reads the DINOv2 that torch.onnx.export writes from transformers",
        )

    def tensor(self, name: str) -> TensorInfo:
        """An initialiser behind the prefix."""
        info = self.file.tensors.get(self.prefix + name)
        if info is None:
            raise self.refuse(f"the tensor {self.prefix}{name}", "none of that name", "an initialiser")
        return info

    def config(self) -> TowerConfig:
        """The sizes of tensors, and what constants of the graph say."""
        hidden = self.tensor(CLS).shape[-1]
        layers = 0
        while f"{self.prefix}encoder.layer.{layers}.norm1.weight" in self.file.tensors:
            layers += 1
        head_dim = self._head_dim(layers)
        if head_dim < 1 or hidden % head_dim:
            raise self.refuse("its heads", f"head size {head_dim}", f"a divisor of {hidden}")
        self._check_operators(layers)
        return TowerConfig(
            hidden_size=hidden,
            intermediate_size=self.tensor("encoder.layer.0.mlp.fc1.bias").shape[-1],
            num_layers=layers,
            num_heads=hidden // head_dim,
            norm_eps=self._epsilon(layers),
            activation="gelu",
            layer_scale=True,
        )

    def side(self) -> ImageSide:
        """How an image becomes rows: the kernel of the convolution, and the size for which positions were learned."""
        _, channels, size, width = self._four("embeddings.patch_embeddings.projection.weight")
        (conv,) = self._only("Conv", self.prefix + "embeddings.patch_embeddings.projection.weight")
        plain = {"strides": (size, size), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": (1,)}
        found = {name: conv.numbers.get(name, value) for name, value in plain.items()}
        if size != width or found != plain:
            raise self.refuse("its patches", found, plain)
        count = self.file.tensors[self._patch_positions()].shape[-2]
        grid = math.isqrt(count)
        if grid * grid != count:
            raise self.refuse("its positions", count, "a square number of patches")
        return ImageSide(image_size=grid * size, patch_size=size, channels=channels)

    def _four(self, name: str) -> tuple[int, ...]:
        shape = self.tensor(name).shape
        if len(shape) != 4:
            raise self.refuse(f"the tensor {self.prefix}{name}", list(shape), "four axes")
        return shape

    def _only(self, op: str, reads: str) -> list[OnnxNode]:
        """The one node of an operator that reads a value."""
        nodes = [node for node in self.readers.get(reads, ()) if node.op == op]
        if len(nodes) != 1:
            raise self.refuse(f"what reads {reads}", f"{len(nodes)} {op}", f"one {op}")
        return nodes

    def matrix(self, weight: str) -> str:
        """The initialiser that a layer's matrix is: the one whose product its bias is added to.

        Raises:
            UnsupportedModelError: the graph adds the bias to something else.
        """
        bias = weight.removesuffix(".weight") + ".bias"
        (add,) = self._only("Add", bias)
        product = self.made_by.get(next((value for value in add.inputs if value != bias), ""))
        if product is None or product.op != "MatMul" or product.inputs[-1] not in self.file.tensors:
            raise self.refuse(f"the product that {bias} is added to", product and product.op, "a MatMul with a matrix")
        return product.inputs[-1]

    def positions(self, hidden: int, side: ImageSide) -> tuple[TensorPart, TensorPart]:
        """The positions of the CLS token and of the patches."""
        first, rest = self._position_tensors()
        count = side.grid**2
        return (
            TensorPart(first, stored=(1, 1, hidden), shown=(1, hidden)),
            TensorPart(rest, stored=(1, count, hidden), shown=(count, hidden)),
        )

    def _patch_positions(self) -> str:
        return self._position_tensors()[1]

    def _position_tensors(self) -> tuple[str, str]:
        """What is added to the CLS token and to the patches: two tensors, one behind the other in a Concat."""
        for node in self.file.nodes:
            if node.op != "Concat" or len(node.inputs) != 2 or self.origin(node.inputs[0]) != self.prefix + CLS:
                continue
            for add in self.readers.get(node.outputs[0], ()):
                table = self.made_by.get(next((value for value in add.inputs if value not in node.outputs), ""))
                if add.op == "Add" and table is not None and table.op == "Concat" and len(table.inputs) == 2:
                    self._check_resize(table.inputs[1])
                    origins = [self.origin(value) for value in table.inputs]
                    if all(origin in self.file.tensors for origin in origins):
                        return origins[0], origins[1]
        raise self.refuse("its positions", "no sum of a CLS token and patches with a table", "one")

    def origin(self, value: str) -> str:
        """The value that another one is made of by moving rows."""
        for _ in range(len(self.file.nodes)):
            node = self.made_by.get(value)
            if node is None or node.op not in ROWS_OF or not node.inputs:
                break
            value = node.inputs[0]
        return value

    def _check_resize(self, value: str) -> None:
        """Positions are resampled by a cubic, if at all: what `resize_grid` does without averaging."""
        for node in self._chain(value):
            if node.op == "Resize" and node.numbers.get("antialias", (0,)) not in ((), (0,)):
                raise self.refuse("how it resamples positions", "antialias", "no antialias")

    def _chain(self, value: str) -> Iterator[OnnxNode]:
        while (node := self.made_by.get(value)) is not None and node.op in ROWS_OF and node.inputs:
            yield node
            value = node.inputs[0]

    def _constants(self, node: OnnxNode) -> Iterator[float]:
        """Numbers that a node reads from constants of one element."""
        for value in node.inputs:
            made = self.made_by.get(value)
            if made is not None and made.constant is not None and made.constant.size == 1:
                yield float(made.constant.reshape(-1)[0])

    def _head_dim(self, layers: int) -> int:
        """The size of a head: what the queries of every layer are split into."""
        sizes: set[int] = set()
        for index in range(layers):
            bias = f"{self.prefix}encoder.layer.{index}.attention.attention.query.bias"
            (add,) = self._only("Add", bias)
            (split,) = self._only("Reshape", add.outputs[0])
            shape = self.made_by.get(split.inputs[-1])
            if shape is not None and shape.op == "Concat":
                sizes.add(int([0.0, *self._constants(shape)][-1]))
        if len(sizes) != 1:
            raise self.refuse("its heads", sorted(sizes), "one size of a head in all layers")
        return sizes.pop()

    def _epsilon(self, layers: int) -> float:
        """What every norm adds to the variance, as float32 in the file and as it was meant."""
        roots = [node for node in self.file.nodes if node.op == "Sqrt"]
        found = {
            eps
            for root in roots
            if (add := self.made_by.get(root.inputs[0])) is not None and add.op == "Add"
            for eps in self._constants(add)
        }
        found |= {0.0} if len(roots) != 2 * layers + 1 else set()
        if len(found) != 1 or not 0.0 < min(found) < 0.1:
            raise self.refuse("its norms", sorted(found), f"one epsilon in {2 * layers + 1} norms")
        return float(f"{np.float32(found.pop()):.6g}")

    def _check_operators(self, layers: int) -> None:
        """A layer has one softmax, one GELU by its error function, and two residual factors."""
        counts = {op: sum(node.op == op for node in self.file.nodes) for op in ("Softmax", "Erf")}
        if layers < 1 or set(counts.values()) != {layers}:
            raise self.refuse("its layers", counts, f"one softmax and one erf in each of {layers} layers")
