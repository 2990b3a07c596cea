"""The control tokens of a speech model, and what a prompt is made of.

In: a tokenizer. Out: `SpeechTokens`. A window's prompt is the text before it, the start token, the language and the
task; timestamps are the ids behind the last control token, 20 ms each. Source: Radford et al. 2022, section 2.3.
Next: `timestamp_rules.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rlx.errors import OptionError, TokenizerError
from rlx.io.tokenizer import Tokenizer

_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
TASKS = ("transcribe", "translate")


@dataclass(frozen=True, slots=True)
class SpeechTokens:
    """Ids of the control tokens.

    Attributes:
        end: ends a window's text. start: begins what is said in a window. previous: begins the text before it.
        no_speech: its probability after `start` says that nothing is said; None for a vocabulary without it.
        no_timestamps: asks for text alone.
        timestamps: the first timestamp, of 0 s.
        tasks: id by task. languages: id by code.
        control: every control token that is never written.
    """

    end: int
    start: int
    previous: int
    no_speech: int | None
    no_timestamps: int
    timestamps: int
    tasks: Mapping[str, int]
    languages: Mapping[str, int]
    control: frozenset[int]

    def prompt(self, language: str | None, task: str, with_timestamps: bool) -> list[int]:
        """What stands before the text of a window.

        Args:
            language: a code of `languages`; None for a model that knows no languages, and no tasks then.
            task: one of `TASKS`.
            with_timestamps: whether timestamps are to be written.

        Raises:
            OptionError: there is no such language or task.
        """
        tokens = [self.start]
        if language is not None:
            tokens.append(self.language(language))
        if task not in self.tasks:
            raise OptionError("a speech model has no such task", found=repr(task), expected=" or ".join(self.tasks))
        if language is not None:
            tokens.append(self.tasks[task])
        elif task != "transcribe":
            raise OptionError("this model knows one language", found=repr(task), expected="the task transcribe")
        return tokens if with_timestamps else [*tokens, self.no_timestamps]

    def language(self, code: str) -> int:
        """The token of a language.

        Raises:
            OptionError: the model does not know it.
        """
        if code not in self.languages:
            raise OptionError(
                "the model does not know this language", found=repr(code), expected=", ".join(sorted(self.languages))
            )
        return self.languages[code]


def speech_tokens(tokenizer: Tokenizer, vocab_size: int) -> SpeechTokens:
    """The control tokens of a vocabulary.

    Raises:
        TokenizerError: one is missing, or lies beyond the logits of the model.
    """
    ids: dict[str, int] = {
        token.content: number for number, token in tokenizer.backend.get_added_tokens_decoder().items()
    }

    def find(*names: str) -> int:
        found = next((ids[name] for name in names if name in ids), None)
        if found is None or found >= vocab_size:
            raise TokenizerError(
                "the vocabulary lacks a control token of speech models",
                found=f"no {names[0]} below {vocab_size}",
                fix="use the tokenizer.json that belongs to the model",
            )
        return found

    end, start, no_timestamps = find("<|endoftext|>"), find("<|startoftranscript|>"), find("<|notimestamps|>")
    silence = ("<|nospeech|>", "<|nocaptions|>")
    no_speech = find(*silence) if any(name in ids for name in silence) else None
    tasks = {task: find(f"<|{task}|>") for task in TASKS}
    previous = find("<|startofprev|>")
    languages = {
        match[1]: number
        for text, number in ids.items()
        if (match := _LANGUAGE.fullmatch(text)) and start < number < min(tasks.values())
    }
    control = {start, previous, *tasks.values(), *([ids["<|startoflm|>"]] if "<|startoflm|>" in ids else [])}
    control |= {no_speech} if no_speech is not None else set()
    if no_timestamps + 1 >= vocab_size:
        raise TokenizerError("the vocabulary has no timestamps", found=f"{vocab_size} tokens")
    return SpeechTokens(
        end, start, previous, no_speech, no_timestamps, no_timestamps + 1, tasks, languages, frozenset(control)
    )
