# pyright: basic, reportMissingImports=false
"""Record what sentence-transformers makes of tiny random models with small real tokenizers: vectors, scores of pairs.

In: the models below, each saved by sentence-transformers itself; weights grow from a seed (`seeded.seeded_weight`).
Out: two files a case in answers/sentences: every small file of the folder, the weights' shapes, and the answers. Run
`python -m tests.references.sentences` with the `references` extra and sentence-transformers installed. Next:
`load_sentences.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.references.recording import ANSWERS, write_case
from tests.references.seeded import seeded_weight

KIND = "sentences"
VOCABULARY = 300
TEXTS = (
    "The tests compare RLX with torch.",
    "answers",
    "Weights and inputs are not stored. They grow from a seed and a tensor's name, so that the recording script and "
    "the test build the same ones.",
    "  spaces  before, within\tand behind ",
    "Zürich, naïve façade — 東京 is 3.14 km away",
    "Position 7 of 24: who answered?",
    "",
)
QUERY = "Who made the answers?"
PROSE = " ".join((*TEXTS, QUERY)) + (
    " Each file names the versions that made it: attention is put together from functions of transformers, and the "
    "other answers are those of whole models. Prompts and seeds are chosen so that each step is clear: the best one "
    "leads by at least twice the tolerance that a comparison allows. Otherwise a right implementation could fail, "
    "and that is no reason for a wider tolerance. On the machine they came from, every script gives the same bytes."
)
"""What the tokenizers are trained on."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 3}


def wordpiece(**options: Any) -> Any:
    """BERT's tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator([PROSE], trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=names))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return _fast(tokenizer, pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]", **options)


def byte_level(end: str = "<|endoftext|>") -> Any:
    """Qwen's tokenizer, with the end of a text behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"\p{N}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[end], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([PROSE], trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, 0)]),
        ]
    )
    return _fast(tokenizer, pad=end, eos=end)


def sentencepiece() -> Any:
    """Gemma's tokenizer: BPE over whole texts with byte fallback, a token before and one behind."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator([PROSE], trainers.BpeTrainer(vocab_size=VOCABULARY + 80, special_tokens=names))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    return _fast(tokenizer, pad="<pad>", eos="<eos>", bos="<bos>", unk="<unk>")


def typed_wordpiece() -> Any:
    """BERT's tokenizer where the model is told which text a token is from."""
    return wordpiece(model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def _fast(tokenizer: Any, **names: Any) -> Any:
    texts = {name: text for name, text in names.items() if isinstance(text, str)}
    special = {f"{name}_token": AddedToken(text, special=True, normalized=False) for name, text in texts.items()}
    others = {name: value for name, value in names.items() if name not in texts}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **others)


def _embeds(*modes: str, steps: Any = tuple, prompts: dict[str, str] | None = None, limit: int = 24) -> dict[str, Any]:
    return {"modes": modes, "steps": steps, "prompts": prompts or {}, "limit": limit}


def _gemma_steps() -> list[Any]:
    identity = torch.nn.Identity()
    return [Dense(48, 96, bias=False, activation_function=identity), Dense(96, 32, False, identity), Normalize()]


