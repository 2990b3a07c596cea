"""Tokenizers of encoders from GGUF metadata: ids against recorded references, pairs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlx.errors import InputError, TokenizerError
from rlx.io.gguf import open_gguf
from rlx.io.tokenizer import Tokenizer, tokenizer_from_gguf
from tests.io.gguf_writer import write_gguf

RECORDED = json.loads(Path(__file__).with_name("data").joinpath("encoders.json").read_text(encoding="utf-8"))


def built(folder: Path, name: str, **changes: Any) -> Tokenizer:
    entry = {key: value for key, value in RECORDED[name].items() if key != "cases"} | changes
    metadata = {f"tokenizer.ggml.{key}": value for key, value in entry.items() if value is not None}
    return tokenizer_from_gguf(open_gguf(write_gguf(folder / "vocabulary.gguf", metadata)))


@pytest.mark.parametrize("name", RECORDED)
def test_ids_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    tokenizer = built(tmp_path, name)
    first, last = {"bert-bge": (2, 3), "xlm-roberta": (0, 2)}[name]
    for text, ids in RECORDED[name]["cases"]:
        assert tokenizer.encode(text, add_special=False) == ids, text
        assert tokenizer.encode(text) == [first, *ids, last], text


def test_two_texts_are_put_together_as_the_models_were_trained(tmp_path: Path) -> None:
    bert, xlm = (built(tmp_path, name) for name in ("bert-bge", "xlm-roberta"))
    (pair,) = bert.encode_batch([("Hello", "3")], 64)
    one, two = (bert.encode(text, add_special=False) for text in ("Hello", "3"))
    assert pair.ids == [2, *one, 3, *two, 3]
    assert pair.types == [0] * (len(one) + 2) + [1] * (len(two) + 1)
    (pair,) = xlm.encode_batch([("Hello", "3")], 64)
    one, two = (xlm.encode(text, add_special=False) for text in ("Hello", "3"))
    assert pair.ids == [0, *one, 2, 2, *two, 2]
    assert set(pair.types) == {0}


def test_ids_become_words_again(tmp_path: Path) -> None:
    for name in RECORDED:
        tokenizer = built(tmp_path, name)
        assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"


def test_a_file_may_keep_case_and_accents(tmp_path: Path) -> None:
    entry = RECORDED["bert-bge"]
    tokens = [*entry["tokens"], "\u2581H\u00e9llo"]
    types = [*entry["token_type"], 1]
    changes = {"tokens": tokens, "token_type": types, "normalizer.lowercase": False}
    cased = built(tmp_path, "bert-bge", **changes)
    assert cased.encode("H\u00e9llo", add_special=False) == [len(tokens) - 1]
    assert built(tmp_path, "bert-bge").encode("H\u00e9llo") == built(tmp_path, "bert-bge").encode("hello")


TOKENS = RECORDED["bert-bge"]["tokens"]


@pytest.mark.parametrize(
    ("name", "changes", "facts"),
    [
        ("bert-bge", {"tokens": [*TOKENS[:-1], TOKENS[-2]]}, ["tokens", "twice"]),
        ("bert-bge", {"unknown_token_id": 400}, ["unknown_token_id", "400"]),
        ("bert-bge", {"cls_token_id": None, "tokens": TOKENS[:90], "token_type": [1] * 90}, ["special token"]),
        ("bert-bge", {"normalizer.lowercase": 1}, ["normalizer.lowercase"]),
        ("xlm-roberta", {"scores": None}, ["scores"]),
        ("xlm-roberta", {"add_space_prefix": False}, ["add_space_prefix"]),
        ("xlm-roberta", {"precompiled_charsmap": [1, 2, 3]}, ["tokens", "cannot be used"]),
    ],
)
def test_broken_descriptions_are_refused(name: str, changes: Any, facts: list[str], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as error:
        built(tmp_path, name, **changes)
    for fact in facts:
        assert fact in str(error.value)


def test_a_text_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no room"):
        built(tmp_path, "bert-bge").encode_batch(["Hello"], 2)
