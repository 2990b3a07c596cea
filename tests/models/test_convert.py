"""Conversion and quantisation: values, names, tokenizer and configuration survive, and the types are llama.cpp's."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from rlx.core.dtype import DType
from rlx.core.storage import decode
from rlx.errors import OptionError, StorageError, UnsupportedModelError
from rlx.io import new_file
from rlx.io.chat_template import find_template
from rlx.io.checkpoint import Checkpoint
from rlx.io.reference import open_model
from rlx.io.tokenizer import tokenizer_from
from rlx.models.convert import convert, quantize
from rlx.models.quantization_types import TYPES, Mixture
from tests.integration.driving import Drive
from tests.integration.tiny import recipe_of, session_of
from tests.models.checkpoints import write_folder

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "attention_bias": True,
}
TEXTS = ["Hello world", "  two  spaces\n\nand lines 1234", "naïve café – 漢字", "<|bos|> is special"]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
IDS = np.random.default_rng(5).integers(0, 320, 19).astype(np.int32)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 320 tokens that splits like SmolLM's: digits apart, then GPT-2's expression."""
    backend = Backend(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=318, special_tokens=["<|bos|>", "<|eos|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([*TEXTS, "the quick brown fox jumps over the lazy dog " * 3], trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def weights() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(3)
    hidden, kv, inner = 256, 128, 512
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (320, hidden), "lm_head": (320, hidden)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj": (hidden, hidden),
            f"{prefix}.self_attn.k_proj": (kv, hidden),
            f"{prefix}.self_attn.v_proj": (kv, hidden),
            f"{prefix}.self_attn.o_proj": (hidden, hidden),
            f"{prefix}.mlp.gate_proj": (inner, hidden),
            f"{prefix}.mlp.up_proj": (inner, hidden),
            f"{prefix}.mlp.down_proj": (hidden, inner),
            f"{prefix}.input_layernorm": (hidden,),
            f"{prefix}.post_attention_layernorm": (hidden,),
        }
    shapes["model.norm"] = (hidden,)
    result = {
        f"{name}.weight": (rng.standard_normal(shape) * 0.06 + (len(shape) == 1)).astype(np.float16)
        for name, shape in shapes.items()
    }
    for name, shape in shapes.items():
        if "self_attn" in name:
            result[f"{name}.bias"] = (rng.standard_normal(shape[0]) * 0.02).astype(np.float16)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_folder(tmp_path_factory.mktemp("source") / ".", CONFIG, weights())
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def converted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "m.gguf"
    convert(open_model(folder), path, threads=2)
    return path


def logits(path: Path) -> NDArray[np.float32]:
    with session_of(recipe_of(path)) as session:
        (result,) = Drive(session, [IDS]).step([(0, len(IDS))])
    return result


def values(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    info = checkpoint.tensors[name]
    return decode(info.dtype, checkpoint.data(name), info.shape)


def test_a_converted_model_computes_the_same(folder: Path, converted: Path) -> None:
    found, expected = logits(converted), logits(folder)
    # the same products in another order of the heads' rows: sums of 256 float32 products differ by their rounding
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_round_trip_is_exact(folder: Path, converted: Path, tmp_path: Path) -> None:
    convert(open_model(converted), tmp_path / "back")
    first, again = open_model(folder), open_model(tmp_path / "back")
    assert set(again.tensors) == set(first.tensors)
    for name, info in first.tensors.items():
        assert (again.tensors[name].dtype, again.tensors[name].shape) == (info.dtype, info.shape)
        assert np.array_equal(again.data(name), first.data(name))
    for key, value in CONFIG.items():
        assert again.metadata[key] == value, key
    assert np.array_equal(logits(tmp_path / "back"), logits(folder))


def test_the_tokenizer_and_the_template_survive_both_ways(folder: Path, converted: Path, tmp_path: Path) -> None:
    convert(open_model(converted), tmp_path / "back")
    original = tokenizer_from(open_model(folder))
    for path in (converted, tmp_path / "back"):
        checkpoint = open_model(path)
        tokenizer = tokenizer_from(checkpoint)
        for text in TEXTS:
            assert tokenizer.encode(text) == original.encode(text)
            assert tokenizer.decode(tokenizer.encode(text)) == original.decode(original.encode(text))
        assert (tokenizer.bos_id, tokenizer.eos_ids) == (original.bos_id, original.eos_ids)
        template = find_template(checkpoint)
        assert template is not None
        assert template.parsed().source == TEMPLATE


def test_the_gguf_package_reads_what_is_written(converted: Path) -> None:
    reader = gguf.GGUFReader(converted)
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.block_count"].contents() == 2
    assert reader.fields["llama.rope.freq_base"].contents() == 10000.0
    ours = open_model(converted)
    assert [tensor.name for tensor in reader.tensors] == list(ours.tensors)
    for tensor in reader.tensors:
        raw = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(raw.reshape(-1), values(ours, tensor.name).reshape(-1))


LARGEST_ERROR = {
    "F32": 0.0,
    "F16": 0.0,
    "BF16": 0.003,
    "Q8_0": 0.007,
    "Q6_K": 0.02,
    "Q5_K_M": 0.04,
    "Q5_K_S": 0.04,
    "Q5_1": 0.05,
    "Q5_0": 0.06,
    "Q4_K_M": 0.08,
    "Q4_K_S": 0.08,
    "IQ4_NL": 0.09,
    "Q4_1": 0.1,
    "Q4_0": 0.11,
    "MXFP4": 0.15,
    "Q3_K_L": 0.15,
    "Q3_K_M": 0.16,
    "Q3_K_S": 0.18,
    "Q2_K": 0.26,
}
"""Relative root mean square error of normally distributed weights: about the step of the levels over its square root
of 12, and a tenth more; the mixtures mean less."""


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_as_near_as_its_bits_allow(folder: Path, tmp_path: Path, name: str) -> None:
    source, path = open_model(folder), tmp_path / "q.gguf"
    types = quantize(source, path, name, threads=2)
    plain = tmp_path / "plain.gguf"
    convert(source, plain)
    exact, found = open_model(plain), open_model(path)
    assert {tensor: info.dtype for tensor, info in found.tensors.items()} == types
    errors, total = 0.0, 0.0
    for tensor in types:
        x, y = values(exact, tensor), values(found, tensor)
        if x.ndim == 2:
            errors, total = errors + float(((x - y) ** 2).sum()), total + float((x**2).sum())
        else:
            assert np.array_equal(x, y)
    assert (errors / total) ** 0.5 <= LARGEST_ERROR[name]
    again = tmp_path / "again.gguf"
    quantize(source, again, name, threads=1)
    assert again.read_bytes() == path.read_bytes()


# What llama-quantize gives a Llama of 32 layers with 4 queries for each KV head and an output of its own.
MIXTURES = {
    "Q4_K_M": {"output": "q6_k", "token_embd": "q4_k", "attn_v": [(0, "q6_k"), (4, "q4_k"), (6, "q6_k"), (31, "q6_k")]},
    "Q4_K_S": {"output": "q6_k", "attn_v": [(3, "q5_k"), (4, "q4_k")], "ffn_down": [(3, "q5_k"), (4, "q4_k")]},
    "Q3_K_M": {"attn_v": [(1, "q5_k"), (2, "q4_k")], "ffn_down": [(1, "q5_k"), (2, "q4_k")], "attn_output": "q4_k"},
    "Q3_K_L": {"attn_v": "q5_k", "ffn_down": "q5_k", "attn_output": "q5_k", "attn_q": "q3_k"},
    "Q2_K": {"attn_v": "q4_k", "ffn_down": "q3_k", "attn_output": "q3_k", "ffn_up": "q2_k"},
    "Q8_0": {"output": "q8_0", "token_embd": "q8_0", "attn_v": "q8_0"},
    "Q4_0": {"output": "q6_k", "attn_v": "q4_0", "attn_norm": "f32"},
}


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_are_those_of_llama_cpp(name: str) -> None:
    mixture = Mixture(name, 32, 4, tied=False)
    for part, expected in MIXTURES[name].items():
        pairs = expected if isinstance(expected, list) else [(5, expected)]
        for layer, dtype in pairs:
            full = f"{part}.weight" if part in ("output", "token_embd") else f"blk.{layer}.{part}.weight"
            shape = (4096,) if part == "attn_norm" else (4096, 4096)
            assert str(mixture.type_of(full, shape)) == dtype


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("Q4_K_M", 576, "q5_0"),
        ("Q2_K", 576, "q4_0"),
        ("Q6_K", 576, "q8_0"),
        ("Q5_K_S", 576, "q5_1"),
        ("Q4_0", 40, "f16"),
    ],
)
def test_rows_that_are_no_whole_blocks(name: str, width: int, expected: str) -> None:
    found: DType = Mixture(name, 30, 3, tied=True).type_of("blk.9.attn_q.weight", (64, width))
    assert str(found) == expected


