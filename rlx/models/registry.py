"""Which recipe a checkpoint needs, by the name it gives its architecture. Next: `llama.py`, the shortest family."""

from __future__ import annotations

from rlx.errors import UnsupportedModelError
from rlx.io.checkpoint import Checkpoint
from rlx.models.family import Family
from rlx.models.gemma import GEMMA, GEMMA2, GEMMA3
from rlx.models.gemma4 import GEMMA4
from rlx.models.gpt2 import GPT2
from rlx.models.gpt_neox import GPT_NEOX
from rlx.models.granite import GRANITE
from rlx.models.llama import LLAMA, MISTRAL
from rlx.models.ministral import MINISTRAL, MINISTRAL3
from rlx.models.mixtral import MIXTRAL
from rlx.models.olmo2 import OLMO2, OLMO3
from rlx.models.phi3 import PHI3
from rlx.models.qwen2 import QWEN2
from rlx.models.qwen3 import QWEN3
from rlx.models.qwen3_5 import QWEN3_5, QWEN3_5_TEXT
from rlx.models.qwen3_moe import QWEN3_MOE
from rlx.models.qwen3_next import QWEN3_NEXT
from rlx.models.recipe import ModelRecipe
from rlx.models.smollm3 import SMOLLM3
from rlx.models.text_part import WRAPPERS, text_part

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    MINISTRAL,
    MINISTRAL3,
    QWEN2,
    QWEN3,
    QWEN3_5,
    QWEN3_5_TEXT,
    QWEN3_NEXT,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    PHI3,
    GPT2,
    GPT_NEOX,
    GRANITE,
    OLMO2,
    OLMO3,
    SMOLLM3,
    MIXTRAL,
    QWEN3_MOE,
)
MODEL_TYPES = {family.model_type: family for family in FAMILIES}
"""`model_type` of a config.json."""

GGUF_ARCHITECTURES = {family.gguf: family for family in FAMILIES if family.gguf is not None}
"""`general.architecture` of a GGUF file."""


def recipe_for(checkpoint: Checkpoint, context_length: int | None = None) -> ModelRecipe:
    """The recipe of a checkpoint.

    Args:
        checkpoint: an open GGUF file or Hugging Face folder.
        context_length: most positions of a sequence; None for what the model was made for.

    Raises:
        UnsupportedModelError: the architecture is unknown, or its configuration asks for something not implemented.
    """
    checkpoint = text_part(checkpoint)
    is_gguf = checkpoint.kind == "gguf"
    key, known = ("general.architecture", GGUF_ARCHITECTURES) if is_gguf else ("model_type", MODEL_TYPES)
    name = checkpoint.metadata.get(key)
    family = known.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModelError(
            "RLX does not know this architecture",
            where=str(checkpoint.path),
            found=f"{key} = {name!r}",
            expected=f"one of: {', '.join(sorted(known if is_gguf else {*known, *WRAPPERS}))}",
        )
    return family.recipe(checkpoint, context_length)
