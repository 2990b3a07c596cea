# pyright: basic, reportMissingImports=false
"""Record what tiny random encoders of transformers answer.

In: the configurations below; weights grow from a seed (`seeded.seeded_weight`). Out: two files a case in
answers/encoders. Run `python -m tests.references.encoders` with the `references` extra installed. Next:
`load_models.py`.

The configuration kept is the one `save_pretrained` wrote, and the weight names and shapes are those of the safetensors
file it wrote.
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

from tests.references.recording import ANSWERS, write_case
from tests.references.seeded import seeded_tensor, seeded_weight

KIND = "encoders"
TOKENS = 21

BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
DISTIL: dict[str, Any] = {
    "vocab_size": 97,
    "dim": 48,
    "hidden_dim": 80,
    "n_layers": 2,
    "n_heads": 3,
    "max_position_embeddings": 40,
}
# windows shorter than the text, and a layer of each kind behind the first
MODERN: dict[str, Any] = BASE | {
    "num_hidden_layers": 4,
    "local_attention": 8,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "bert": (201, "BertModel", BASE),
    "bert_tanh_gelu": (
        202,
        "BertModel",
        BASE | {"hidden_act": "gelu_new", "type_vocab_size": 3, "layer_norm_eps": 1e-5},
    ),
    "bert_masked": (203, "BertForMaskedLM", BASE | {"hidden_act": "relu", "num_attention_heads": 6}),
    "bert_classifier": (204, "BertForSequenceClassification", BASE | {"num_labels": 1}),
    "bert_classes": (205, "BertForSequenceClassification", BASE | {"num_labels": 3, "hidden_act": "silu"}),
    "roberta": (206, "RobertaModel", BASE | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "roberta_padding": (207, "RobertaModel", BASE | {"pad_token_id": 4, "type_vocab_size": 1}),
    "roberta_classifier": (208, "RobertaForSequenceClassification", BASE | {"num_labels": 1, "type_vocab_size": 1}),
    "xlm_roberta": (209, "XLMRobertaModel", BASE | {"type_vocab_size": 1, "num_hidden_layers": 3}),
    "xlm_roberta_classifier": (210, "XLMRobertaForSequenceClassification", BASE | {"num_labels": 1}),
    "distilbert": (211, "DistilBertModel", DISTIL),
    "distilbert_sinusoidal": (212, "DistilBertModel", DISTIL | {"sinusoidal_pos_embds": True, "activation": "relu"}),
    "distilbert_classifier": (213, "DistilBertForSequenceClassification", DISTIL | {"num_labels": 2}),
    "mpnet": (214, "MPNetModel", BASE | {"layer_norm_eps": 1e-5}),
    # far enough for all buckets of distances
    "mpnet_long": (215, "MPNetModel", BASE | {"max_position_embeddings": 202, "num_attention_heads": 6}),
    "mpnet_classifier": (216, "MPNetForSequenceClassification", BASE | {"num_labels": 1, "hidden_act": "relu"}),
    "nomic_bert": (217, "NomicBertModel", BASE),
    "nomic_bert_theta": (
        218,
        "NomicBertModel",
        BASE | {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}, "hidden_act": "gelu"},
    ),
    "nomic_bert_classifier": (219, "NomicBertForSequenceClassification", BASE | {"num_labels": 1}),
    "modernbert": (220, "ModernBertModel", MODERN),
    "modernbert_biases": (
        221,
        "ModernBertModel",
        MODERN
        | {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "hidden_activation": "silu"}
        | {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2},
    ),
    "modernbert_masked": (222, "ModernBertForMaskedLM", MODERN | {"local_attention": 2}),
    "modernbert_classifier": (223, "ModernBertForSequenceClassification", MODERN | {"num_labels": 1}),
    "modernbert_mean": (
        224,
        "ModernBertForSequenceClassification",
        MODERN
        | {"num_labels": 3, "classifier_pooling": "mean", "classifier_bias": True, "classifier_activation": "relu"},
    ),
}
LONG = {"mpnet_long": 170}
"""Tokens of a case that needs more."""


def answer(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays of one case.

    Arrays: `ids` [tokens], `types` [tokens], `hidden` [tokens, hidden], and `logits` [labels] of a classifier.
    """
    seed, class_name, fields = CASES[name]
    model_class = getattr(transformers, class_name)
    with tempfile.TemporaryDirectory() as path, torch.no_grad():
        folder = Path(path)
        model_class(model_class.config_class(**fields)).float().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        with safe_open(folder / "model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        # weights by the names in the file, which need not be those in the model
        weights = {key: torch.from_numpy(seeded_weight(key, tuple(shape), seed)) for key, shape in shapes.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        model, notes = model_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if notes["missing_keys"] or notes["unexpected_keys"]:
            raise RuntimeError(f"{name}: not every tensor is read: {notes}")
        model.eval()
        count = LONG.get(name, TOKENS)
        uniform = seeded_tensor("ids", (count,), seed) / np.sqrt(3.0) / 2 + 0.5
        # ids from 5 on, so that none is a padding token, which RoBERTa counts positions by
        ids = np.clip(5 + uniform * (config["vocab_size"] - 5), 5, config["vocab_size"] - 1).astype(np.int64)
        types = (np.arange(count) * config.get("type_vocab_size", 1) // count).astype(np.int64)
        inputs = {"input_ids": torch.from_numpy(ids)[None]}
        if "type_vocab_size" in config:
            inputs["token_type_ids"] = torch.from_numpy(types)[None]
        # the last of `hidden_states` comes before ModernBERT's last norm
        hidden = getattr(model, model.base_model_prefix, model)(**inputs).last_hidden_state
        result = model(**inputs)
    arrays = {
        "ids": ids.astype(np.int32),
        "types": types.astype(np.int32),
        "hidden": hidden[0].numpy(),
    }
    if "Classification" in class_name:
        arrays["logits"] = result.logits[0].numpy()
    return {"name": name, "seed": seed, "config": config, "shapes": shapes}, arrays


def main(names: list[str]) -> None:
    """Record the named cases, or every case that there is no answer for."""
    recorded = {path.stem for path in (ANSWERS / KIND).glob("*.json")}
    for name in names or [name for name in CASES if name not in recorded]:
        description, arrays = answer(name)
        write_case(KIND, description, arrays, ["torch", "transformers", "safetensors"])


if __name__ == "__main__":
    main(sys.argv[1:])
