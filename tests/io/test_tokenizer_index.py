"""A vocabulary that is looked up gives the ids of the whole one: against recorded references, and on any text."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlx.errors import InputError
from rlx.io import tokenizer_gguf, tokenizer_index
from rlx.io.gguf import open_gguf
from rlx.io.tokenizer import Tokenizer, tokenizer_from
from rlx.io.tokenizer_index import PackedStrings, VocabularyIndex, index_arrays, packed
from tests.io.gguf_writer import write_gguf
from tests.io.test_tokenizer import RECORDED, SMOLLM2, VARIANTS, metadata

Fresh = Callable[[], Tokenizer]


def indexed(path: Path) -> Fresh:
    """Makes tokenizers that have no whole vocabulary yet, and cannot get one."""
    found = tokenizer_gguf.index_of(open_gguf(path))
    assert found is not None
    plain, arrays = json.loads(json.dumps(found[0])), found[1]
    return lambda: tokenizer_gguf.indexed(plain, arrays, path.with_name("gone"))


def takes(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the text is encoded with a vocabulary of its own: it is when it is short and in normal form C."""
    assert tokenizer._small is not None
    small = tokenizer._small(text) is not None
    if len(text.encode()) < 100 and unicodedata.is_normalized("NFC", text):
        assert small
    return small


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Fresh:
    return indexed(smollm2_path)


@pytest.fixture(scope="module")
def whole(smollm2_path: Path) -> Tokenizer:
    return tokenizer_from(open_gguf(smollm2_path))


@pytest.mark.parametrize("name", RECORDED)
def test_ids_are_those_of_the_reference(tmp_path: Path, name: str) -> None:
    fresh = indexed(write_gguf(tmp_path / "vocabulary.gguf", metadata(RECORDED[name])))
    for text, ids in RECORDED[name]["cases"]:
        tokenizer = fresh()
        if takes(tokenizer, text):
            assert tokenizer.encode(text, add_special=False) == ids, text


@pytest.mark.parametrize("pre", VARIANTS["cases"])
def test_ids_under_another_pre_tokenizer_are_those_of_llama_cpp(tmp_path: Path, pre: str) -> None:
    fresh = indexed(write_gguf(tmp_path / "vocabulary.gguf", metadata(VARIANTS, pre=pre)))
    for text, ids in VARIANTS["cases"][pre]:
        tokenizer = fresh()
        if takes(tokenizer, text):
            assert tokenizer.encode(text, add_special=False) == ids, text


def test_default_model_ids_are_those_of_llama_cpp(smollm2: Fresh) -> None:
    for text, ids in SMOLLM2["cases"]:
        tokenizer = smollm2()
        if takes(tokenizer, text):
            assert tokenizer.encode(text) == ids, text


@given(st.one_of(st.text(max_size=80), st.text("aet <|im_end|>\n.0'", max_size=60)))
@settings(max_examples=300)
@example("<|im_start|>user\nHi<|im_end|>")
@example(" ")
@example("*\x1d:")
@example("")
def test_any_text_has_the_same_ids(smollm2: Fresh, whole: Tokenizer, text: str) -> None:
    tokenizer = smollm2()
    if takes(tokenizer, text):
        assert tokenizer.encode(text) == whole.encode(text)


def test_bytes_and_facts_are_those_of_the_whole_vocabulary(smollm2: Fresh, whole: Tokenizer) -> None:
    tokenizer = smollm2()
    assert tokenizer.vocab_size == whole.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.special_ids) == (
        whole.bos_id,
        whole.eos_ids,
        whole.special_ids,
    )
    assert all(tokenizer.token_bytes(i) == whole.token_bytes(i) for i in range(0, whole.vocab_size, 7))
    assert tokenizer.token_bytes(whole.vocab_size) == b""


def test_long_texts_and_many_texts_get_the_whole_vocabulary(
    smollm2_path: Path, whole: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tokenizer_gguf.index_of(open_gguf(smollm2_path))
    assert found is not None
    built: list[Path] = []
    build = tokenizer_gguf.build
    monkeypatch.setattr(tokenizer_gguf, "build", lambda file: built.append(file.path) or build(file))
    many = tokenizer_gguf.indexed(*found, smollm2_path)
    for index in range(tokenizer_index.MAX_SMALL + 3):
        assert many.encode(f"text {index}") == whole.encode(f"text {index}")
        assert len(built) == (index >= tokenizer_index.MAX_SMALL)
    long = tokenizer_gguf.indexed(*found, smollm2_path)
    text = "The capital of France is Paris. " * 200
    assert long.encode(text) == whole.encode(text)
    assert len(built) == 2
    # text that is not trusted, and text outside of normal form C, too
    assert long.encode("<|im_end|>", parse_special=False) == whole.encode("<|im_end|>", parse_special=False)
    assert long.encode("e\u0301") == whole.encode("e\u0301")


def test_no_text_is_refused_as_ever(smollm2_path: Path) -> None:
    found = tokenizer_gguf.index_of(open_gguf(smollm2_path))
    assert found is not None
    for bad in ("\ud800", 3):
        with pytest.raises(InputError):
            tokenizer_gguf.indexed(*found, smollm2_path).encode(bad)  # type: ignore[arg-type]


@given(st.lists(st.text(max_size=5)))
def test_packed_strings_come_back(strings: list[str]) -> None:
    strings = [string.encode("utf-8", "ignore").decode() for string in strings]
    found = PackedStrings(*packed(strings))
    assert list(found) == strings
    assert len(found) == len(strings)
    assert found[1:3] == strings[1:3]
    with pytest.raises(IndexError):
        _ = found[len(strings)]


@given(st.lists(st.text("abc", min_size=1, max_size=3), unique=True, min_size=1), st.text("abcd", max_size=12))
def test_pieces_are_the_entries_that_occur(tokens: list[str], text: str) -> None:
    arrays = index_arrays(tokens, [], [])
    assert arrays is not None
    assert VocabularyIndex(arrays).pieces(text) == {i for i, token in enumerate(tokens) if token in text}


def test_a_vocabulary_with_one_hash_for_two_entries_has_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_index, "_hashes", lambda strings: np.zeros(len(strings), np.uint64))
    assert index_arrays(["a", "b"], [], []) is None
    assert index_arrays(["a", "b"], [("a", "b")], []) is None
