"""Tokenizers: ids against recorded references, and text that survives the way there and back."""

from __future__ import annotations

import contextlib
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlx.errors import InputError, RlxError, TokenizerError
from rlx.io.gguf import open_gguf
from rlx.io.tokenizer import Tokenizer, tokenizer_from, tokenizer_from_folder, tokenizer_from_gguf
from tests.io.gguf_writer import gguf_bytes, write_gguf


def load(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("data").joinpath(name).read_text(encoding="utf-8"))


RECORDED, VARIANTS, SMOLLM2 = load("tokenizers.json"), load("variants.json"), load("smollm2.json")
BYTE_LEVEL = [name for name, entry in RECORDED.items() if entry["model"] == "gpt2"]


def metadata(entry: dict[str, Any], **changes: Any) -> dict[str, object]:
    keys = {key: value for key, value in entry.items() if key != "cases"} | changes
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def built(folder: Path, content: dict[str, object]) -> Tokenizer:
    return tokenizer_from_gguf(open_gguf(write_gguf(folder / "vocabulary.gguf", content)))


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("vocabularies")
    return cache(lambda name: built(folder, metadata(RECORDED[name])))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return tokenizer_from(open_gguf(smollm2_path))


@pytest.mark.parametrize("name", RECORDED)
def test_ids_are_those_of_the_reference(recorded: Any, name: str) -> None:
    tokenizer = recorded(name)
    for text, ids in RECORDED[name]["cases"]:
        assert tokenizer.encode(text, add_special=False) == ids, text


@pytest.mark.parametrize("pre", VARIANTS["cases"])
def test_ids_under_another_pre_tokenizer_are_those_of_llama_cpp(tmp_path: Path, pre: str) -> None:
    tokenizer = built(tmp_path, metadata(VARIANTS, pre=pre))
    for text, ids in VARIANTS["cases"][pre]:
        assert tokenizer.encode(text, add_special=False) == ids, text


@pytest.mark.parametrize("name", RECORDED)
def test_decoding_gives_the_text_back(recorded: Any, name: str) -> None:
    tokenizer = recorded(name)
    for text, ids in RECORDED[name]["cases"]:
        assert tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_decoding_agrees_with_the_library(recorded: Any, name: str) -> None:
    # Not the added tokens (type 4): DeepSeek's are letters such as "÷", which the library reads as symbols of bytes and
    # llama.cpp, like RLX, as text.
    tokenizer = recorded(name)
    symbols = [index for index, kind in enumerate(RECORDED[name]["token_type"]) if kind != 4]
    rng = random.Random(0)
    for _ in range(200):
        ids = [rng.choice(symbols) for _ in range(rng.randrange(12))]
        assert tokenizer.decode(ids) == tokenizer.backend.decode(ids, skip_special_tokens=True)


def test_default_model_ids_are_those_of_llama_cpp(smollm2: Tokenizer) -> None:
    for text, ids in SMOLLM2["cases"]:
        assert smollm2.encode(text) == ids, text