CASES: dict[str, tuple[int, str, Any, dict[str, Any], dict[str, Any]]] = {
    "bert_cls_max": (301, "BertModel", wordpiece, SIZES, _embeds("cls", "max", prompts={"query": "question: "})),
    "mpnet_mean": (302, "MPNetModel", wordpiece, SIZES, _embeds("mean", steps=lambda: [Normalize()])),
    "nomic_bert_weighted": (303, "NomicBertModel", wordpiece, SIZES, _embeds("weightedmean", limit=50)),
    "modernbert_dense": (
        304,
        "ModernBertModel",
        wordpiece,
        SIZES | {"local_attention": 6, "num_hidden_layers": 3, "pad_token_id": 0},
        _embeds("mean_sqrt_len_tokens", steps=lambda: [Dense(48, 20), Normalize()]),
    ),
    "qwen3_embedding": (
        305,
        "Qwen3Model",
        byte_level,
        DECODER,
        _embeds(
            "lasttoken", steps=lambda: [Normalize()], prompts={"query": "Instruct: Find answers.\nQuery:"}, limit=60
        ),
    ),
    "embeddinggemma": (
        306,
        "Gemma3TextModel",
        sentencepiece,
        DECODER
        | {"vocab_size": VOCABULARY + 80, "use_bidirectional_attention": True, "sliding_window": 8}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "query_pre_attn_scalar": 16},
        _embeds(
            "mean",
            steps=_gemma_steps,
            prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
            limit=60,
        ),
    ),
    "cross_bert": (307, "BertForSequenceClassification", typed_wordpiece, SIZES | {"num_labels": 1}, {}),
    "cross_bert_identity": (
        308,
        "BertForSequenceClassification",
        wordpiece,
        SIZES | {"num_labels": 1},
        {"activation_fn": torch.nn.Identity(), "prompts": {"web": "web: "}, "default_prompt_name": "web"},
    ),
    "cross_modernbert": (
        309,
        "ModernBertForSequenceClassification",
        wordpiece,
        SIZES | {"num_labels": 1, "local_attention": 6, "pad_token_id": 0, "classifier_pooling": "mean"},
        {},
    ),
}


def answer(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays of one case."""
    seed, class_name, tokenizer, fields, options = CASES[name]
    model_class = getattr(transformers, class_name)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, torch.no_grad():
        model_class(model_class.config_class(**fields)).float().save_pretrained(first)
        tokenizer().save_pretrained(first)
        folder = Path(second)
        if "modes" in options:
            transformer = Transformer(first, processor_kwargs={"model_max_length": options["limit"]})
            pooling = Pooling(48, options["modes"])
            made: Any = SentenceTransformer(
                modules=[transformer, pooling, *options["steps"]()], prompts=options["prompts"], device="cpu"
            )
        else:
            made = CrossEncoder(first, max_length=24, device="cpu", **options)
        made.save_pretrained(str(folder), create_model_card=False)
        if class_name == "Qwen3Model":  # as the published folders have it
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
        shapes = {str(path.relative_to(folder)): _seed(path, folder, seed) for path in folder.rglob("*.safetensors")}
        files = {str(path.relative_to(folder)): _compact(path) for path in sorted(folder.rglob("*.json"))}
        arrays = _scores(folder) if "modes" not in options else _vectors(folder, options["prompts"])
    description = {"name": name, "seed": seed, "files": files, "shapes": shapes, "texts": list(TEXTS), "query": QUERY}
    return description, arrays


def _seed(path: Path, folder: Path, seed: int) -> dict[str, list[int]]:
    """Put seeded weights into a file; gives their shapes."""
    before = str(path.parent.relative_to(folder))
    with safe_open(path, "pt") as file:
        shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    names = {key: key if before == "." else f"{before}.{key}" for key in shapes}
    weights = {key: torch.from_numpy(seeded_weight(names[key], tuple(shapes[key]), seed)) for key in shapes}
    save_file(weights, path, metadata={"format": "pt"})
    return shapes


def _compact(path: Path) -> str:
    return json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))


def _vectors(folder: Path, prompts: dict[str, str]) -> dict[str, NDArray[Any]]:
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    vectors = {"": model.encode(list(TEXTS), batch_size=1)}
    vectors |= {name: model.encode(list(TEXTS), batch_size=1, prompt_name=name) for name in prompts}
    return {f"vectors_{name}": value for name, value in vectors.items()}


def _scores(folder: Path) -> dict[str, NDArray[Any]]:
    model = CrossEncoder(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager"})
    ranking = model.rank(QUERY, list(TEXTS[:-1]), batch_size=1)
    return {
        "order": np.array([entry["corpus_id"] for entry in ranking], np.int32),
        "scores": np.array([entry["score"] for entry in ranking], np.float32),
    }


def main(names: list[str]) -> None:
    """Record the named cases, or every case that there is no answer for."""
    recorded = {path.stem for path in (ANSWERS / KIND).glob("*.json")}
    for name in names or [name for name in CASES if name not in recorded]:
        description, arrays = answer(name)
        write_case(KIND, description, arrays, ["torch", "transformers", "sentence-transformers", "tokenizers"])


if __name__ == "__main__":
    main(sys.argv[1:])
