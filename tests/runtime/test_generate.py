"""Text out of the engine: pieces, stop strings, results, and the `Model` in front."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.errors import ChatTemplateError, ContextLengthError, InputError, OptionError, RlxError
from rlx.runtime.engine import Engine, Request, RequestHandle
from rlx.runtime.generate import StopMatcher, TextStream, Timings, run_together, stream
from rlx.runtime.model import Model
from rlx.runtime.sampler import SamplingOptions
from tests.runtime.toy import VOCAB, ToyStep, ToyTokenizer, alone, toy_logits, toy_text

PLAIN = SamplingOptions(temperature=0.9, seed=3, max_tokens=20)


def tokens_alone(prompt: Sequence[int], options: SamplingOptions, eos_ids: frozenset[int] = frozenset()) -> list[int]:
    return [sampled.token for sampled in alone(prompt, options, 64, eos_ids)]


def cut_by_hand(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Letter by letter: the stop string that is completed first, the longest if several are."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300)
@given(
    pieces=st.lists(st.text("abé", max_size=4), max_size=12),
    stops=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_never_show(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown, matched = "", None
    expected, expected_stop = cut_by_hand("".join(pieces), stops)
    for piece in pieces:
        text, matched = matcher.push(piece)
        shown += text
        assert expected.startswith(shown)
        if matched:
            break
    if matched is None:
        shown += matcher.flush()
    assert (shown, matched) == (expected, expected_stop)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["abc", "bd"])
    assert matcher.push("xxa") == ("xx", None)
    assert matcher.push("b") == ("", None)
    assert matcher.push("x") == ("abx", None)
    assert matcher.push("ab") == ("", None)
    assert matcher.push("d") == ("a", "bd")


@settings(max_examples=60, deadline=None)
@given(prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_pieces_are_the_text(prompt: list[int], seed: int) -> None:
    """Tokens of the toy are bytes, parts of characters among them; every piece is a whole string all the same."""
    options = SamplingOptions(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, max_tokens=20)
    text = stream(Engine(ToyStep()), ToyTokenizer(), prompt, options)
    pieces = list(text)
    tokens = tokens_alone(prompt, options)
    assert all(pieces)
    assert "".join(pieces) == text.result.text == toy_text(tokens) == str(text.result)
    assert text.result.tokens == tuple(tokens)
    assert (text.result.finish_reason, text.result.stop_reason) == ("length", "max_tokens")


def test_a_character_of_several_tokens_comes_whole() -> None:
    options = SamplingOptions(temperature=0, max_tokens=3)

    class Euro(ToyStep):
        def run(self, *args: Any, **keywords: Any) -> Any:
            logits = np.zeros((1, VOCAB), np.float32)
            logits[0, 24 + (len(self.calls) % 3)] = 9
            self.calls.append(1)
            return logits

    assert list(TextStream(Engine(Euro()), ToyTokenizer(), [1], options)) == ["€"]
    cut = TextStream(Engine(Euro()), ToyTokenizer(), [1], SamplingOptions(temperature=0, max_tokens=2))
    assert list(cut) == ["\N{REPLACEMENT CHARACTER}"]


def test_eos_ends_the_text_and_does_not_show() -> None:
    tokens = tokens_alone([1, 2], PLAIN)
    eos = frozenset({tokens[7]})
    expected = tokens[: tokens.index(tokens[7]) + 1]
    text = TextStream(Engine(ToyStep()), ToyTokenizer(eos_ids=eos), [1, 2], PLAIN)
    assert "".join(text) == toy_text(expected[:-1])
    assert text.result.tokens == tuple(expected)
    assert (text.result.finish_reason, text.result.stop_reason) == ("stop", "eos")


def test_stop_string_ends_the_request() -> None:
    full = toy_text(tokens_alone([1, 2], PLAIN))
    stop = full[5:8]
    engine = Engine(ToyStep())
    options = SamplingOptions.from_keywords({"stop": [stop, "never there"]}, PLAIN)
    text = TextStream(engine, ToyTokenizer(), [1, 2], options)
    assert "".join(text) == full[: full.index(stop)] == text.result.text
    assert (text.result.finish_reason, text.result.stop_reason) == ("stop", stop)
    assert len(text.result.tokens) < 20
    assert toy_text(text.result.tokens).endswith(stop)
    assert engine.num_requests == 0
    assert engine.num_free_pages == 64


def test_what_was_held_back_shows_at_the_end() -> None:
    full = toy_text(tokens_alone([1, 2], PLAIN))
    options = SamplingOptions.from_keywords({"stop": full[-3:] + "never"}, PLAIN)
    text = TextStream(Engine(ToyStep()), ToyTokenizer(), [1, 2], options)
    assert "".join(text) == text.result.text == full
    assert text.result.finish_reason == "length"


def test_result_before_the_end_is_an_error() -> None:
    text = TextStream(Engine(ToyStep()), ToyTokenizer(), [1], PLAIN)
    next(text)
    with pytest.raises(RlxError, match="still running"):
        _ = text.result


@pytest.mark.parametrize("how", ["close", "with", "drop", "break"])
def test_closing_cancels_the_request(how: str) -> None:
    engine = Engine(ToyStep())
    text = TextStream(engine, ToyTokenizer(), [1], PLAIN)
    first = next(text)
    assert engine.num_requests == 1
    if how == "close":
        text.close()
        assert (text.result.finish_reason, text.result.text) == ("cancelled", first)
        assert list(text) == []
    elif how == "with":
        with text:
            next(text)
        assert text.result.finish_reason == "cancelled"
    elif how == "break":
        for _ in TextStream(engine, ToyTokenizer(), [2], PLAIN):
            break
        text.close()
    else:
        del text
    gc.collect()
    assert engine.num_requests == 0
    assert engine.num_free_pages == 64


def test_ctrl_c_cancels_and_the_engine_goes_on() -> None:
    program = ToyStep()
    engine = Engine(program)
    text, other = (TextStream(engine, ToyTokenizer(), [first], PLAIN) for first in (1, 2))
    next(text)

    def interrupt() -> None:
        raise KeyboardInterrupt

    program.before_return = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(text)
    program.before_return = lambda: None
    assert text.result.finish_reason == "cancelled"
    assert engine.num_requests == 1
    assert "".join(other) == toy_text(tokens_alone([2], PLAIN))
    assert engine.num_free_pages == 64


def test_ctrl_c_while_a_request_is_added_leaves_none_behind() -> None:
    class Interrupted(Engine):
        def add(self, request: Request) -> RequestHandle:
            super().add(request)
            raise KeyboardInterrupt

    engine = Interrupted(ToyStep())
    with pytest.raises(KeyboardInterrupt):
        TextStream(engine, ToyTokenizer(), [1], PLAIN)
    assert engine.num_requests == 0


def test_streams_may_be_interleaved() -> None:
    engine = Engine(ToyStep())
    first, second = (TextStream(engine, ToyTokenizer(), [prompt], PLAIN) for prompt in (1, 2))
    pieces: list[list[str]] = [[], []]
    for one, two in zip(first, second, strict=False):
        pieces[0].append(one)
        pieces[1].append(two)
    pieces[0] += first
    pieces[1] += second
    # zip may have taken one more piece of the first before it saw the end of the second; results are whole.
    assert [text.result.text for text in (first, second)] == [toy_text(tokens_alone([p], PLAIN)) for p in (1, 2)]
    assert second.result.text == "".join(pieces[1])


def test_a_failing_request_raises_and_closes_the_others() -> None:
    class Broken(ToyStep):
        def run(self, *args: Any, **keywords: Any) -> Any:
            logits = super().run(*args, **keywords)
            if len(self.calls) == 3:
                logits[0, 0] = np.nan
            return logits

    engine = Engine(Broken())
    streams = [TextStream(engine, ToyTokenizer(), [prompt], PLAIN) for prompt in (1, 2)]
    with pytest.raises(RlxError, match="not finite"):
        run_together(engine, streams)
    assert engine.num_requests == 0
    assert engine.num_free_pages == 64


def test_result_as_json() -> None:
    options = SamplingOptions(temperature=0, max_tokens=4, logprobs=2, seed=5)
    text = TextStream(Engine(ToyStep()), ToyTokenizer(), [1, 2], options, load_seconds=1.5)
    list(text)
    read = json.loads(json.dumps(text.result.to_json(), allow_nan=False))
    expected = alone([1, 2], options)
    assert read["tokens"] == [sampled.token for sampled in expected]
    assert read["prompt_tokens"] == [1, 2]
    assert read["seed"] == 5
    assert read["logprobs"][0]["logprob"] == expected[0].logprob
    assert read["logprobs"][0]["top"][1] == {"token": expected[0].top[1][0], "logprob": expected[0].top[1][1]}
    timings = read["timings"]
    assert timings["prompt_tokens"] == 2
    assert timings["decode_tokens"] == 3
    assert timings["load_seconds"] == 1.5
    assert 0 < timings["prefill_seconds"] <= timings["first_token_seconds"]
    assert timings["decode_tokens_per_second"] == pytest.approx(3 / timings["decode_seconds"])


def test_speeds() -> None:
    timings = Timings(100, 0.5, 0.75, 30, 2.0)
    assert (timings.prefill_tokens_per_second, timings.decode_tokens_per_second) == (200.0, 15.0)
    assert Timings(100, 0.0, 0.0, 0, 0.0).to_json()["decode_tokens_per_second"] == 0.0


class ToyTemplate:
    """Contents only, with a space behind each, then what the variable `ending` says."""

    def render(self, messages: Sequence[Mapping[str, object]], **variables: object) -> str:
        return "".join(f"{message['content']} " for message in messages) + str(variables.get("ending", ""))


def toy_model(**keywords: Any) -> tuple[Model, ToyStep]:
    program = ToyStep()
    info = {"architecture": "toy", "parameters": 12, "load_seconds": 0.25}
    return Model("toy", program, ToyTokenizer(), ToyTemplate(), info, defaults=PLAIN, **keywords), program


def test_generate_takes_text_and_tokens() -> None:
    model, _ = toy_model()
    expected = tokens_alone([30, 0, 1], PLAIN)
    assert model.tokenize("ab") == [30, 0, 1]
    assert model.tokenize("ab", add_special=False) == [0, 1]
    for prompt in ("ab", [30, 0, 1], (30, 0, 1), np.array([30, 0, 1])):
        result = model.generate(prompt)  # type: ignore[arg-type]
        assert result.tokens == tuple(expected)
        assert result.text == toy_text(expected)
        assert result.timings.load_seconds == 0.25
    assert "".join(model.stream("ab")) == toy_text(expected)
    assert model.generate("ab", max_tokens=3).tokens == tuple(expected[:3])
    assert model.generate("ab", max_tokens=None, temperature=0).stop_reason == "context"


def test_batch_equals_alone() -> None:
    model, program = toy_model(max_step_tokens=9)
    prompts = ["a", "hello you", [7, 8, 9], "a"]
    alone_results = [model.generate(prompt, stop="e") for prompt in prompts]
    program.calls.clear()
    batch = model.generate_batch(prompts, stop="e")
    assert [result.tokens for result in batch] == [result.tokens for result in alone_results]
    assert [result.text for result in batch] == [result.text for result in alone_results]
    assert max(program.calls) == 9
    assert model.generate_batch([]) == []


def test_a_bad_prompt_in_a_batch_cancels_the_rest() -> None:
    model, _ = toy_model()
    with pytest.raises(ContextLengthError, match="64 prompt tokens"):
        model.generate_batch(["ab", [1] * 64])
    with pytest.raises(InputError, match="list of prompts"):
        model.generate_batch("ab")
    assert model.engine.num_requests == 0


def test_chat_goes_through_the_template() -> None:
    model, _ = toy_model()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    tokens = ToyTokenizer().encode("hi yo ", add_special=False)
    assert model.chat(messages).tokens == tuple(tokens_alone(tokens, PLAIN))
    assert "".join(model.stream_chat(messages)) == toy_text(tokens_alone(tokens, PLAIN), continuation=False)
    tokens += ToyTokenizer().encode("ab", add_special=False)
    assert model.chat(messages, template_variables={"ending": "ab"}).prompt_tokens == tuple(tokens)
    with pytest.raises(ChatTemplateError, match="no chat template"):
        Model("bare", ToyStep(), ToyTokenizer(), None, {}).chat(messages)


def test_only_a_continuation_keeps_its_first_space() -> None:
    space = ToyTokenizer().encode(" ", add_special=False)[0]
    model, _ = toy_model()
    options: dict[str, Any] = {"logit_bias": {space: 100.0}, "temperature": 0, "max_tokens": 2}
    assert model.generate("a", **options).text == "  "
    assert model.generate("", **options).text == " "
    assert model.chat([{"content": "a"}], **options).text == " "
    assert [result.text for result in model.generate_batch(["a", ""], **options)] == ["  ", " "]


def test_empty_prompts() -> None:
    model, _ = toy_model()
    assert model.generate([]).prompt_tokens == model.generate("").prompt_tokens == (30,)
    bare = Model("bare", ToyStep(), ToyTokenizer(bos_id=None), None, {})
    prompts: list[str | list[int]] = ["", []]
    for prompt in prompts:
        with pytest.raises(InputError, match="prompt is empty"):
            bare.generate(prompt)


def test_logits_of_every_token() -> None:
    model, _ = toy_model(max_step_tokens=3)
    tokens = [4, 9, 1, 1, 30, 2, 8]
    expected = np.stack([toy_logits(tokens[: end + 1]) for end in range(len(tokens))])
    for given_tokens in (tokens, np.array(tokens)):
        logits = model.logits(given_tokens)
        assert logits.dtype == np.float32
        np.testing.assert_array_equal(logits, expected)
    bad: list[Any] = [np.zeros((2, 2), np.int64), [], [VOCAB], [0.5], "ab"]
    for tokens_given in bad:
        with pytest.raises(InputError):
            model.logits(tokens_given)


def test_unknown_options_are_refused() -> None:
    model, _ = toy_model()
    with pytest.raises(OptionError, match="did you mean max_tokens"):
        model.generate("a", max_token=3)
    with pytest.raises(OptionError, match="temperature"):
        model.chat([], temperature=-1)
    assert model.engine.num_requests == 0


def test_closing_a_model() -> None:
    model, program = toy_model()
    assert repr(model) == "<rlx.Model toy: architecture toy, parameters 12, context 64>"
    with model:
        assert (model.context, model.vocab_size) == (64, VOCAB)
    model.close()
    assert program.closed == 1
    assert repr(model).endswith("closed>")
    for call in (lambda: model.generate("a"), lambda: model.logits([1]), lambda: model.stream_chat([{"content": "a"}])):
        with pytest.raises(RlxError, match="the model is closed"):
            call()
