# pyright: basic, reportMissingImports=false
"""Record what tiny random models of images, and of texts beside them, of transformers answer.

In: the configurations below; weights grow from a seed (`seeded.seeded_weight`). Out: two files a case in
answers/images. Run `python -m tests.references.images` with the `references` extra installed. Next: `load_images.py`.

The configuration kept is the one `save_pretrained` wrote, and the weight names and shapes are those of the safetensors
file it wrote. Pixels are random, since a model does not care what a picture shows.
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

from tests.references.load_images import pixels_of
from tests.references.recording import ANSWERS, write_case
from tests.references.seeded import seeded_tensor, seeded_weight

KIND = "images"

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 6,
}
MLP: dict[str, Any] = {"intermediate_size": 80}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 56,
    "vocab_size": 61,
    "max_position_embeddings": 14,
    "eos_token_id": 59,
    "bos_token_id": 58,
}
ODD: dict[str, Any] = {"num_attention_heads": 3, "image_size": 20, "patch_size": 4, "layer_norm_eps": 1e-3}

# Name to seed, class, fields, and the sizes of images: the learned one first, then others.
CASES: dict[str, tuple[int, str, dict[str, Any], list[list[int]]]] = {
    "vit": (301, "ViTModel", SMALL | MLP, [[24, 24], [36, 30], [18, 24]]),
    "vit_odd": (
        302,
        "ViTModel",
        SMALL
        | MLP
        | ODD
        | {"qkv_bias": False, "hidden_act": "relu", "num_channels": 1, "pooler_act": "silu", "pooler_output_size": 20},
        [[20, 20]],
    ),
    "vit_classifier": (303, "ViTForImageClassification", SMALL | MLP | {"num_labels": 5}, [[24, 24]]),
    "dinov2": (304, "Dinov2Model", SMALL, [[24, 24], [36, 30], [18, 12]]),
    "dinov2_gated": (305, "Dinov2Model", SMALL | ODD | {"use_swiglu_ffn": True, "mlp_ratio": 3}, [[20, 20], [12, 28]]),
    "dinov2_classifier": (
        306,
        "Dinov2ForImageClassification",
        SMALL | {"num_labels": 3, "qkv_bias": False},
        [[24, 24]],
    ),
    "registers": (307, "Dinov2WithRegistersModel", SMALL, [[24, 24], [42, 30], [18, 12]]),
    "registers_classifier": (
        308,
        "Dinov2WithRegistersForImageClassification",
        SMALL | ODD | {"num_register_tokens": 2, "num_labels": 4},
        [[20, 20]],
    ),
    "clip": (
        309,
        "CLIPModel",
        {"text_config": TEXT, "vision_config": SMALL | MLP, "projection_dim": 20},
        [[24, 24], [36, 30]],
    ),
    "clip_legacy": (
        310,
        "CLIPModel",
        {
            "text_config": TEXT | {"eos_token_id": 2, "hidden_act": "gelu"},
            "vision_config": SMALL | MLP | ODD | {"hidden_act": "gelu_new"},
            "projection_dim": 24,
            "logit_scale_init_value": 1.5,
        },
        [[20, 20]],
    ),
    "clip_vision": (311, "CLIPVisionModel", SMALL | MLP, [[24, 24]]),
    "clip_vision_projection": (312, "CLIPVisionModelWithProjection", SMALL | MLP | {"projection_dim": 20}, [[24, 24]]),
    "clip_text": (313, "CLIPTextModel", TEXT | {"num_hidden_layers": 3}, []),
    "clip_text_projection": (314, "CLIPTextModelWithProjection", TEXT | {"projection_dim": 24}, []),
    "clip_classifier": (
        315,
        "CLIPForImageClassification",
        {"text_config": TEXT, "vision_config": SMALL | MLP, "num_labels": 3},
        [[24, 24]],
    ),
    "siglip": (
        316,
        "SiglipModel",
        {"text_config": TEXT | {"hidden_size": 48, "pad_token_id": 3}, "vision_config": SMALL | MLP},
        [[24, 24], [36, 30]],
    ),
    "siglip_odd": (
        317,
        "SiglipModel",
        {
            "text_config": TEXT | {"projection_size": 48, "hidden_act": "relu"},
            "vision_config": SMALL | MLP | ODD | {"hidden_act": "gelu"},
        },
        [[20, 20]],
    ),
    "siglip_vision": (318, "SiglipVisionModel", SMALL | MLP, [[24, 24], [12, 18]]),
    "siglip_text": (319, "SiglipTextModel", TEXT | {"projection_size": 40}, []),
    "siglip_classifier": (
        320,
        "SiglipForImageClassification",
        {"text_config": TEXT, "vision_config": SMALL | MLP, "num_labels": 3},
        [[24, 24]],
    ),
}


def answer(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays of one case; `load_images.ImageCase` says what they are."""
    seed, class_name, fields, sizes = CASES[name]
    model_class = getattr(transformers, class_name)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = model_class(model_class.config_class(**fields)).eval().float()
        made.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        weights = {key: torch.from_numpy(seeded_weight(key, tuple(shape), seed)) for key, shape in shapes.items()}
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        arrays: dict[str, NDArray[Any]] = {}
        for index, size in enumerate(sizes):
            channels = config.get("vision_config", config).get("num_channels", 3)
            _image(model, torch.from_numpy(pixels_of(size, channels, seed)), index, arrays)
        if "text_config" in config and "Classification" not in class_name:
            _pair(model, config["text_config"], arrays, torch.from_numpy(pixels_of(sizes[0], 3, seed)), seed)
        elif "Text" in class_name:
            arrays["ids"] = _ids(config, seed)
            result = model(input_ids=torch.from_numpy(arrays["ids"].astype(np.int64)))
            arrays["text"] = _first(result, "text_embeds", "pooler_output").numpy()
    return {"name": name, "seed": seed, "config": config, "shapes": shapes, "sizes": sizes}, arrays


