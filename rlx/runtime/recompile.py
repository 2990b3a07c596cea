"""A loaded model compiled once more, with everything a compilation makes on its way.

In: where a model came from (`Origin`). Out: a `Compilation`. A model that is loaded keeps none of this, and one that
started warm never had it; the passes take a fraction of a second. Next: `profiler.py`, `explainer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from rlx.compiler import KeptStage
    from rlx.core.graph import Graph
    from rlx.flow.flow import ModelFlow
    from rlx.flow.profile import Profile
    from rlx.lir.program import Program


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model came from: its path, and how it was compiled."""

    path: Path
    profile: Profile
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Compilation:
    """What every stage gave.

    Attributes:
        flow: what the author wrote.
        forward: the HIR graph of the flow.
        stages: from the graph that was compiled to the last program, in order.
        program: the last of them.
    """

    flow: ModelFlow
    forward: Graph
    stages: Sequence[KeptStage]
    program: Program

    @property
    def mir(self) -> Graph:
        """The graph that was lowered."""
        from rlx.core.graph import Graph

        return [stage.result for stage in self.stages if isinstance(stage.result, Graph)][-1]


def recompile(origin: Origin, program: Program) -> Compilation:
    """Compile a model again.

    Args:
        origin: of the model.
        program: that the model runs.

    Raises:
        UnsupportedModelError: another program comes out, because the file is another one by now.
    """
    from rlx.backends.cpu.backend import CpuBackend
    from rlx.backends.cpu.target import resolve
    from rlx.compiler import compile_graph

    profile, target = origin.profile, resolve(origin.profile.target)
    flow, forward, graph = _graphs(origin)
    stages: list[KeptStage] = []
    made, _ = compile_graph(
        graph, CpuBackend(target), precision=profile.precision, fusion=profile.fusion, keep=stages.append
    )
    if made != program:
        raise UnsupportedModelError(
            "the model gives another program now", where=str(origin.path), fix="load the model again"
        )
    return Compilation(flow, forward, stages, made)


def _graphs(origin: Origin) -> tuple[ModelFlow, Graph, Graph]:
    """The flow, its forward pass, and the graph of the program that is made of it."""
    from rlx.backends.cpu.target import resolve
    from rlx.hir.derive_step import derive_step
    from rlx.io.reference import open_model
    from rlx.models.encoders import encoder_recipe_for
    from rlx.models.image_models import image_recipe_for
    from rlx.models.recipe import PairRecipe
    from rlx.models.registry import recipe_for
    from rlx.runtime.load_encoder import packed_graph

    checkpoint, profile = open_model(origin.path), origin.profile
    encoder = encoder_recipe_for(checkpoint) or image_recipe_for(checkpoint)
    if isinstance(encoder, PairRecipe):
        encoder = encoder.image
    if encoder is not None:
        graph, _ = packed_graph(encoder, profile)
        return encoder.flow, encoder.flow.build(encoder.weights, profile), graph
    recipe = recipe_for(checkpoint, origin.context)
    forward = recipe.flow.build(recipe.weights, profile)
    cache_dtype = profile.cache_dtype(resolve(profile.target).bf16)
    return recipe.flow, forward, derive_step(forward, profile.page_size, cache_dtype).graph
