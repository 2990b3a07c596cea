"""Reading the recorded answers, with NumPy alone.

In: the JSON and npz files beside this one. Out: typed cases for the tests to iterate over. Next: `kl.py` for distances
between distributions, README.md for what each file is and how it was made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.references.cases import AttentionConfig
from tests.references.kl import CompactDistribution
from tests.references.seeded import seeded_weight

FOLDER = Path(__file__).parent

Float32Array = NDArray[np.float32]
Int32Array = NDArray[np.int32]


@cache
def _arrays(name: str) -> dict[str, NDArray[Any]]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


@cache
def _document(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """One attention case; operands come from `config`.

    Attributes:
        output: float32 [batch, queries, num_heads * head_dim].
        cos, sin: float32 [queries, n_rot / 2], the table a stage case asks for (row = position); None for an op case.
    """

    config: AttentionConfig
    output: Float32Array
    cos: Float32Array | None
    sin: Float32Array | None

    @property
    def name(self) -> str:
        """The case's name."""
        return self.config.name


def attention_cases(kind: str | None = None) -> list[AttentionCase]:
    """Cases of one kind ("stage" or "op"), or all."""
    arrays = _arrays("attention")
    cases: list[AttentionCase] = []
    for fields in _document("attention")["cases"]:
        config = AttentionConfig(**{**fields, "masked_keys": tuple(fields["masked_keys"])})
        if kind in (None, config.kind):
            name = config.name
            cases.append(
                AttentionCase(config, arrays[f"{name}.output"], arrays.get(f"{name}.cos"), arrays.get(f"{name}.sin"))
            )
    return cases


@dataclass(frozen=True, slots=True)
class RopeCase:
    """One RoPE table of transformers.

    Attributes:
        rope_parameters: as in a version-5 config.json: rope_type, rope_theta, and what the type needs.
        positions: int32 [positions]; the sequence is max(positions) + 1 long (dynamic and LongRoPE choose by that).
        inv_freq: float32 [head_dim / 2].
        attention_factor: already multiplied into cos and sin.
        cos, sin: float32 [positions, head_dim / 2].
    """

    name: str
    head_dim: int
    max_position_embeddings: int
    rope_parameters: dict[str, Any]
    positions: Int32Array
    inv_freq: Float32Array
    attention_factor: float
    cos: Float32Array
    sin: Float32Array


def rope_cases() -> list[RopeCase]:
    """A table for every RoPE type of transformers."""
    arrays = _arrays("rope")
    return [
        RopeCase(
            name=case["name"],
            head_dim=case["head_dim"],
            max_position_embeddings=case["max_position_embeddings"],
            rope_parameters=case["rope_parameters"],
            positions=np.array(case["positions"], np.int32),
            inv_freq=arrays[f"{case['name']}.inv_freq"],
            attention_factor=float(arrays[f"{case['name']}.attention_factor"]),
            cos=arrays[f"{case['name']}.cos"],
            sin=arrays[f"{case['name']}.sin"],
        )
        for case in _document("rope")["cases"]
    ]


@dataclass(frozen=True, slots=True)
class MRopeCase:
    """One RoPE table over three position rows (time, height, width).

    Attributes:
        sections: pairs of each row; they sum up to the rotated pairs.
        interleaved: False gives each row a contiguous run of pairs (Qwen2.5-VL); True deals them out in turn, time,
            height, width, time, ..., and what is left over to time (Qwen3-VL, Qwen3.5).
        partial_rotary_factor: the rotated part of head_dim.
        positions: int32 [3, tokens].
        inv_freq: float32 [pairs].
        cos, sin: float32 [tokens, pairs].
    """

    name: str
    head_dim: int
    rope_theta: float
    partial_rotary_factor: float
    sections: tuple[int, int, int]
    interleaved: bool
    positions: Int32Array
    inv_freq: Float32Array
    cos: Float32Array
    sin: Float32Array


