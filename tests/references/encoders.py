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
}


def answer(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays of one case.

    Arrays: `ids` [tokens], `types` [tokens], `hidden` [tokens, hidden], and `logits` [labels] of a classifier.
    """
    seed, class_name, fields = CASES[name]
    model_class = getattr(transformers, class_name)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = model_class(model_class.config_class(**fields)).eval().float()
        state = {key: torch.from_numpy(seeded_weight(key, tuple(t.shape), seed)) for key, t in _weights(model).items()}
        model.load_state_dict(state, strict=False)
        model.tie_weights()
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        for key, value in _weights(model).items():
            if key in shapes and not torch.equal(value, torch.from_numpy(seeded_weight(key, tuple(value.shape), seed))):
                raise RuntimeError(f"{name}: {key} is not what its seed gives")
        uniform = seeded_tensor("ids", (TOKENS,), seed) / np.sqrt(3.0) / 2 + 0.5
        # ids from 5 on, so that none is a padding token, which RoBERTa counts positions by
        ids = np.clip(5 + uniform * (config["vocab_size"] - 5), 5, config["vocab_size"] - 1).astype(np.int64)
        types = (np.arange(TOKENS) * config.get("type_vocab_size", 1) // TOKENS).astype(np.int64)
        inputs = {"input_ids": torch.from_numpy(ids)[None]}
        if "type_vocab_size" in config:
            inputs["token_type_ids"] = torch.from_numpy(types)[None]
        result = model(**inputs, output_hidden_states=True)
    arrays = {
        "ids": ids.astype(np.int32),
        "types": types.astype(np.int32),
        "hidden": result.hidden_states[-1][0].numpy(),
    }
    if "Classification" in class_name:
        arrays["logits"] = result.logits[0].numpy()
    return {"name": name, "seed": seed, "config": config, "shapes": shapes}, arrays


def _weights(model: Any) -> dict[str, Any]:
    """The parameters; of tied ones the first, which is the one that is saved."""
    return {key: value.data for key, value in model.named_parameters()}


def main(names: list[str]) -> None:
    """Record the named cases, or every case that there is no answer for."""
    recorded = {path.stem for path in (ANSWERS / KIND).glob("*.json")}
    for name in names or [name for name in CASES if name not in recorded]:
        description, arrays = answer(name)
        write_case(KIND, description, arrays, ["torch", "transformers", "safetensors"])


if __name__ == "__main__":
    main(sys.argv[1:])
