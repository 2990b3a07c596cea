# pyright: basic, reportMissingImports=false
"""Record what tiny random models of many families answer in transformers.

In: the configurations below; weights grow from a seed and their names in the safetensors file (`seeded.seeded_weight`).
Out: two files a case in answers/families, or in answers/multimodal for the text of a model of images. Run
`python -m tests.references.families` with the `references` extra installed; names after it record those cases anew.
Next: `load_models.py`.

The configuration kept is the one `save_pretrained` wrote, without what transformers writes into every file.
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
from safetensors.numpy import save_file

from tests.references.family_cases import CASES, MULTIMODAL_CASES, FamilySource
from tests.references.recording import ANSWERS, write_case
from tests.references.seeded import seeded_tensor, seeded_weight
from tests.references.tiny_llama import greedy

KINDS = {"families": CASES, "multimodal": MULTIMODAL_CASES}
PROMPT_TOKENS = 24
GREEDY_TOKENS = 32
SMALLEST_MARGIN = 1e-3  # between the two best logits of a greedy step: ten times the bar on a logit of size one
SEEDS = range(40)


def _saved(source: FamilySource, folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The configuration and the tensors' shapes as `save_pretrained` writes them."""
    config_class, model_class = getattr(transformers, source.config), getattr(transformers, source.model)
    model = model_class(config_class(**source.fields)).float()
    model.save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return json.loads((folder / "config.json").read_text()), shapes


def answer(name: str, source: FamilySource) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays (`ids` [tokens], `logits` [tokens, vocab], `greedy`) of one case.

    Raises:
        RuntimeError: no seed gives greedy steps that are clear enough for a test.
    """
    with tempfile.TemporaryDirectory() as path, torch.no_grad():
        folder = Path(path)
        config, shapes = _saved(source, folder)
        for seed in SEEDS:
            weights = {key: seeded_weight(key, shape, seed) for key, shape in shapes.items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            model = getattr(transformers, source.model).from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
            model.eval()
            vocab_size = config.get("text_config", config)["vocab_size"]
            uniform = seeded_tensor("ids", (PROMPT_TOKENS,), seed) / np.sqrt(3.0) / 2 + 0.5
            ids = np.clip(uniform * vocab_size, 0, vocab_size - 1).astype(np.int64)
            logits = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
            continuation, margin = greedy(model, ids, GREEDY_TOKENS)
            if margin >= SMALLEST_MARGIN * max(1.0, float(np.abs(logits).max())):
                break
        else:
            raise RuntimeError(f"{name}: no seed gives clear greedy steps")
    config.pop("transformers_version")
    description = {
        "name": name,
        "seed": seed,
        "config": config,
        "shapes": {key: list(shape) for key, shape in shapes.items()},
        "smallest_greedy_margin": margin,
    }
    arrays = {"ids": ids.astype(np.int32), "logits": logits, "greedy": np.array(continuation, np.int32)}
    return description, arrays


def main(names: list[str]) -> None:
    """Record the named cases, or every case that there is no answer for, and drop those of no case."""
    for kind, cases in KINDS.items():
        recorded = {path.stem for path in (ANSWERS / kind).glob("*.json")}
        for name in [name for name in cases if (name in names if names else name not in recorded)]:
            description, arrays = answer(name, cases[name])
            write_case(kind, description, arrays, ["torch", "transformers", "safetensors"])
            print(name, description["seed"], description["smallest_greedy_margin"])
        for gone in recorded - cases.keys():
            for path in (ANSWERS / kind).glob(f"{gone}.*"):
                path.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