def test_default_model_facts(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.bos_id == 1
    assert smollm2.eos_ids == {0, 2}
    assert 17 not in smollm2.special_ids
    assert 2 in smollm2.special_ids
    assert smollm2.token_bytes(2) == b"<|im_end|>"


@given(st.text())
@example("é🦙\u200d e\u0301")
@example("\ud7ff\ue000\ufffd\uffff")
def test_any_text_comes_back(smollm2: Tokenizer, text: str) -> None:
    ids = smollm2.encode(text, add_special=False, parse_special=False)
    # SmolLM2's vocabulary lacks the symbols of some bytes, and its reference drops these; the others must come back.
    expected = bytes(byte for byte in text.encode() if byte not in MISSING_BYTES)
    assert b"".join(map(smollm2.token_bytes, ids)) == expected


MISSING_BYTES = bytes.fromhex("0406131416 1d f1f2")


@given(ids=st.lists(st.integers(0, 49151), max_size=40), skip=st.booleans())
def test_pieces_of_a_stream_are_the_whole(smollm2: Tokenizer, ids: list[int], skip: bool) -> None:
    stream = smollm2.stream(skip_special=skip)
    pieces = [stream.push(token_id) for token_id in ids] + [stream.flush()]
    assert "".join(pieces) == smollm2.decode(ids, skip_special=skip)
    assert "".join(pieces) == smollm2.backend.decode(ids, skip_special_tokens=skip)


def test_a_stream_holds_back_incomplete_characters(recorded: Any) -> None:
    tokenizer = recorded("gpt-2")
    byte_ids = {tokenizer.token_bytes(index): index for index in range(tokenizer.vocab_size)}
    stream = tokenizer.stream()
    llama = "🦙".encode()
    assert [stream.push(byte_ids[bytes([byte])]) for byte in llama] == ["", "", "", "🦙"]
    assert stream.push(byte_ids[llama[:1]]) == ""
    assert stream.push(byte_ids[b"a"]) == "\ufffda"
    assert stream.push(byte_ids[llama[:1]]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_sentencepiece_bytes_and_leading_space(recorded: Any) -> None:
    tokenizer = recorded("llama-spm")
    ids = tokenizer.encode("Hello 🦙", add_special=False)
    assert tokenizer.decode(ids) == "Hello 🦙"
    assert tokenizer.decode(ids, continuation=True) == " Hello 🦙"
    assert b"".join(map(tokenizer.token_bytes, ids)) == " Hello 🦙".encode()


def test_control_tokens_are_read_or_not(smollm2: Tokenizer) -> None:
    assert smollm2.encode("a<|im_end|>")[-1] == 2
    literal = smollm2.encode("a<|im_end|>", parse_special=False)
    assert 2 not in literal
    assert smollm2.decode(literal) == "a<|im_end|>"
    assert smollm2.encode("a<|im_end|>")[-1] == 2


def test_control_tokens_are_skipped_in_text(smollm2: Tokenizer) -> None:
    ids = smollm2.encode("<|im_start|>user<|im_end|>")
    assert smollm2.decode(ids) == "user"
    assert smollm2.decode(ids, skip_special=False) == "<|im_start|>user<|im_end|>"


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_beginning_and_end_follow_the_file(tmp_path: Path, add_bos: bool, add_eos: bool) -> None:
    content = metadata(RECORDED["gpt-2"], bos_token_id=0, eos_token_id=1, add_bos_token=add_bos, add_eos_token=add_eos)
    tokenizer = built(tmp_path, content)
    plain = tokenizer.encode("Hello", add_special=False)
    assert tokenizer.encode("Hello") == [0] * add_bos + plain + [1] * add_eos


def test_family_default_for_the_beginning(tmp_path: Path) -> None:
    assert built(tmp_path, metadata(RECORDED["llama-bpe"], bos_token_id=3)).encode("") == [3]
    assert built(tmp_path, metadata(RECORDED["qwen2"], bos_token_id=3)).encode("") == []
    assert built(tmp_path, metadata(RECORDED["llama-spm"], bos_token_id=1)).encode("") == [1]


def test_end_of_turn_tokens_are_found_by_their_text(tmp_path: Path) -> None:
    entry = RECORDED["gpt-2"]
    count = len(entry["tokens"])
    changes = {
        "tokens": [*entry["tokens"], "<|im_end|>", "<|eot_id|>", "<|other|>", "</s>"],
        "token_type": [*entry["token_type"], 3, 3, 3, 1],
        "eot_token_id": count + 2,
        "eos_token_id": 5,
    }
    tokenizer = built(tmp_path, metadata(entry, **changes))
    assert tokenizer.eos_ids == {5, count, count + 1, count + 2}  # not "</s>", which is ordinary text here


BROKEN: dict[str, dict[str, Any]] = {
    "no tokens": {"tokens": None},
    "tokens are numbers": {"tokens": [1, 2]},
    "no merges": {"merges": None},
    "merge of unknown symbols": {"merges": ["nonsense! moonshine!"]},
    "types too short": {"token_type": [1, 2, 3]},
    "types are text": {"token_type": "x"},
    "eos outside": {"eos_token_id": 10**6},
    "eos is text": {"eos_token_id": "x"},
    "flag is a number": {"add_bos_token": 1},
    "unknown model": {"model": "rwkv"},
    "no model": {"model": None},
    "model is a number": {"model": 3},
    "unknown pre": {"pre": "never-heard-of"},
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_descriptions_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml"):
        built(tmp_path, metadata(RECORDED["gpt-2"], **BROKEN[case]))


@given(data=st.data(), name=st.sampled_from(["gpt-2", "llama-spm"]))
def test_damaged_vocabularies_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    content = bytearray(DAMAGED[name])
    for bit in data.draw(st.lists(st.integers(0, len(content) * 8 - 1), min_size=1, max_size=6)):
        content[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    with contextlib.suppress(RlxError):
        tokenizer = tokenizer_from_gguf(open_gguf(path))
        tokenizer.decode(tokenizer.encode("Hello, world! 🦙"))


def small(entry: dict[str, Any]) -> bytes:
    """The first entries of a vocabulary, so that damage hits its structure as often as its strings."""
    kept = {key: part[:60] if isinstance(part, list) else part for key, part in entry.items()}
    names = set(kept["tokens"])
    if "merges" in kept:
        kept["merges"] = [m for m in entry["merges"] if {*m.split(" "), m.replace(" ", "")} <= names] or ["! !"]
    return gguf_bytes(metadata(kept, bos_token_id=0, eos_token_id=1, unknown_token_id=0))


DAMAGED = {name: small(RECORDED[name]) for name in ("gpt-2", "llama-spm")}


def test_scores_are_needed(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="scores"):
        built(tmp_path, metadata(RECORDED["llama-spm"], scores=None))


@pytest.mark.parametrize("bad", ["half a pair \ud800", b"bytes", 3, None])
def test_what_is_not_text_is_refused(smollm2: Tokenizer, bad: Any) -> None:
    with pytest.raises(InputError):
        smollm2.encode(bad)


def test_ids_without_entry(smollm2: Tokenizer) -> None:
    assert smollm2.token_bytes(10**6) == b""
    with pytest.raises(InputError):
        smollm2.token_bytes(-1)


# Folders: the library itself writes the files.


def save_folder(folder: Path, tokenizer: Tokenizer, **files: dict[str, Any]) -> None:
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", RECORDED)
def test_folder_gives_the_same_ids_and_text(recorded: Any, tmp_path: Path, name: str) -> None:
    save_folder(tmp_path, recorded(name))
    tokenizer = tokenizer_from_folder(tmp_path)
    for text, ids in RECORDED[name]["cases"]:
        assert tokenizer.encode(text, add_special=False) == ids
        assert tokenizer.decode(ids, skip_special=False) == text


def test_folder_names_its_end_tokens(smollm2: Tokenizer, tmp_path: Path) -> None:
    save_folder(
        tmp_path,
        smollm2,
        tokenizer_config={"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}},
        generation_config={"eos_token_id": [2, 7]},
    )
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.bos_id == 1
    assert tokenizer.eos_ids == {0, 2, 7}
    assert tokenizer.special_ids == smollm2.special_ids


def test_folder_encodes_a_text_whole(smollm2: Tokenizer, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    backend: Any = Backend.from_str(smollm2.backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert len(tokenizer.encode("one two three four five six seven")) > 4
    assert len(tokenizer.encode("one")) < 4


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": {"type": "BPE"}}'])
def test_broken_folders_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        tokenizer_from_folder(tmp_path)
