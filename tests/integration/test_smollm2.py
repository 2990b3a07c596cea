"""SmolLM2 from its GGUF file in float32, against transformers; and its tokens and templates, against llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest

from rlx.runtime.model import Model
from tests.integration.driving import Drive, session_of_model
from tests.references.kl import log_sum_exp
from tests.references.load import (
    PromptCase,
    smollm2_conversations,
    smollm2_prompts,
    smollm2_tokenizer_cases,
)

PROMPTS = {case.name: case for case in smollm2_prompts()}
# The bar is 2e-3. Both sides compute in float32 and differ by the order of their sums alone: logits of size 20 over 30
# layers were measured to differ by 7e-5. A wrong epsilon, scale or rounding of a weight is far outside of 5e-4.
TOLERANCE = 5e-4


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_are_those_of_transformers(name: str, smollm2_exact: Model) -> None:
    case: PromptCase = PROMPTS[name]
    logits = smollm2_exact.logits(case.ids)
    assert logits.shape == (len(case.ids), 49152)
    assert np.abs(logits[-1] - case.last_logits).max() <= TOLERANCE
    top = np.take_along_axis(logits, case.top_ids.astype(np.int64), axis=-1)
    assert np.abs(top - case.top_logits).max() <= TOLERANCE
    assert np.abs(log_sum_exp(logits) - case.log_sum_exp).max() <= TOLERANCE
    # the recorded 32 are the largest: no other logit may lie above the smallest of them
    others = logits.copy()
    np.put_along_axis(others, case.top_ids.astype(np.int64), -np.inf, axis=-1)
    assert (others.max(-1) - case.top_logits[:, -1]).max() <= TOLERANCE


def test_eight_prompts_of_different_lengths_are_recorded() -> None:
    lengths = sorted(len(case.ids) for case in PROMPTS.values())
    assert len(lengths) == 8
    assert (lengths[0], lengths[-1]) == (1, 200)


def test_greedy_continuations_are_those_of_transformers(smollm2_exact: Model) -> None:
    """All eight in the same steps. No end token stops them, which `generate` would do."""
    session = session_of_model(smollm2_exact)
    found = Drive(session, [case.ids for case in PROMPTS.values()], room=32, seed=1).greedy(32)
    expected = {case.name: case.greedy.tolist() for case in PROMPTS.values()}
    assert dict(zip(PROMPTS, found, strict=True)) == expected


def test_generate_gives_the_recorded_text(smollm2_exact: Model) -> None:
    case = PROMPTS["story"]
    assert not smollm2_exact.tokenizer.eos_ids & set(case.greedy.tolist()), "a prompt whose continuation does not end"
    result = smollm2_exact.generate(case.text, temperature=0, max_tokens=32)
    assert result.prompt_tokens == tuple(case.ids.tolist())
    assert list(result.tokens) == case.greedy.tolist()
    assert result.text == case.greedy_text
    assert result.finish_reason == "length"


def test_token_ids_are_those_of_llama_cpp(smollm2_exact: Model) -> None:
    cases = smollm2_tokenizer_cases()
    assert len(cases) == 26
    encode = smollm2_exact.tokenizer.encode
    for case in cases:
        assert tuple(encode(case.text, add_special=False)) == case.ids, case.text
        plain = encode(case.text, add_special=False, parse_special=False)
        assert tuple(plain) == case.ids_without_special, case.text


def test_prompts_are_tokenised_as_recorded(smollm2_exact: Model) -> None:
    for case in PROMPTS.values():
        if case.name != "botchan_200":  # a run of tokens from the middle of a book
            assert smollm2_exact.tokenize(case.text) == case.ids.tolist(), case.name


def test_chat_template_is_rendered_as_transformers_does(smollm2_exact: Model) -> None:
    template = smollm2_exact.chat_template
    assert template is not None
    cases = smollm2_conversations()
    assert len(cases) == 6
    for case in cases:
        text = template.render(case.messages, add_generation_prompt=case.add_generation_prompt)
        assert text == case.text
        assert tuple(smollm2_exact.tokenizer.encode(text, add_special=False)) == case.ids


def test_chat_continues_the_rendered_conversation(smollm2_exact: Model) -> None:
    case = next(case for case in smollm2_conversations() if case.add_generation_prompt)
    result = smollm2_exact.chat(case.messages, temperature=0, max_tokens=2)
    assert result.prompt_tokens == case.ids
