"""From the recipe of a speech model to something that listens: two flows, three programs, one `SpeechModel`.

    encoder flow -> HIR -> executable
    decoder flow -> HIR -> step program and source program -> `SourcedSession`

Next: `speech.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlx.errors import OptionError

if TYPE_CHECKING:
    from rlx.flow.profile import Profile
    from rlx.flow.weights import WeightSource
    from rlx.models.recipe import SpeechRecipe
    from rlx.runtime.executable import Executable
    from rlx.runtime.sourced_session import SourcedSession
    from rlx.runtime.speech import SpeechModel


def start_speech(
    name: str, path: Path, recipe: SpeechRecipe, profile: Profile, threads: int | None, info: Mapping[str, object]
) -> SpeechModel:
    """A speech model, compiled and with its tokenizer.

    Args:
        name: what the model is called.
        path: the folder, for the tokenizer.
        recipe: from `rlx.models.speech`.
        profile, threads: as for `rlx.load`.
        info: facts to show.

    Raises:
        OptionError: the profile asks for a backend that makes no machine code.
        TokenizerError: the folder has no tokenizer of a speech model.
    """
    from rlx.io.tokenizer import tokenizer_from_folder
    from rlx.runtime.speech import SpeechModel

    start = time.perf_counter()
    weights = speech_weights(recipe, profile)
    encoder = encoder_executable(recipe, weights, profile, threads)
    session = decoder_session(recipe, weights, profile, threads)
    modules = (encoder.module, session.module, session.source_module)
    facts = {
        "architecture": recipe.architecture,
        **info,
        "context_length": recipe.context_length,
        "precision": profile.precision,
        "threads": session.module.threads,
        "target": session.module.target.name,
        "compile_seconds": sum(module.compile_seconds for module in modules),
        "cache": "warm" if all(module.cached for module in modules) else "cold",
        "kv_cache": session.cache_format,
        "load_seconds": time.perf_counter() - start,
    }
    try:
        return SpeechModel(name, encoder, session, tokenizer_from_folder(path), recipe, facts)
    except BaseException:
        encoder.close()
        session.close()
        raise


def speech_weights(recipe: SpeechRecipe, profile: Profile) -> WeightSource:
    """The weights, rounded to 8 bits where the profile says so: matrices of products, and the embedding table."""
    from rlx.flow.quantised_weights import QuantisedWeights, matrices_of_products

    if not profile.quantises_encoders:
        return recipe.weights
    keys = {*matrices_of_products(recipe.encoder.build(recipe.weights, profile))}
    keys |= matrices_of_products(recipe.decoder.build(recipe.weights, profile))
    if recipe.hidden_size % 32 == 0:
        keys.add(recipe.embedding_key)
    return QuantisedWeights(recipe.weights, keys)


def encoder_executable(
    recipe: SpeechRecipe, weights: WeightSource, profile: Profile, threads: int | None
) -> Executable:
    """The encoder, compiled: `mel` and `bounds`, which say where each window's rows begin, to `output`.

    Raises:
        OptionError: the profile asks for a backend that makes no machine code.
    """
    from rlx.hir.pack_attention import pack_attention
    from rlx.runtime.executable import Executable
    from rlx.runtime.load import compile

    graph = pack_attention(recipe.encoder.build(weights, profile))
    compiled = compile(graph, weights, threads=threads, profile=profile)
    if not isinstance(compiled, Executable):
        raise OptionError("only the cpu backend listens", found=profile.backend, fix="use rlx.compile instead")
    return compiled


def decoder_session(
    recipe: SpeechRecipe, weights: WeightSource, profile: Profile, threads: int | None, slots: int = 1
) -> SourcedSession:
    """The decoder with its caches.

    Args:
        recipe, weights, profile, threads: as for `start_speech`.
        slots: windows that are held at once.
    """
    from rlx.backends.cpu.target import resolve
    from rlx.hir.derive_step import derive_step
    from rlx.runtime.load import cpu_module
    from rlx.runtime.sourced_session import SourcedSession
    from rlx.runtime.transcribe import MOST_SEQUENCES

    cache_dtype = profile.cache_dtype(resolve(profile.target).bf16)
    derived = derive_step(recipe.decoder.build(weights, profile), profile.page_size, cache_dtype)
    if derived.source is None:
        raise OptionError("the decoder of a speech model attends to a source", found="a flow without cross attention")
    per_sequence = -(-recipe.context_length // derived.page_size)
    return SourcedSession(
        cpu_module(derived.graph, weights, profile, threads)[2],
        cpu_module(derived.source, weights, profile, threads)[2],
        recipe.vocab_size,
        derived.page_size,
        # a fork copies a page before the sequence it is from gives its own back
        (MOST_SEQUENCES + 1) * per_sequence + MOST_SEQUENCES,
        recipe.context_length,
        source_rows=recipe.source_positions,
        slots=slots,
    )
