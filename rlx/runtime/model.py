"""A loaded language model: what `rlx.load` returns.

In: prompts as text, token ids or conversations. Out: text, results, logits. Everything it does is in the files below
it: `generate.py` (text), `engine.py` (requests), `sampler.py` (options), `step.py` (the compiled program).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from rlx.errors import ChatTemplateError, InputError, RlxError
from rlx.runtime.engine import Engine
from rlx.runtime.generate import GenerationResult, TextStream, Tokenizer, run_together
from rlx.runtime.loaded_model import LoadedModel
from rlx.runtime.sampler import SamplingOptions
from rlx.runtime.step import StepProgram

if TYPE_CHECKING:
    from rlx.runtime.perplexity import Perplexity

Prompt = str | Sequence[int]
Message = Mapping[str, object]


class ChatTemplate(Protocol):
    """Turns a conversation into the text the model was trained on (`rlx/io/chat_template.py`)."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **extra: object,
    ) -> str:
        """The prompt text, special tokens written out."""
        ...


class Model(LoadedModel):
    """A language model ready to run. Use it as a context manager, or call `close`.

    The keyword arguments called `options` are the fields of `SamplingOptions` (temperature, top_k, top_p, seed, stop,
    max_tokens, ...); a name that is none of them is refused.

    Args:
        name: what the model is called.
        step: the compiled step program; the model closes it.
        tokenizer: text to tokens and back.
        chat_template: for `chat`, or None if the model has none.
        info: facts to show (architecture, parameters, precision, ...). `load_seconds`, if there, goes into the timings.
        defaults: options that hold where a call names none.
        max_step_tokens: most rows of one step of the program.
        max_sequences: most sequences that run at once.
    """

    kind = "a language model"

    def __init__(
        self,
        name: str,
        step: StepProgram,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        info: Mapping[str, object],
        *,
        defaults: SamplingOptions | None = None,
        max_step_tokens: int = 512,
        max_sequences: int = 64,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.info = dict(info)
        self.defaults = defaults or SamplingOptions()
        self.engine = Engine(step, max_step_tokens=max_step_tokens, max_sequences=max_sequences)
        self._program = step
        self._is_closed = False

    @property
    def program(self) -> StepProgram:
        """The compiled step program."""
        return self._program

    @property
    def context(self) -> int:
        """Most tokens of one text, prompt and generated together."""
        return self.engine.context

    @property
    def vocab_size(self) -> int:
        """Number of logits of a token."""
        return self._program.vocab_size

    def generate(self, prompt: Prompt, **options: object) -> GenerationResult:
        """Continue a text (or token ids) and wait for the end.

        Raises:
            OptionError: an option is unknown or has a value that is not allowed.
            InputError: the prompt is empty and the vocabulary has no begin-of-text token, or an id is out of range.
            ContextLengthError: the prompt does not fit.
        """
        return _drain(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: object) -> TextStream:
        """Continue a text (or token ids) piece by piece; errors as for `generate`."""
        return self._start(self._prompt_tokens(prompt), self._options(options), continuation=len(prompt) > 0)

    def generate_batch(self, prompts: Sequence[Prompt], **options: object) -> list[GenerationResult]:
        """Continue several texts in the same steps. Each gets what `generate` would give it; errors as there."""
        if isinstance(prompts, str):
            raise InputError(
                "a batch is a list of prompts", found="one string", fix="use generate, or a list of prompts"
            )
        parsed = self._options(options)
        tokens = [self._prompt_tokens(prompt) for prompt in prompts]
        streams: list[TextStream] = []
        with _closing(streams):
            for prompt, ids in zip(prompts, tokens, strict=True):
                streams.append(self._start(ids, parsed, continuation=len(prompt) > 0))
            return run_together(self.engine, streams)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_variables: Mapping[str, object] | None = None,
        **options: object,
    ) -> GenerationResult:
        """Answer a conversation: `[{"role": "user", "content": "Hi"}, ...]`.

        `tools` describes functions the model may call; `template_variables` are further variables of the chat template,
        such as `enable_thinking`.

        Raises:
            ChatTemplateError: the model has no chat template, or it refuses the conversation. Others as for `generate`.
        """
        return _drain(self.stream_chat(messages, tools=tools, template_variables=template_variables, **options))

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_variables: Mapping[str, object] | None = None,
        **options: object,
    ) -> TextStream:
        """Answer a conversation piece by piece; errors as for `chat`."""
        if self.chat_template is None:
            raise ChatTemplateError(
                "the model has no chat template", where=self.name, fix="use generate with a prompt you write yourself"
            )
        parsed = self._options(options)
        text = self.chat_template.render(
            messages, add_generation_prompt=True, tools=tools, **(template_variables or {})
        )
        # The template writes the begin-of-text token itself where the model wants one.
        tokens = self.tokenizer.encode(text, add_special=False, parse_special=True)
        return self._start(tokens, parsed, continuation=False)

    def logits(self, token_ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """`[seq, vocab]` float32: the logits after every token of one sequence.

        Raises:
            InputError: there is no token, the ids are not one-dimensional, or one is out of range.
            ContextLengthError: they do not fit into the context.
        """
        self._check_open()
        if isinstance(token_ids, np.ndarray) and token_ids.ndim != 1:
            raise InputError(
                "token ids are one sequence", found=f"an array of shape {token_ids.shape}", expected="shape [seq]"
            )
        if isinstance(token_ids, str):
            raise InputError("token ids are numbers", found="a string", fix="use model.tokenize(text) first")
        return self.engine.logits(list(token_ids))

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        window: int = 512,
        most_windows: int | None = None,
        reference: Model | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Perplexity:
        """How well the model predicts a text, window by window; see `rlx.runtime.perplexity`.

        Args:
            text: the text, or its token ids without a begin-of-text token.
            window, most_windows, progress: see there.
            reference: another form of the model, whose predictions the divergence is measured from.

        Raises:
            InputError: the text has less than a window, or the reference has another vocabulary.
            OptionError: a number is not allowed.
            ContextLengthError: a window does not fit into the context.
        """
        from rlx.runtime.perplexity import perplexity

        self._check_open()
        ids = self.tokenizer.encode(text, add_special=False) if isinstance(text, str) else list(text)
        if reference is not None and isinstance(text, str):
            other = reference.tokenizer.encode(text, add_special=False)
            if other != ids:
                raise InputError(
                    "the reference cuts the text into other tokens",
                    where=reference.name,
                    fix="compare two forms of one model",
                )
        with_start = self.tokenizer.encode("a", add_special=True)
        adds_start = len(with_start) > 0 and with_start[0] == self.tokenizer.bos_id
        return perplexity(
            self.logits,
            ids,
            window=window,
            most_windows=most_windows,
            first_token=self.tokenizer.bos_id if adds_start else None,
            reference=None if reference is None else reference.logits,
            progress=progress,
        )

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of a text, with the begin-of-text token where the model wants one."""
        return self.tokenizer.encode(text, add_special=add_special)

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""
        if not self._is_closed:
            self._is_closed = True
            self._program.close()

    def __repr__(self) -> str:
        facts = [f"{key} {value}" for key, value in self.info.items() if isinstance(value, str | int)]
        facts.append(f"context {self.context}")
        if self._is_closed:
            facts.append("closed")
        return f"<rlx.Model {self.name}: {', '.join(facts)}>"

    def _check_open(self) -> None:
        if self._is_closed:
            raise RlxError("the model is closed", where=self.name, fix="load it again")

    def _options(self, keywords: Mapping[str, object]) -> SamplingOptions:
        return SamplingOptions.from_keywords(keywords, self.defaults)

    def _prompt_tokens(self, prompt: Prompt) -> Sequence[int]:
        tokens: Sequence[int] = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if len(tokens):
            return tokens
        if self.tokenizer.bos_id is not None:
            return [self.tokenizer.bos_id]
        raise InputError(
            "the prompt is empty",
            found="no tokens, and a vocabulary without a begin-of-text token",
            expected="at least one token",
            fix="write something to continue",
        )

    def _start(self, tokens: Sequence[int], options: SamplingOptions, *, continuation: bool) -> TextStream:
        self._check_open()
        seconds = self.info.get("load_seconds")
        load_seconds = float(seconds) if isinstance(seconds, int | float) else None
        return TextStream(
            self.engine, self.tokenizer, tokens, options, continuation=continuation, load_seconds=load_seconds
        )


def _drain(pieces: TextStream) -> GenerationResult:
    with pieces:
        for _ in pieces:
            pass
    return pieces.result


@contextmanager
def _closing(streams: list[TextStream]) -> Generator[None]:
    """Close what was started, also when a later prompt is refused."""
    try:
        yield
    finally:
        for started in streams:
            started.close()