def mrope_cases() -> list[MRopeCase]:
    """Tables of the Qwen VL families."""
    arrays = _arrays("rope")
    cases: list[MRopeCase] = []
    for case in _document("rope")["mrope_cases"]:
        positions = np.array(case["positions"], np.int32)
        tables = {key: arrays[f"{case['name']}.{key}"] for key in ("inv_freq", "cos", "sin")}
        cases.append(MRopeCase(**{**case, "sections": tuple(case["sections"]), "positions": positions, **tables}))
    return cases


@dataclass(frozen=True, slots=True)
class TinyLlamaCase:
    """One tiny random model.

    Attributes:
        config: config.json as transformers 5 writes it (rope_parameters, dtype).
        legacy_config: the same as earlier versions wrote it (rope_theta, rope_scaling, torch_dtype).
        shapes: weight shapes by the name in model.safetensors.
        ids: int32 [24].
        logits: float32 [24, vocab].
        greedy: int32 [16], the most likely continuation.
    """

    name: str
    seed: int
    config: dict[str, Any]
    legacy_config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    ids: Int32Array
    logits: Float32Array
    greedy: Int32Array

    def weights(self) -> dict[str, Float32Array]:
        """The float32 weights to put into model.safetensors."""
        return {name: seeded_weight(name, shape, self.seed) for name, shape in self.shapes.items()}


def minilm_vectors() -> tuple[list[str], Float32Array]:
    """Texts, and the vectors `[texts, 384]` that sentence-transformers makes of them with all-MiniLM-L6-v2."""
    return _document("minilm")["texts"], _arrays("minilm")["vectors"]


def tiny_llama_cases() -> list[TinyLlamaCase]:
    """Llama in six shapes and Mistral with a sliding window."""
    arrays = _arrays("tiny_llama")
    return [
        TinyLlamaCase(
            name=case["name"],
            seed=case["seed"],
            config=case["config"],
            legacy_config=case["legacy_config"],
            shapes={key: tuple(shape) for key, shape in case["shapes"].items()},
            ids=arrays[f"{case['name']}.ids"],
            logits=arrays[f"{case['name']}.logits"],
            greedy=arrays[f"{case['name']}.greedy"],
        )
        for case in _document("tiny_llama")["cases"]
    ]


@dataclass(frozen=True, slots=True)
class PromptCase:
    """One prompt to SmolLM2, answered by transformers in float32.

    Attributes:
        text: what `ids` were made from, special tokens recognised (botchan_200 is a run of tokens from the middle of
            the book, so its text need not give the same ids).
        ids: int32 [tokens].
        last_logits: float32 [vocab], at the last position.
        top_ids, top_logits: uint16 and float32 [tokens, 32], the largest logits of every position, largest first.
        log_sum_exp: float64 [tokens], over the whole vocabulary.
        greedy: int32 [32], the most likely continuation; end tokens do not stop it.
        greedy_text: the same as text, special tokens shown.
    """

    name: str
    text: str
    ids: Int32Array
    last_logits: Float32Array
    top_ids: NDArray[np.uint16]
    top_logits: Float32Array
    log_sum_exp: NDArray[np.float64]
    greedy: Int32Array
    greedy_text: str


def smollm2_prompts() -> list[PromptCase]:
    """Eight prompts of different kinds, from 1 to 200 tokens."""
    arrays = _arrays("smollm2")
    keys = ("ids", "last_logits", "top_ids", "top_logits", "log_sum_exp", "greedy")
    return [
        PromptCase(
            name=prompt["name"],
            text=prompt["text"],
            greedy_text=prompt["greedy_text"],
            **{key: arrays[f"{prompt['name']}.{key}"] for key in keys},
        )
        for prompt in _document("smollm2")["prompts"]
    ]


