"""A loaded encoder: what `rlx.load` returns for a model that makes vectors of texts, or scores pairs of them.

In: texts. Out: float32 vectors (`embed`), scores or a ranking (`rerank`). Texts are tokenised, sorted by length and
packed side by side, without padding, up to a budget of tokens for each run of the program; a text's vector does not
depend on the others. Next: `load.py`, which makes one; `rlx/hir/derive_packed.py`, the program it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError, OptionError, RlxError
from rlx.io.tokenizer import Tokenizer, TypedTokens
from rlx.models.recipe import EncoderRecipe
from rlx.runtime.executable import Executable
from rlx.runtime.loaded_model import LoadedModel

Vectors = NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with how many texts are done, and how many there are."""

TOKENS_AT_ONCE = 512
"""Rows of one run: enough for whole tiles on all threads, few enough for activations to stay in the caches."""
TEXTS_AT_ONCE = 4096
"""Texts that are tokenised and sorted together, so that any number of them takes bounded memory."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document of a ranking: where it stood in the list, and its score."""

    index: int
    score: float


class Encoder(LoadedModel):
    """An encoder ready to run. Use it as a context manager, or call `close`.

    Args:
        name: what the model is called.
        executable: the packed program; the encoder closes it.
        tokenizer: text to tokens.
        recipe: what it was made from; pooling, prompts and lengths are in `recipe.settings`.
        info: facts to show (architecture, parameters, precision, ...).
    """

    kind = "an encoder"

    def __init__(
        self, name: str, executable: Executable, tokenizer: Tokenizer, recipe: EncoderRecipe, info: Mapping[str, object]
    ) -> None:
        self.name, self.tokenizer, self.info = name, tokenizer, dict(info)
        self._executable, self._recipe, self._is_closed = executable, recipe, False
        settings = recipe.settings
        self.prompts, self.default_prompt = dict(settings.prompts), settings.default_prompt
        self.max_tokens = settings.max_tokens or 1

    @property
    def executable(self) -> Executable:
        """The compiled packed program."""
        return self._executable

    @property
    def width(self) -> int:
        """Elements of a vector; scores of a text or pair where the model classifies."""
        return self._recipe.width

    @property
    def vocab_size(self) -> int:
        """Rows of the table of tokens."""
        return self._recipe.vocab_size

    @property
    def embeds(self) -> bool:
        """Whether the model makes vectors; else it scores."""
        return not self._recipe.labels

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        progress: Progress | None = None,
    ) -> Vectors:
        """A vector for each text, `float32 [texts, width]`.

        Args:
            texts: any number of texts; one that is longer than the model's limit is cut, as sentence-transformers does.
            prompt: put before each text, in place of the model's default prompt.
            prompt_name: the model's prompt of this name.
            progress: called after each run of the program.

        Raises:
            InputError: this is one string, a text is none, or the model scores pairs.
            OptionError: the model has no such prompt.
        """
        if not self.embeds:
            raise InputError("this model scores texts and makes no vectors", where=self.name, fix="use rerank")
        before = self._prompt(prompt, prompt_name)
        checked = _checked_texts(texts)
        return self._run([before + text for text in checked] if before else checked, progress)

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        progress: Progress | None = None,
    ) -> Vectors:
        """The scores of pairs of texts before any function, `float32 [pairs, labels]`.

        Args:
            pairs: any number of pairs of texts.
            prompt, prompt_name: as for `embed`; put before the first text of each pair.
            progress: called after each run of the program.

        Raises:
            InputError: a text is none, or the model makes vectors.
            OptionError: the model has no such prompt.
        """
        if self.embeds:
            raise InputError("this model makes vectors and scores no pairs", where=self.name, fix="use embed")
        before = self._prompt(prompt, prompt_name)
        return self._run([(before + first, second) for first, second in pairs], progress)

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        progress: Progress | None = None,
    ) -> list[Ranked]:
        """The documents by how well they answer the query, best first; of equal scores the earlier one first.

        Args:
            query: the question.
            documents: what may answer it.
            top: how many to give; None for all.
            prompt, prompt_name: as for `embed`; put before the query.
            progress: called after each run of the program.

        Raises:
            InputError: a text is none, or the model makes vectors or more than one score.
            OptionError: `top` is not positive, or the model has no such prompt.
        """
        if self._recipe.labels > 1:
            raise InputError("a ranking needs one score for a pair", found=self._recipe.labels, fix="use scores")
        if top is not None and top < 1:
            raise OptionError("a ranking has at least one document", found=top, expected="1 or more")
        pairs = [(query, document) for document in _checked_texts(documents)]
        scores = self.scores(pairs, prompt=prompt, prompt_name=prompt_name, progress=progress)[:, 0]
        if self._recipe.score_function == "sigmoid":
            scores = (1.0 / (1.0 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        order = np.argsort(-scores, kind="stable")[:top]
        return [Ranked(int(index), float(scores[index])) for index in order]

    def run_tokens(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """Vectors, or scores, of texts that are token ids already, `float32 [texts, width]`; all of token type 0.

        Args:
            texts: of at most `max_tokens` ids each, the model's special tokens among them.

        Raises:
            InputError: a text has no token or too many, or an id is not the vocabulary's.
        """
        longest = max(map(len, texts), default=0)
        if longest > self.max_tokens:
            raise InputError(
                "a text is longer than the model takes", found=longest, expected=f"up to {self.max_tokens}"
            )
        result = np.empty((len(texts), self.width), np.float32)
        self._run_batches([TypedTokens(list(ids), [0] * len(ids)) for ids in texts], result, lambda count: None)
        return result

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None and name is not None:
            raise OptionError("a prompt is given by its text or by its name", found="both")
        if prompt is not None:
            return prompt
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise OptionError(
                "the model has no such prompt", found=repr(name), expected=", ".join(self.prompts) or "no prompts"
            )
        return self.prompts[name]

    def _run(self, texts: Sequence[str | tuple[str, str]], progress: Progress | None) -> Vectors:
        result = np.empty((len(texts), self.width), np.float32)
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, len(texts))

        for first in range(0, len(texts), TEXTS_AT_ONCE):
            part = slice(first, first + TEXTS_AT_ONCE)
            self._run_batches(self.tokenizer.encode_batch(texts[part], self.max_tokens), result[part], add)
        return result

    def _run_batches(self, texts: Sequence[TypedTokens], result: Vectors, add: Callable[[int], None]) -> None:
        """Run the program over `texts`; `add` is told how many more are done after each run."""
        if self._is_closed:
            raise RlxError("the model is closed", where=self.name, fix="load it again")
        texts = [self._finished(text) for text in texts]
        for batch in batches([len(text.ids) for text in texts]):
            result[batch] = self._executable(**self._packed([texts[index] for index in batch]))["output"]
            add(len(batch))

    def _finished(self, text: TypedTokens) -> TypedTokens:
        """The tokens that the program reads: up to the end token, or padded, where the model was trained so."""
        end, pad, ids = self._recipe.end_token, self._recipe.pad_token, text.ids
        if end is not None and ids:
            end = max(ids) if end < 0 else end
            if end not in ids:
                raise InputError("a text without its end token has no vector", found=ids[:8], expected=f"token {end}")
            ids = ids[: ids.index(end) + 1]
        if pad is not None:
            ids = ids + [pad] * (self.max_tokens - len(ids))
        return text if ids is text.ids else TypedTokens(ids, [0] * len(ids))

    def _packed(self, texts: Sequence[TypedTokens]) -> dict[str, NDArray[np.int32]]:
        """The inputs of the program for texts side by side."""
        lengths = [len(text.ids) for text in texts]
        if not all(lengths):
            raise InputError("a text without a token has no vector", fix="leave empty texts out")
        bounds = np.zeros(len(texts) + 1, np.int32)
        bounds[1:] = np.cumsum(lengths)
        inputs: dict[str, NDArray[np.int32]] = {
            "tokens": np.array([token for text in texts for token in text.ids], np.int32),
            "positions": np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            "bounds": bounds,
        }
        if self._recipe.token_types:
            last = self._recipe.token_types - 1
            inputs["token_types"] = np.array([min(kind, last) for text in texts for kind in text.types], np.int32)
        return inputs

    def close(self) -> None:
        """Give back memory and threads; calling it twice is allowed."""
        if not self._is_closed:
            self._is_closed = True
            self._executable.close()

    def __repr__(self) -> str:
        facts = [f"{key} {value}" for key, value in self.info.items() if isinstance(value, str | int)]
        return f"<rlx.Encoder {self.name}: {', '.join(facts)}{', closed' if self._is_closed else ''}>"


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts, longest first, in runs of at most `TOKENS_AT_ONCE` tokens (or one text)."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and tokens + lengths[index] > TOKENS_AT_ONCE:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def _checked_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError("a batch is a list of texts", found="one string", fix="pass [text]")
    return list(texts)
