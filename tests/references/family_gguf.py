# pyright: basic, reportMissingImports=false
"""Record what llama.cpp's converter makes of the tiny models of `family_cases.py` and `encoders.py`.

In: the path of llama.cpp's source (its `conversion` package and `gguf-py`). Out: metadata and a
hash of each tensor, in answers/family_gguf and answers/encoder_gguf. Run it as
`python -m tests.references.family_gguf PATH` with the `references` extra installed. The tests build the same tensors
from the seeds, and the hashes say that they are llama.cpp's. Next: `load_models.py`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.references.load_models import EncoderCase, FamilyCase, encoder_cases, family_cases
from tests.references.recording import ANSWERS, write_case

KINDS = {FamilyCase: "family_gguf", EncoderCase: "encoder_gguf"}
SKIPPED_KEYS = ("general.", "tokenizer.", "GGUF.")


def convert(case: FamilyCase | EncoderCase) -> dict[str, Any]:
    """The metadata of the architecture and the tensors of one case; the converter has to be importable."""
    import gguf
    from conversion import get_model_class
    from conversion.base import ModelBase

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        (folder / "config.json").write_text(json.dumps(case.config))
        vocab_size = case.config.get("text_config", case.config)["vocab_size"]
        vocabulary = {f"token{index}": index for index in range(vocab_size)}
        # some converters cut the embedding to it, some ask for its type
        tokenizer = {"model": {"type": "WordPiece", "vocab": vocabulary}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        save_file(case.weights(), folder / "model.safetensors", metadata={"format": "pt"})
        architecture = case.config["architectures"][0]
        model_class = get_model_class(architecture)
        for owner in (model_class, getattr(model_class, "Ministral3Model", model_class)):
            owner.set_vocab = lambda self: None  # there is no tokenizer
        model_class.no_mtp = True  # nor are there layers for speculative decoding
        out = folder / "model.gguf"
        hparams = {**ModelBase.load_hparams(folder, False), **_old_names(case.config)}
        model_class(folder, gguf.LlamaFileType.ALL_F32, out, hparams=hparams).write()
        reader = gguf.GGUFReader(out)
        metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith(SKIPPED_KEYS)}
        metadata["general.architecture"] = reader.fields["general.architecture"].contents()
        tensors = {
            tensor.name: {
                "shape": [int(size) for size in reversed(tensor.shape)],
                "sha256": hashlib.sha256(np.ascontiguousarray(tensor.data).tobytes()).hexdigest(),
            }
            for tensor in reader.tensors
        }
    return {"name": case.name, "metadata": metadata, "tensors": tensors}


def _old_names(config: dict[str, Any]) -> dict[str, Any]:
    """Fields that the converter reads and that transformers 5 writes under another name, or not at all."""
    if config["model_type"] == "gpt2":
        return {"n_ctx": config["n_positions"]}
    if config["model_type"] == "gpt_neox":
        return {"rotary_pct": config["rope_parameters"]["partial_rotary_factor"]}
    if config["model_type"] == "nomic_bert":
        return {"rotary_emb_base": config["rope_parameters"]["rope_theta"], **PUBLISHED_NOMIC}
    return {}


# What the published NomicBERT says where transformers 5 says nothing, or something else.
PUBLISHED_NOMIC = {
    "n_positions": 8192,
    "max_trained_positions": 2048,
    "activation_function": "swiglu",
    "causal": False,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "prenorm": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}


def main(source: Path, names: list[str]) -> None:
    """Record the named cases, or every case that there is no layout for; those the converter does not take are told."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    recorded = {path.stem for kind in KINDS.values() for path in (ANSWERS / kind).glob("*.json")}
    cases = {case.name: case for case in (*family_cases(), *encoder_cases())}
    for name in names or [name for name in cases if name not in recorded]:
        try:
            write_case(KINDS[type(cases[name])], convert(cases[name]), {}, [])
        except Exception as error:  # a configuration that the converter does not take
            print(f"{name}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