def _first(result: Any, *names: str) -> Any:
    """The first of these outputs that a model gives."""
    return next(value for name in names if (value := getattr(result, name, None)) is not None)


def _image(model: Any, pixels: Any, index: int, arrays: dict[str, NDArray[Any]]) -> None:
    kind = type(model).__name__
    tower = getattr(model, "vision_model", model)
    options = {} if "Dinov2" in kind else {"interpolate_pos_encoding": True}
    if "Classification" in kind:
        result = model(pixels, **({} if kind.startswith("CLIP") else options))
        arrays[f"image.{index}"] = result.logits.numpy()
        return
    hidden = tower(pixels, **options)
    arrays[f"hidden.{index}"] = hidden.last_hidden_state.numpy()
    if hasattr(model, "get_image_features"):
        result = model.get_image_features(pixel_values=pixels, **options).pooler_output
        arrays[f"image.{index}"] = torch.nn.functional.normalize(result, dim=-1).numpy()
    else:
        arrays[f"image.{index}"] = _first(model(pixels, **options), "image_embeds", "pooler_output").numpy()


def _ids(config: dict[str, Any], seed: int) -> NDArray[np.int32]:
    """Three texts of the full length; CLIP's end early with the end token, SigLIP's with padding."""
    length, vocab = config["max_position_embeddings"], config["vocab_size"]
    uniform = seeded_tensor("ids", (3, length), seed) / np.sqrt(3.0) / 2 + 0.5
    ids = np.clip(5 + uniform * (vocab - 10), 5, vocab - 5).astype(np.int32)
    clip = config["model_type"].startswith("clip")
    # the end token of the first CLIPs is the largest, whatever their configuration says
    end = vocab - 1 if config["eos_token_id"] == 2 else config["eos_token_id"]
    for row, stop in enumerate((5, length - 1, 9)):
        ids[row, stop:] = end if clip else config["pad_token_id"]
    return ids


def _pair(model: Any, text: dict[str, Any], arrays: dict[str, NDArray[Any]], pixels: Any, seed: int) -> None:
    arrays["ids"] = _ids(text, seed)
    result = model(input_ids=torch.from_numpy(arrays["ids"].astype(np.int64)), pixel_values=pixels)
    arrays["text"] = result.text_embeds.numpy()
    arrays["similarity"] = result.logits_per_image.numpy()


def main(names: list[str]) -> None:
    """Record the named cases, or every case that there is no answer for."""
    recorded = {path.stem for path in (ANSWERS / KIND).glob("*.json")}
    for name in names or [name for name in CASES if name not in recorded]:
        description, arrays = answer(name)
        write_case(KIND, description, arrays, ["torch", "transformers", "safetensors"])


if __name__ == "__main__":
    main(sys.argv[1:])
