# pyright: basic, reportMissingImports=false
"""Record what tiny random Whispers of transformers answer, its feature extractor, and its rules of timestamps.

In: the configurations below; weights grow from a seed (`seeded.seeded_weight`). Out: two files a case in
answers/speech. Run `python -m tests.references.speech` with the `references` extra installed. Next: `load_speech.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from tests.references.load_speech import sound
from tests.references.recording import ANSWERS, write_case
from tests.references.seeded import seeded_tensor, seeded_weight

KIND = "speech"
TOKENS, GREEDY = 9, 16

BASE: dict[str, Any] = {
    "vocab_size": 120,
    "num_mel_bins": 20,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "max_source_positions": 75,
    "max_target_positions": 48,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": None,
}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "base": (301, BASE),
    "uneven": (
        302,
        BASE
        | {
            "d_model": 48,
            "encoder_layers": 1,
            "decoder_layers": 3,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 3,
            "decoder_ffn_dim": 64,
            "activation_function": "gelu_new",
            "num_mel_bins": 33,
        },
    ),
    "scaled": (303, BASE | {"scale_embedding": True, "activation_function": "relu", "max_source_positions": 40}),
    "untied": (304, BASE | {"tie_word_embeddings": False, "decoder_layers": 1, "activation_function": "silu"}),
}


def answer(name: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays of one case.

    Arrays: `mel` [frames, bins], `states` [frames / 2, hidden], `ids` [tokens], `logits` [tokens, vocab], `greedy`.
    """
    seed, fields = CASES[name]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = WhisperForConditionalGeneration(WhisperConfig(**fields)).eval().float()
        model.generation_config = GenerationConfig()
        state = {key: torch.from_numpy(seeded_weight(key, tuple(t.shape), seed)) for key, t in _weights(model).items()}
        model.load_state_dict(state, strict=False)
        model.tie_weights()
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        model = WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        for key, value in _weights(model).items():
            if key in shapes and not torch.equal(value, torch.from_numpy(seeded_weight(key, tuple(value.shape), seed))):
                raise RuntimeError(f"{name}: {key} is not what its seed gives")
        mel = seeded_tensor("mel", (2 * config["max_source_positions"], config["num_mel_bins"]), seed)
        mel = mel.astype(np.float32)
        uniform = seeded_tensor("ids", (TOKENS,), seed) / np.sqrt(3.0) / 2 + 0.5
        ids = np.clip(1 + uniform * (config["vocab_size"] - 1), 1, config["vocab_size"] - 1).astype(np.int64)
        encoded = model.model.encoder(torch.from_numpy(mel.T[None].copy()))
        logits = _logits(model, encoded, ids)
        sequence = list(ids)
        for _ in range(GREEDY):
            sequence.append(int(_logits(model, encoded, sequence)[-1].argmax()))
    arrays = {
        "mel": mel,
        "states": encoded[0][0].numpy(),
        "ids": ids.astype(np.int32),
        "logits": logits.numpy(),
        "greedy": np.array(sequence[TOKENS:], np.int32),
    }
    return {"name": name, "seed": seed, "config": config, "shapes": shapes}, arrays


def _logits(model: Any, encoded: Any, ids: Any) -> Any:
    return model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([list(ids)])).logits[0]


def _weights(model: Any) -> dict[str, Any]:
    """The parameters; of tied ones the first, which is the one that is saved."""
    return {key: value.data for key, value in model.named_parameters()}


def features(bins: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Log-mel frames of 2.5 s of sound as the feature extractor pads it to 30 s; the first 300 frames are kept."""
    samples = sound("sound", 2.5)
    found = WhisperFeatureExtractor(feature_size=bins)(samples, sampling_rate=16_000, return_tensors="np")
    frames = found.input_features[0].T[:300]
    return {"name": f"features_{bins}", "bins": bins, "seconds": 2.5}, {"frames": frames.astype(np.float32)}


def rules() -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Which tokens the published rules leave after a few beginnings: `allowed` [cases, vocab]."""
    vocab, no_timestamps, end = 120, 59, 50
    config = GenerationConfig(
        eos_token_id=end, bos_token_id=end, no_timestamps_token_id=no_timestamps, max_initial_timestamp_index=50
    )
    written = [
        [],
        [60],
        [60, 7],
        [60, 7, 70],
        [60, 7, 70, 70],
        [60, 7, 70, 70, 9],
        [60, 7, 70, 70, 9, 82],
        [64, 64],
        [60, 7, 70, 71],
    ]
    logits = np.stack([seeded_tensor(f"logits {i}", (vocab,), 306) * 3 for i in range(len(written))]).astype(np.float32)
    allowed = np.zeros(logits.shape, bool)
    for index, tokens in enumerate(written):
        processor = WhisperTimeStampLogitsProcessor(config, begin_index=1)
        row = processor(torch.tensor([[55, *tokens]]), torch.from_numpy(logits[index : index + 1].copy()))[0]
        allowed[index] = torch.isfinite(row).numpy()
    description = {"name": "rules", "end": end, "no_timestamps": no_timestamps, "written": written}
    return description, {"allowed": allowed}


def main(names: list[str]) -> None:
    """Record the named cases, or every case that there is no answer for."""
    makers: dict[str, Any] = {name: (lambda name=name: answer(name)) for name in CASES}
    makers |= {f"features_{bins}": (lambda bins=bins: features(bins)) for bins in (80, 128)}
    makers["rules"] = rules
    recorded = {path.stem for path in (ANSWERS / KIND).glob("*.json")}
    for name in names or [name for name in makers if name not in recorded]:
        description, arrays = makers[name]()
        write_case(KIND, description, arrays, ["torch", "transformers", "safetensors"])


if __name__ == "__main__":
    main(sys.argv[1:])
