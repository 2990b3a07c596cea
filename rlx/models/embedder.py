"""A decoder that embeds: the body of a language model, a pooling and what follows it (Qwen3-Embedding, EmbeddingGemma).

In: an open folder with the files of sentence-transformers, or a GGUF file that names a pooling, and the family of the
language model. Out: an `EncoderRecipe`; the packed program runs causal attention and windows as it runs full attention.
Next: `encoders.py`.
"""

from __future__ import annotations

from dataclasses import replace

from rlx.flow.tensor_part import TensorPart, TensorStack
from rlx.flow.weights import MappedWeights
from rlx.io.checkpoint import Checkpoint
from rlx.io.sentence_transformers import SentenceSettings
from rlx.models.decoder import decoder_body
from rlx.models.encoder_head import head_stages
from rlx.models.family import Family
from rlx.models.names import keys_of
from rlx.models.pooled import pool_head, width_of, with_dense_weights
from rlx.models.recipe import EncoderRecipe
from rlx.models.unread import refuse_unread_tensors

BODY_PREFIX = "model."
"""Stands before the names of the body where a checkpoint was saved with its head."""


def embedder_recipe(family: Family, checkpoint: Checkpoint, settings: SentenceSettings) -> EncoderRecipe:
    """The recipe of a folder of this family that sentence-transformers embeds with.

    Raises:
        UnsupportedModelError: the checkpoint asks for something RLX does not implement.
    """
    is_gguf = checkpoint.kind == "gguf"
    config = family.read_gguf(checkpoint) if is_gguf else family.read_hf(checkpoint, body=True)
    name_map = family.gguf_names if is_gguf else family.names
    head = pool_head(settings, str(checkpoint.path))
    bare = not is_gguf and not any(name.startswith(BODY_PREFIX) for name in checkpoint.tensors)
    names: dict[str, TensorPart | TensorStack] = {}
    for key, target in name_map.expand(config).items():
        part = TensorPart(target) if isinstance(target, str) else target
        names[key] = part.without_prefix(BODY_PREFIX) if bare else part
    read = {name for key in keys_of(config, head=False) if key in names for name in names[key].names}
    refuse_unread_tensors(checkpoint, read, (*name_map.unread, *names["lm_head.weight"].names))
    flow = decoder_body(config, family.model_type).named("head", head_stages(head))
    limit = min(settings.max_tokens or config.context_length, config.context_length)
    return EncoderRecipe(
        architecture=family.model_type,
        flow=flow,
        weights=with_dense_weights(MappedWeights(checkpoint, names), settings),
        vocab_size=config.vocab_size,
        width=width_of(settings, config.hidden_size),
        num_layers=len(config.layers),
        token_types=0,
        labels=0,
        score_function="identity",
        settings=replace(settings, max_tokens=limit),
    )
