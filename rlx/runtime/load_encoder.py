"""From the recipe of an encoder to something that embeds: flow -> HIR -> packed program -> executable -> `Encoder`.

Next: `encoder.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlx.errors import OptionError

if TYPE_CHECKING:
    from rlx.core.graph import Graph
    from rlx.flow.profile import Profile
    from rlx.flow.weights import WeightSource
    from rlx.models.recipe import EncoderRecipe, ImageRecipe
    from rlx.runtime.encoder import Encoder
    from rlx.runtime.executable import Executable


def start_encoder(
    name: str, path: Path, recipe: EncoderRecipe, profile: Profile, threads: int | None, info: Mapping[str, object]
) -> Encoder:
    """An encoder, compiled and with its tokenizer.

    Args:
        name: what the model is called.
        path: the file or folder, for the tokenizer.
        recipe: from `rlx.models.encoders`.
        profile, threads: as for `rlx.load`.
        info: facts to show.

    Raises:
        OptionError: the profile asks for a backend that makes no machine code.
    """
    from rlx.io.reference import open_model
    from rlx.io.tokenizer import tokenizer_from
    from rlx.runtime.encoder import Encoder

    start = time.perf_counter()
    executable = packed_executable(recipe, profile, threads)
    try:
        tokenizer = tokenizer_from(open_model(path))
    except BaseException:
        executable.close()
        raise
    module = executable.module
    facts = {
        "architecture": recipe.architecture,
        **info,
        "max_tokens": recipe.settings.max_tokens,
        "precision": profile.precision,
        "threads": module.threads,
        "target": module.target.name,
        "compile_seconds": module.compile_seconds,
        "cache": "warm" if module.cached else "cold",
        "load_seconds": time.perf_counter() - start,
    }
    return Encoder(name, executable, tokenizer, recipe, facts)


def packed_executable(recipe: EncoderRecipe | ImageRecipe, profile: Profile, threads: int | None) -> Executable:
    """The packed program of an encoder, of texts or of images.

    Raises:
        OptionError: the profile asks for a backend that makes no machine code.
    """
    from rlx.runtime.executable import Executable
    from rlx.runtime.load import compile

    if profile.backend != "cpu":
        raise OptionError("only the cpu backend embeds", found=profile.backend, fix="use rlx.compile instead")
    graph, weights = packed_graph(recipe, profile)
    compiled = compile(graph, weights, threads=threads, profile=profile)
    if not isinstance(compiled, Executable):
        raise OptionError("only the cpu backend embeds", found=profile.backend)
    return compiled


def packed_graph(recipe: EncoderRecipe | ImageRecipe, profile: Profile) -> tuple[Graph, WeightSource]:
    """The graph of the packed program, and the weights it reads."""
    from rlx.flow.quantised_weights import QuantisedWeights, matrices_of_products
    from rlx.hir.derive_packed import derive_packed
    from rlx.hir.pack_attention import pack_attention
    from rlx.models.recipe import ImageRecipe

    weights: WeightSource = recipe.weights
    graph = recipe.flow.build(weights, profile)
    if profile.quantises_encoders:
        weights = QuantisedWeights(weights, matrices_of_products(graph))
        graph = recipe.flow.build(weights, profile)
    return (pack_attention if isinstance(recipe, ImageRecipe) else derive_packed)(graph), weights