def test_gguf_to_gguf_keeps_the_metadata(converted: Path, tmp_path: Path) -> None:
    quantize(open_model(converted), tmp_path / "q.gguf", "Q4_0")
    first, again = open_model(converted).metadata, open_model(tmp_path / "q.gguf").metadata
    for key, value in first.items():
        if key != "general.file_type":
            assert repr(again[key]) == repr(value), key
    assert again["general.file_type"] == 2


def test_what_cannot_be_done_is_refused(folder: Path, converted: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Q9"):
        quantize(open_model(folder), tmp_path / "q.gguf", "Q9")
    with pytest.raises(OptionError, match="over itself"):
        quantize(open_model(converted), converted, "Q4_0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(OptionError, match="not empty"):
        convert(open_model(converted), tmp_path / "full")
    other = write_folder(tmp_path, {**CONFIG, "model_type": "other"}, {"w": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match="other"):
        convert(open_model(other), tmp_path / "m.gguf")
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    (tmp_path / "y").mkdir()
    scaled = write_folder(tmp_path / "y", {**CONFIG, "rope_parameters": yarn}, weights())
    write_tokenizer(scaled)
    with pytest.raises(UnsupportedModelError, match="yarn"):
        convert(open_model(scaled), tmp_path / "m.gguf")


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(new_file.os, "fsync", full)
    (tmp_path / "q.gguf").write_bytes(b"old")
    with pytest.raises(StorageError, match="disk space"):
        quantize(open_model(folder), tmp_path / "q.gguf", "Q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]
    assert (tmp_path / "q.gguf").read_bytes() == b"old"


def test_too_little_space_is_seen_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(new_file.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="1,000 bytes free"):
        quantize(open_model(folder), tmp_path / "q.gguf", "Q4_0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K", "Q3_K_M", "Q5_K_S", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0", "BF16"])
def test_llama_cpp_loads_it_and_agrees(folder: Path, tmp_path: Path, name: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = tmp_path / "q.gguf"
    quantize(open_model(folder), path, name)
    peer = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    peer.eval(IDS.tolist())
    theirs = np.array(peer.scores[: len(IDS)])
    ours = logits(path)
    # llama.cpp quantises the activations: 0.3% of the spread per product, in 14 products
    assert np.sqrt(np.mean((ours - theirs) ** 2)) <= 0.03 * ours.std()
    peer.close()