@dataclass(frozen=True, slots=True)
class TokenizerCase:
    """llama.cpp's token ids of one text: special tokens recognised in it (`ids`), or read as plain text."""

    text: str
    ids: tuple[int, ...]
    ids_without_special: tuple[int, ...]


def smollm2_tokenizer_cases() -> list[TokenizerCase]:
    """Texts that tokenisers get wrong."""
    return [
        TokenizerCase(case["text"], tuple(case["ids"]), tuple(case["ids_without_special"]))
        for case in _document("smollm2")["tokenizer"]
    ]


@dataclass(frozen=True, slots=True)
class ConversationCase:
    """A conversation as transformers renders it with the file's template, and llama.cpp's ids of that text."""

    messages: list[dict[str, str]]
    add_generation_prompt: bool
    text: str
    ids: tuple[int, ...]


def smollm2_conversations() -> list[ConversationCase]:
    """Three conversations, each with and without the generation prompt."""
    return [
        ConversationCase(case["messages"], case["add_generation_prompt"], case["text"], tuple(case["ids"]))
        for case in _document("smollm2")["conversations"]
    ]


@dataclass(frozen=True, slots=True)
class BotchanWindow:
    """512 tokens of prose read from an empty context; positions `scored` of the logits are compared.

    Attributes:
        ids: int32 [512].
        scored: the slice 256:511 of positions.
        targets: int32 [255], the tokens that follow the scored positions.
        reference: the float32 model's distribution at the scored positions, 64 tokens and a tail.
        reference_target_log_probs: float32 [255], the float32 model's log-probabilities of `targets`.
        llama_cpp_compact_kl: float32 [255], `compact_kl(reference, llama.cpp's logits)`, llama.cpp at its defaults.
        llama_cpp_target_log_probs: float32 [255].
    """

    ids: Int32Array
    scored: slice
    targets: Int32Array
    reference: CompactDistribution
    reference_target_log_probs: Float32Array
    llama_cpp_compact_kl: Float32Array
    llama_cpp_target_log_probs: Float32Array


def botchan_windows() -> list[BotchanWindow]:
    """Eight consecutive windows from the start of the book."""
    arrays, document = _arrays("botchan"), _document("botchan")
    scored = slice(document["first_scored"], document["last_scored"] + 1)
    windows: list[BotchanWindow] = []
    for window in range(document["windows"]):
        ids = arrays["ids"][window].astype(np.int32)
        compact = (arrays[key][window] for key in ("top_ids", "top_log_probs", "tail_log_probs"))
        windows.append(
            BotchanWindow(
                ids=ids,
                scored=scored,
                targets=ids[scored.start + 1 : scored.stop + 1],
                reference=CompactDistribution(*compact),
                reference_target_log_probs=arrays["reference.target_log_probs"][window],
                llama_cpp_compact_kl=arrays["llama_cpp.compact_kl"][window],
                llama_cpp_target_log_probs=arrays["llama_cpp.target_log_probs"][window],
            )
        )
    return windows


@dataclass(frozen=True, slots=True)
class BotchanFigures:
    """Means over the 2040 scored positions: the bars for RLX's default precision.

    Attributes:
        reference_perplexity: of the float32 model.
        llama_cpp_perplexity: of llama.cpp at its defaults on the GGUF file.
        llama_cpp_mean_kl: KL(float32 || llama.cpp) over the whole vocabulary, nats.
        llama_cpp_mean_compact_kl: the same by `compact_kl`; compare RLX's `compact_kl` with this one.
    """

    reference_perplexity: float
    llama_cpp_perplexity: float
    llama_cpp_mean_kl: float
    llama_cpp_mean_compact_kl: float


def botchan_figures() -> BotchanFigures:
    """What was measured, in one place."""
    figures = _document("botchan")["figures"]
    llama = figures["llama_cpp"]
    return BotchanFigures(
        figures["reference"]["perplexity"], llama["perplexity"], llama["mean_kl"], llama["mean_compact_kl"]
    )
