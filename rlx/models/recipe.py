"""What `models/` gives to the compiler: a flow, where its weights are, and the few facts the runtime asks for.

Next: `registry.py`, which picks the recipe of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlx.flow.flow import ModelFlow
from rlx.flow.weights import WeightSource
from rlx.io.sentence_transformers import SentenceSettings
from rlx.models.image_processor import ImageProcessor
from rlx.models.tower import ImageSide


@dataclass(frozen=True, slots=True)
class ModelRecipe:
    """A model that is ready to be built: `recipe.flow.build(recipe.weights)`.

    Attributes:
        architecture: what the checkpoint calls itself.
        flow: the plain causal forward pass, `tokens: i32[batch, seq]` to `logits: f32[batch, seq, vocab]`.
        weights: the checkpoint under the keys of the flow.
        context_length: most positions of one sequence.
        vocab_size: logits of a token.
        num_layers, hidden_size, num_heads, num_kv_heads, head_dim: the sizes, as usual.
    """

    architecture: str
    flow: ModelFlow
    weights: WeightSource
    context_length: int
    vocab_size: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class EncoderRecipe:
    """A model of vectors or scores that is ready to be built: `recipe.flow.build(recipe.weights)`.

    Attributes:
        architecture: what the checkpoint calls itself.
        flow: the plain forward pass, `tokens: i32[batch, seq]` (and `token_types`) to `f32[batch, 1, width]`.
        weights: the checkpoint under the keys of the flow.
        vocab_size: rows of the embedding table.
        width: elements of a vector; of a model that classifies, its scores.
        num_layers: as usual.
        token_types: kinds of tokens; 0 for a flow without the input `token_types`.
        labels: scores of a text or a pair of texts; 0 for a model that embeds.
        score_function: what is applied to the scores of a pair: "sigmoid" or "identity".
        settings: pooling, prompts and the most tokens of a text, which is given here.
        end_token: the token that ends a text: those behind the first one are left out, and a text needs one. -1 for
            the largest of the text, as the first CLIPs had it. None for a model whose tokens all count.
        pad_token: put behind a text up to the most tokens, for a model that was trained so and reads them.
    """

    architecture: str
    flow: ModelFlow
    weights: WeightSource
    vocab_size: int
    width: int
    num_layers: int
    token_types: int
    labels: int
    score_function: str
    settings: SentenceSettings
    end_token: int | None = None
    pad_token: int | None = None


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """A model of images that is ready to be built: `recipe.flow.build(recipe.weights)`.

    Attributes:
        architecture: what the checkpoint calls itself.
        flow: the plain forward pass of `rlx.models.tower.image_flow`; its output is `f32[batch, 1, width]`.
        weights: the checkpoint under the keys of the flow, and the learned positions of the patches.
        side: how an image becomes rows.
        hidden_size, num_layers: the sizes, as usual.
        width: of the output.
        labels: what the elements of the output are scores of; none for a model that embeds.
        processor: how pictures are prepared where the files do not say it.
    """

    architecture: str
    flow: ModelFlow
    weights: WeightSource
    side: ImageSide
    hidden_size: int
    num_layers: int
    width: int
    labels: tuple[str, ...] = ()
    processor: ImageProcessor | None = None


@dataclass(frozen=True, slots=True)
class PairRecipe:
    """A model that puts images and texts into one space.

    Attributes:
        image, text: the two towers; their vectors have length 1.
        scale, bias: how alike an image and a text are is `scale * (product of their vectors) + bias`.
    """

    image: ImageRecipe
    text: EncoderRecipe
    scale: float
    bias: float


@dataclass(frozen=True, slots=True)
class SpeechRecipe:
    """A model that writes what is said: an encoder of audio, and a decoder of text that attends to it.

    Attributes:
        architecture: what the checkpoint calls itself.
        encoder: `mel: f32[batch, frames, mel_bins]` to states `f32[batch, source_positions, hidden]`.
        decoder: `tokens: i32[batch, seq]` and `source`, the states, to logits `f32[batch, seq, vocab]`.
        weights: the checkpoint under the keys of both flows.
        embedding_key: the decoder's embedding table.
        vocab_size, hidden_size: the sizes, as usual.
        mel_bins, frames: of a window of audio; a frame is 10 ms.
        source_positions: rows that the encoder makes of a window.
        context_length: most tokens of a window, the prompt included.
        multilingual: whether the prompt names a language and a task.
        suppressed: tokens that are never written. suppressed_first: those that do not come first.
    """

    architecture: str
    encoder: ModelFlow
    decoder: ModelFlow
    weights: WeightSource
    embedding_key: str
    vocab_size: int
    hidden_size: int
    mel_bins: int
    frames: int
    source_positions: int
    context_length: int
    multilingual: bool
    suppressed: frozenset[int]
    suppressed_first: frozenset[int]
