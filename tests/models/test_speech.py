"""Tiny random Whispers against transformers: the encoder, the decoder in steps, both formats; what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlx.backends.cpu.target import available
from rlx.backends.reference import run_graph
from rlx.errors import InputError, MissingTensorError, RlxError, UnsupportedModelError
from rlx.flow.profile import Profile
from rlx.io.ctranslate2 import open_ctranslate2
from rlx.io.safetensors_folder import open_folder
from rlx.models.recipe import SpeechRecipe
from rlx.models.speech import speech_recipe_for
from rlx.runtime.load_speech import decoder_session, encoder_executable
from rlx.runtime.sourced_session import SourcedSession
from tests.io.ctranslate2_writer import ctranslate2_bytes
from tests.models.checkpoints import write_folder
from tests.references.load_speech import SpeechCase, speech_cases

CASES = {case.name: case for case in speech_cases()}
every_case = pytest.mark.parametrize("name", CASES)
TARGETS = available()
BAR = 1e-4  # of the largest logit


def recipe_of(case: SpeechCase, folder: Path, **changes: Any) -> SpeechRecipe:
    recipe = speech_recipe_for(open_folder(write_folder(folder, {**case.config, **changes}, case.weights())))
    assert recipe is not None
    return recipe


def ctranslate2_tensors(case: SpeechCase) -> dict[str, NDArray[Any]]:
    """The weights as CTranslate2's converter lays them out."""
    weights = {key.removeprefix("model."): array for key, array in case.weights().items()}
    tensors: dict[str, NDArray[Any]] = {
        "decoder/embeddings/weight": weights["decoder.embed_tokens.weight"],
        "decoder/activation": np.array(3, np.int8),
        "decoder/pre_norm": np.array(1, np.int8),
        "decoder/alignment_layer": np.array(1, np.int16),
    }
    for kind in ("weight", "bias"):
        tensors |= {f"encoder/{name}/{kind}": weights[f"encoder.{name}.{kind}"] for name in ("conv1", "conv2")}
    for side in ("encoder", "decoder"):
        tensors[f"{side}/num_heads"] = np.array(case.config[f"{side}_attention_heads"], np.int16)
        tensors[f"{side}/position_encodings/encodings"] = weights[f"{side}.embed_positions.weight"]
        norms = {f"{side}/layer_norm": f"{side}.layer_norm"}
        for index in range(case.config[f"{side}_layers"]):
            new, old = f"{side}/layer_{index}", f"{side}.layers.{index}"
            linear: dict[str, tuple[str, ...]] = {
                "ffn/linear_0": ("fc1",),
                "ffn/linear_1": ("fc2",),
                "self_attention/linear_1": ("self_attn.out_proj",),
            }
            linear["self_attention/linear_0"] = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
            norms |= {
                f"{new}/self_attention/layer_norm": f"{old}.self_attn_layer_norm",
                f"{new}/ffn/layer_norm": f"{old}.final_layer_norm",
            }
            if side == "decoder":
                norms[f"{new}/attention/layer_norm"] = f"{old}.encoder_attn_layer_norm"
                parts = {"0": ("q",), "1": ("k", "v"), "2": ("out",)}
                for number, names in parts.items():
                    linear[f"attention/linear_{number}"] = tuple(f"encoder_attn.{name}_proj" for name in names)
            for name, keys in linear.items():
                matrices = [weights[f"{old}.{key}.weight"] for key in keys]
                biases = [
                    weights.get(f"{old}.{key}.bias", np.zeros(len(matrix), np.float32))
                    for key, matrix in zip(keys, matrices, strict=True)
                ]
                tensors[f"{new}/{name}/weight"] = np.concatenate(matrices)
                tensors[f"{new}/{name}/bias"] = np.concatenate(biases)
        for new, old in norms.items():
            tensors[f"{new}/gamma"], tensors[f"{new}/beta"] = weights[f"{old}.weight"], weights[f"{old}.bias"]
    return tensors


def write_ctranslate2(folder: Path, case: SpeechCase, **changes: NDArray[Any]) -> Path:
    tensors = {**ctranslate2_tensors(case), **{name.replace("__", "/"): array for name, array in changes.items()}}
    alias = {"decoder/projection/weight": "decoder/embeddings/weight"}
    (folder / "model.bin").write_bytes(ctranslate2_bytes("WhisperSpec", tensors, alias))
    (folder / "config.json").write_text('{"suppress_ids": [3], "suppress_ids_begin": [4, 5]}')
    return folder


