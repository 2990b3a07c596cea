"""Folders of sentence-transformers: vectors and scores against its own, prompts, batches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rlx
from rlx.cli.main import main
from rlx.io.safetensors_folder import open_folder
from rlx.models.bert import BERT
from rlx.models.encoder_names import BERT_NAMES, GGUF_NAMES
from rlx.runtime.encoder import Encoder
from tests.models.checkpoints import write_gguf
from tests.references.load_sentences import SentenceCase, sentence_cases

CASES = {case.name: case for case in sentence_cases()}
# the bar; elements of the vectors are of the size of 0.1 to 1
TOLERANCE = 1e-5


def encoder(case: SentenceCase, folder: Path) -> Encoder:
    model = rlx.load(case.write(folder), precision="exact", threads=2)
    assert isinstance(model, Encoder)
    return model


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.vectors])
def test_vectors_are_those_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with encoder(case, tmp_path) as model:
        for prompt, expected in case.vectors.items():
            found = model.embed(case.texts, prompt_name=prompt or None)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())
        alone = np.concatenate([model.embed([text], prompt_name=prompt or None) for text in case.texts])
        assert np.array_equal(found, alone), "a vector depends on the batch"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.order is not None])
def test_rankings_are_those_of_a_cross_encoder(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    assert case.order is not None
    assert case.scores is not None
    with encoder(case, tmp_path) as model:
        ranking = model.rerank(case.query, case.texts[:-1])
        assert [entry.index for entry in ranking] == case.order.tolist()
        assert np.abs(np.array([entry.score for entry in ranking]) - case.scores).max() <= TOLERANCE


def test_a_file_of_documents_is_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["cross_bert"]
    assert case.order is not None
    documents = tmp_path / "documents.txt"
    texts = [text.replace("\t", " ") for text in case.texts[:-1]]
    documents.write_text("\n".join(texts), encoding="utf-8")
    folder = tmp_path / "model"
    folder.mkdir()
    words = [
        "rerank",
        case.query,
        str(documents),
        "--model",
        str(case.write(folder)),
        "--precision",
        "exact",
        "--quiet",
    ]
    assert main([*words, "--top", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(int(index), text) for _, index, text in lines] == [(i, texts[i]) for i in case.order[:2].tolist()]
    assert main([*words, "--json"]) == 0
    ranking = json.loads(capsys.readouterr().out)["ranking"]
    assert [row["index"] for row in ranking] == case.order.tolist()
    assert main([*words, "--top", "0"]) == 2
    assert "at least one document" in capsys.readouterr().err


def test_a_gguf_file_with_its_vocabulary_embeds_as_the_folder(tmp_path: Path) -> None:
    """The layout is that of llama.cpp's converter; `test_encoder_gguf.py` compares it tensor by tensor."""
    case = CASES["bert_cls_max"]
    config = json.loads(case.files["config.json"])
    vocabulary = json.loads(case.files["tokenizer.json"])["model"]["vocab"]
    symbols = sorted(vocabulary, key=vocabulary.__getitem__)
    control = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokens = [text if text in control else text[2:] if text.startswith("##") else "\u2581" + text for text in symbols]
    metadata = {
        "general.architecture": "bert",
        "bert.block_count": config["num_hidden_layers"],
        "bert.context_length": 24,
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": config["layer_norm_eps"],
        "bert.attention.causal": False,
        "bert.pooling_type": 2,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if text in control else 1 for text in symbols],
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    }
    encoder_config, _ = BERT.read_hf(open_folder(case.write(tmp_path)))
    file_names, folder_names = (names.expand(encoder_config) for names in (GGUF_NAMES, BERT_NAMES))
    weights = case.weights("model.safetensors")
    tensors = {file_names[key].name: weights[part.name] for key, part in folder_names.items() if part.name in weights}
    path = write_gguf(tmp_path / "model.gguf", metadata, tensors)
    expected = case.vectors[""][:, : config["hidden_size"]]
    with rlx.load(path, precision="exact", threads=2) as model:
        found = model.embed(case.texts)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(found - expected).max() <= TOLERANCE
