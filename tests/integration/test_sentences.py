"""Folders of sentence-transformers: vectors and scores against its own, prompts, batches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import rlx
from rlx.cli.main import main
from rlx.runtime.encoder import Encoder
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