def pages_for(session: SourcedSession, lengths: list[int]) -> NDArray[np.int32]:
    """A page table for sequences of these lengths, the last pages first."""
    per_sequence = max(-(-length // session.page_size) for length in lengths)
    pages = np.arange(per_sequence * len(lengths), dtype=np.int32)[::-1]
    return np.ascontiguousarray(pages.reshape(len(lengths), per_sequence))


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


@every_case
def test_the_plain_flows_are_what_transformers_computes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recipe = recipe_of(case, tmp_path)
    states = run_graph(recipe.encoder.build(recipe.weights), {"mel": case.mel[None]}, recipe.weights)["output"][0]
    assert np.abs(states - case.states).max() <= BAR * np.abs(case.states).max()
    inputs = {"tokens": case.ids[None], "source": case.states[None]}
    logits = run_graph(recipe.decoder.build(recipe.weights), inputs, recipe.weights)["logits"][0]
    assert np.abs(logits - case.logits).max() <= BAR * np.abs(case.logits).max()


# every target runs the same flows: the first case shows each of them, the others the best one
@pytest.mark.parametrize(
    ("name", "target"), [*(("base", target) for target in TARGETS), *((name, TARGETS[0]) for name in list(CASES)[1:])]
)
def test_the_compiled_programs_are_what_transformers_computes(name: str, target: str, tmp_path: Path) -> None:
    """States, logits, and 16 greedy tokens, each step a program run of its own."""
    case, profile = CASES[name], Profile(precision="exact", target=target)
    recipe = recipe_of(case, tmp_path)
    encoder = encoder_executable(recipe, recipe.weights, profile, 2)
    with decoder_session(recipe, recipe.weights, profile, 2) as session:
        bounds = np.array([0, len(case.states)], np.int32)
        states = encoder(mel=case.mel[None], bounds=bounds)["output"][0]
        encoder.close()
        assert np.abs(states - case.states).max() <= BAR * np.abs(case.states).max()
        session.add_source(0, states)
        count = len(case.ids)
        table, rows = pages_for(session, [48]), np.arange(count, dtype=np.int32)
        zeros = np.zeros(count, np.int32)
        logits = session.run_from(case.ids, rows, zeros, table, rows, zeros)
        assert np.abs(logits - case.logits).max() <= BAR * np.abs(case.logits).max()
        written: list[int] = []
        for step in range(len(case.greedy)):
            written.append(int(logits[-1].argmax()))
            logits = session.run_from(ints(written[-1]), ints(count + step), ints(0), table, ints(0), ints(0))
        assert written == case.greedy.tolist()


@pytest.fixture(scope="module", params=["exact", "fast"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourcedSession]:
    """A decoder with two sources: the states of a case, and fewer rows of them in another order."""
    case = CASES["base"]
    recipe = recipe_of(case, tmp_path_factory.mktemp("speech"))
    profile = Profile(precision=request.param)
    with decoder_session(recipe, recipe.weights, profile, 2, slots=2) as session:
        session.add_source(0, case.states)
        session.add_source(1, case.states[40::-1])
        yield session


def test_a_row_has_the_bits_that_it_has_alone(session: SourcedSession) -> None:
    """Prefill, token by token, in chunks, and beside other sequences over the same and over another source."""
    ids = CASES["base"].ids
    count = len(ids)
    rows, zeros = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
    whole = session.run_from(ids, rows, zeros, pages_for(session, [count]), rows, zeros)
    table = pages_for(session, [count] * 3)
    single = [session.run_from(ids[i : i + 1], rows[i : i + 1], ints(1), table, ints(0), ints(0)) for i in range(count)]
    assert np.array_equal(np.concatenate(single), whole)
    # three sequences at once: the first two over source 0, the third over source 1, in two chunks
    chunks: list[NDArray[np.float32]] = []
    for start, stop in ((0, 4), (4, count)):
        part = stop - start
        chunks.append(
            session.run_from(
                np.tile(ids[start:stop], 3),
                np.tile(rows[start:stop], 3),
                np.repeat(ints(0, 1, 2), part),
                table,
                np.arange(3 * part, dtype=np.int32),
                np.repeat(ints(0, 0, 1), part),
            ).reshape(3, part, -1)
        )
    together = np.concatenate(chunks, axis=1)
    assert np.array_equal(together[0], whole)
    assert np.array_equal(together[1], whole)
    assert not np.allclose(together[2], whole, atol=1e-3)
    other = session.run_from(ids, rows, zeros, pages_for(session, [count]), rows, zeros + 1)
    assert np.array_equal(together[2], other)


def test_a_source_that_is_not_there(session: SourcedSession) -> None:
    case, table = CASES["base"], pages_for(session, [1])
    wrong: list[NDArray[Any]] = [ints(2), ints(-1), ints(0, 0), np.zeros(1, np.int64)]
    for sources in wrong:
        with pytest.raises(InputError, match="source"):
            session.run_from(ints(1), ints(0), ints(0), table, ints(0), sources)
    for slot, rows in (
        (2, case.states),
        (0, case.states[:, :-1]),
        (0, case.states[:0]),
        (0, np.tile(case.states, (2, 1))),
    ):
        with pytest.raises(InputError):
            session.add_source(slot, rows)


def test_a_folder_of_ctranslate2_is_the_same_model(tmp_path: Path) -> None:
    case = CASES["base"]
    (tmp_path / "hf").mkdir()
    first = recipe_of(case, tmp_path / "hf")
    second = speech_recipe_for(open_ctranslate2(write_ctranslate2(tmp_path, case)))
    assert second is not None
    assert (second.suppressed, second.suppressed_first) == ({3}, {4, 5})
    sizes = ("vocab_size", "hidden_size", "mel_bins", "frames", "source_positions", "context_length")
    assert all(getattr(first, size) == getattr(second, size) for size in sizes)
    inputs = {"tokens": case.ids[None], "source": case.states[None]}
    one, two = (run_graph(r.decoder.build(r.weights), inputs, r.weights)["logits"] for r in (first, second))
    assert np.array_equal(one, two)
    one, two = (
        run_graph(r.encoder.build(r.weights), {"mel": case.mel[None]}, r.weights)["output"] for r in (first, second)
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"decoder__pre_norm": np.array(0, np.int8)}, "pre_norm"),
        ({"decoder__activation": np.array(9, np.int8)}, "activation"),
        ({"encoder__num_heads": np.array(5, np.int16)}, "num_heads"),
        ({"encoder__conv1__weight": np.zeros((64, 20, 5), np.float32)}, "conv1"),
        ({"decoder__embeddings__weight": np.zeros((120, 64), np.int8)}, "int8_quantised"),
        ({"decoder__extra": np.zeros(3, np.float32)}, "extra"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_folder_of_ctranslate2_that_is_something_else(change: dict[str, Any], fact: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        speech_recipe_for(open_ctranslate2(write_ctranslate2(tmp_path, CASES["base"], **change)))
    assert fact.split("_quantised", maxsplit=1)[0].replace("int8", "float16") in str(error.value)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"activation_function": "quick_gelu"}, "quick_gelu"),
        ({"encoder_attention_heads": 5}, "encoder_attention_heads"),
        ({"architectures": ["WhisperForAudioClassification"]}, "WhisperForAudioClassification"),
        ({"num_mel_bins": 0}, "num_mel_bins"),
        ({"new_field": 3}, "new_field"),
        ({"suppress_tokens": [1, 500]}, "suppress_tokens"),
        ({"suppress_tokens": "all"}, "suppress_tokens"),
        ({"tie_word_embeddings": False}, "proj_out.weight"),
        ({"encoder_layers": 1}, "encoder.layers.1"),
    ],
)
def test_configurations_that_ask_for_something_else(change: dict[str, Any], fact: str, tmp_path: Path) -> None:
    def build() -> None:
        recipe = recipe_of(CASES["base"], tmp_path, **change)
        recipe.decoder.build(recipe.weights)

    with pytest.raises((UnsupportedModelError, MissingTensorError)) as error:
        build()
    assert fact in str(error.value)


@pytest.mark.parametrize("key", ["model.encoder.conv2.weight", "model.decoder.layers.1.encoder_attn.k_proj.weight"])
@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_a_tensor_that_does_not_fit(key: str, damage: str, tmp_path: Path) -> None:
    case = CASES["base"]
    weights = case.weights()
    if damage == "missing":
        del weights[key]
    else:
        weights[key] = np.ascontiguousarray(weights[key][:-1])
    recipe = speech_recipe_for(open_folder(write_folder(tmp_path, case.config, weights)))
    assert recipe is not None
    with pytest.raises(RlxError) as error:
        (recipe.encoder if "encoder.conv" in key else recipe.decoder).build(recipe.weights)
    assert key in str(error.value)
