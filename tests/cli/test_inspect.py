"""`rlx inspect` against files written by the `gguf` and `safetensors` packages, and damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Small \x1b[31mone")
    writer.add_context_length(321)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([b"a", b"b", b"c"])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.ones((3, 64), np.float32))
    quantised = np.zeros((4, 292), np.uint8)
    writer.add_tensor("blk.0.ffn_up.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_json(small_gguf, run):
    outcome = run("inspect", str(small_gguf), "--json", "--tensors")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    assert document["architecture"] == "llama"
    assert document["context_length"] == 321
    assert document["parameters"] == 3 * 64 + 4 * 256
    assert document["file_bytes"] == small_gguf.stat().st_size
    assert document["tokenizer"] == {"model": "gpt2", "vocab_size": 3}
    assert document["chat_template"] == "{{ messages }}"
    by_type = {entry["dtype"]: entry for entry in document["types"]}
    # 256 elements of Q8_K are 4 bytes of scale, 256 of levels and 32 of sums
    assert by_type["q8_k"]["nbytes"] == 4 * 292
    assert not by_type["q8_k"]["is_computable"]
    assert by_type["f32"] == {"dtype": "f32", "tensors": 1, "parameters": 192, "nbytes": 768, "is_computable": True}
    assert [(t["name"], t["shape"]) for t in document["tensors"]] == [
        ("token_embd.weight", [3, 64]),
        ("blk.0.ffn_up.weight", [4, 256]),
    ]


def test_without_tensors_the_list_is_left_out(small_gguf, run):
    assert "tensors" not in json.loads(run("inspect", str(small_gguf), "--json").out)


def test_tables(small_gguf, run):
    outcome = run("inspect", str(small_gguf), "--tensors")
    assert outcome.code == 0
    for word in ("llama", "321 tokens", "q8_k (listed only)", "blk.0.ffn_up.weight", "4 x 256", "{{ messages }}"):
        assert word in outcome.out
    assert "\x1b" not in outcome.out, "a file must not control the terminal"


def test_folder(tmp_path, run):
    safetensors.numpy.save_file({"w": np.ones((2, 8), np.float16)}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "max_position_embeddings": 99, "vocab_size": 7, "eos_token_id": [1, 2]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    document = json.loads(run("inspect", str(tmp_path), "--json").out)
    assert document["kind"] == "safetensors"
    assert (document["architecture"], document["context_length"], document["parameters"]) == ("llama", 99, 16)
    assert document["tokenizer"] == {"vocab_size": 7, "eos_token_id": [1, 2], "tokenizer.json": False}
    assert document["bits_per_parameter"] == 16


@pytest.mark.parametrize(
    "damage", [lambda b: b[:40], lambda b: b"XXXX" + b[4:], lambda b: b[:8] + b"\xff" * 8 + b[16:]]
)
def test_damaged_files(small_gguf, run, damage):
    small_gguf.write_bytes(damage(small_gguf.read_bytes()))
    outcome = run("inspect", str(small_gguf))
    assert outcome.code == 4
    assert outcome.out == ""
    assert str(small_gguf) in outcome.err
    assert "Traceback" not in outcome.err


def test_no_such_file(run, tmp_path):
    assert run("inspect", str(tmp_path / "none.gguf")).code == 3


def test_real_model(smollm2_path, run):
    document = json.loads(run("inspect", str(smollm2_path), "--json").out)
    assert document["parameters"] == 134_515_008
    assert {entry["dtype"]: entry["tensors"] for entry in document["types"]} == {"q4_1": 210, "q8_0": 1, "f32": 61}
    assert document["tokenizer"]["vocab_size"] == 49152
    assert "<|im_start|>" in document["chat_template"]
