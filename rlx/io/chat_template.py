"""A conversation to the text a model was trained on, by the template that came with the model.

In goes the template's source, out comes a `ChatTemplate` whose `render` takes messages. Rendering follows
`apply_chat_template` of transformers; the source runs in the sandbox of `template_sandbox.py`.
Next: `rlx/runtime/generate.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rlx.errors import ChatTemplateError, FileFormatError
from rlx.io.checkpoint import Checkpoint
from rlx.io.json_file import read_object_if_present

MAX_SOURCE_CHARACTERS = 1_000_000


class ChatTemplate:
    """A parsed chat template.

    Attributes:
        source: the template's text.
    """

    def __init__(self, source: str, bos_token: str | None = None, eos_token: str | None = None) -> None:
        """Parse a template.

        Args:
            source: Jinja text.
            bos_token, eos_token: what the template's variables of these names hold; None leaves them undefined.

        Raises:
            ChatTemplateError: the source does not parse or is too long.
        """
        from jinja2 import TemplateError

        from rlx.io.template_sandbox import TemplateSandbox

        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError(
                "the chat template is too long", found=f"{len(source)} characters", expected=MAX_SOURCE_CHARACTERS
            )
        self.source = source
        self._tokens = {
            name: token for name, token in (("bos_token", bos_token), ("eos_token", eos_token)) if token is not None
        }
        self._lock = threading.Lock()
        self._sandbox = TemplateSandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except (TemplateError, RecursionError, SyntaxError, OverflowError, MemoryError) as error:
            raise ChatTemplateError("the chat template does not parse", found=_reason(error)) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with "role" and "content", and whatever else the template reads.
            add_generation_prompt: end with what makes the model answer.
            tools: descriptions of the functions the model may call.
            extra: further variables of the template, such as `enable_thinking`.

        Raises:
            ChatTemplateError: the template refuses the conversation, fails, or exceeds its bounds.
        """
        from rlx.io.template_sandbox import Budget

        variables = {**self._tokens, "messages": list(messages), "tools": tools, "documents": None, **extra}
        with self._lock:
            self._sandbox.budget = Budget()
            try:
                return self._template.render(add_generation_prompt=add_generation_prompt, **variables)
            except Exception as error:  # the template is foreign code and may raise anything
                raise ChatTemplateError(
                    "the chat template refuses this conversation",
                    found=_reason(error),
                    fix="check the roles and their order against the template (rlx inspect shows it)",
                ) from None


def chat_template_from(checkpoint: Checkpoint) -> ChatTemplate:
    """The chat template of an opened model file or folder.

    Raises:
        ChatTemplateError: there is none, or it does not parse.
    """
    template = find_template(checkpoint)
    if template is None:
        raise ChatTemplateError(
            "the model has no chat template",
            where=str(checkpoint.path),
            fix="use an instruction-tuned model, or generate from a plain prompt",
        )
    return template.parsed()


class UnparsedTemplate:
    """The template of a model before anyone chats with it: it is parsed when it is first rendered.

    Most runs only generate, and the template engine takes longer to import than the template to parse.

    Attributes:
        parts: the arguments of `ChatTemplate`.
    """

    def __init__(self, source: str, bos_token: str | None, eos_token: str | None) -> None:
        self.parts = (source, bos_token, eos_token)
        self._template: ChatTemplate | None = None

    def parsed(self) -> ChatTemplate:
        """The template.

        Raises:
            ChatTemplateError: it does not parse.
        """
        if self._template is None:
            self._template = ChatTemplate(*self.parts)
        return self._template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **extra: Any,
    ) -> str:
        """See `ChatTemplate.render`."""
        return self.parsed().render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **extra)


def find_template(checkpoint: Checkpoint) -> UnparsedTemplate | None:
    """The chat template of an opened model file or folder; None if it has none."""
    found = _gguf_template(checkpoint) if checkpoint.kind == "gguf" else _folder_template(checkpoint.path)
    source, bos_token, eos_token = found
    return None if source is None else UnparsedTemplate(source, bos_token, eos_token)


def _gguf_template(checkpoint: Checkpoint) -> tuple[str | None, str | None, str | None]:
    metadata = checkpoint.metadata
    source = metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return None, None, None
    tokens = cast(Sequence[str], metadata.get("tokenizer.ggml.tokens", ()))

    def token(role: str) -> str | None:
        # The token's text is read only if the template uses it: decoding a vocabulary takes time.
        index = metadata.get(f"tokenizer.ggml.{role}_token_id") if f"{role}_token" in source else None
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None

    return source, token("bos"), token("eos")


def _folder_template(folder: Path) -> tuple[str | None, str | None, str | None]:
    config = read_object_if_present(folder / "tokenizer_config.json")
    special = read_object_if_present(folder / "special_tokens_map.json")
    source = _template_file(folder)
    if source is None:
        source = _named_default(config.get("chat_template"))
    if source is None:
        source = _named_default(read_object_if_present(folder / "chat_template.json").get("chat_template"))

    def token(role: str) -> str | None:
        value = config.get(role, special.get(role))
        text = cast(dict[str, object], value).get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) else None

    return source, token("bos_token"), token("eos_token")


def _template_file(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > 4 * MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError("the chat template is too long", where=str(path))
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError("the chat template cannot be read", where=str(path), found=str(error)) from None


def _named_default(value: object) -> str | None:
    """A template as a string, or the one called "default" of a list of named ones."""
    if isinstance(value, list):
        for entry in cast(list[Any], value):
            if isinstance(entry, dict) and cast(dict[str, Any], entry).get("name") == "default":
                value = cast(dict[str, Any], entry).get("template")
    return value if isinstance(value, str) else None


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:500]
