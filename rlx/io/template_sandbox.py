"""A Jinja environment for templates nobody has reviewed: what transformers offers, with bounds on work and size.

A chat template comes with a model file and runs as code. Jinja's immutable sandbox keeps it away from attributes and
files; this adds a budget. The template's syntax tree is rewritten so that every loop step, every piece of output and
every concatenation is counted, and calls and operators that could build something huge are checked before they run.
Used by `chat_template.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, cast

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context

MAX_STEPS = 1_000_000  # of one rendering: about a second
CALL_COST = 10  # steps
MAX_CHARACTERS = 8_000_000  # of one string, and of the whole result
MAX_NUMBER = 1_000_000  # a width, a repetition, a count

_STEP_FILTER, _TEXT_FILTER = "rlx_each", "rlx_text"
_WIDE_FIELD = re.compile(r"\d{7,}")


class Budget:
    """What one rendering has used."""

    def __init__(self) -> None:
        self.steps = 0
        self.characters = 0

    def step(self, cost: int = 1) -> None:
        """Count one loop step, or a call, which takes as long as `CALL_COST` of them."""
        self.steps += cost
        if self.steps > MAX_STEPS:
            raise SecurityError(f"the template takes more than {MAX_STEPS} steps")

    def text(self, value: Any) -> str:
        """Count a piece of text."""
        text = str(value)
        self.characters += len(text)
        if self.characters > MAX_CHARACTERS:
            raise SecurityError(f"the template builds more than {MAX_CHARACTERS} characters")
        return text


class GenerationTag(Extension):
    """`{% generation %}` marks what the assistant says, for training; here the body is rendered as it is."""

    tags = frozenset(("generation",))  # pyright: ignore[reportAssignmentType]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Give the body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment; `budget` is replaced before each rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, LoopControlExtension])
        self.budget = Budget()
        names = cast(dict[str, object], self.globals)  # pyright: ignore[reportUnknownMemberType]
        names.pop("lipsum", None)  # filler text without bounds, of no use here
        names.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        filters = cast(dict[str, Callable[..., Any]], self.filters)  # pyright: ignore[reportUnknownMemberType]
        for name in list(filters):
            filters[name] = _checked_filter(self, name, filters[name])
        filters.update({"tojson": _to_json, _STEP_FILTER: _each, _TEXT_FILTER: _text})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _count_work(super()._parse(source, name, filename))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Call a function or method of the template."""
        self.budget.step(CALL_COST)
        _check_arguments(getattr(obj, "__name__", ""), getattr(obj, "__self__", None), args, kwargs)
        return _check_result(super().call(context, obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Give the safe form of `str.format`, which hides the string it belongs to from `call`."""
        owner = getattr(value, "__self__", None)
        if isinstance(owner, str) and getattr(value, "__name__", "") in ("format", "format_map"):
            _check_arguments("format", owner, (), {})
        return super().wrap_str_format(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply `+`, `*`, `**` or `%`."""
        if operator in ("*", "**"):
            for value, other in ((left, right), (right, left)):
                size = max(_size(value), 1)
                if isinstance(other, int) and (abs(other) > MAX_NUMBER or size * other > MAX_CHARACTERS):
                    raise SecurityError("the template multiplies by too large a number")
            if operator == "**" and isinstance(right, int | float) and abs(right) > 64:
                raise SecurityError("the template raises to too large a power")
        if operator == "%" and isinstance(left, str):
            _check_arguments("format", left, cast(tuple[Any, ...], right) if isinstance(right, tuple) else (right,), {})
        return _check_result(super().call_binop(context, operator, left, right))


def _count_work(tree: nodes.Template) -> nodes.Template:
    """Send loop sources through the step filter, and output and concatenations through the text filter."""

    def through(node: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    for loop in list(tree.find_all(nodes.For)):
        loop.iter = through(cast(nodes.Expr, loop.iter), _STEP_FILTER)
    for output in list(tree.find_all(nodes.Output)):
        output.nodes = [
            through(
                nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node,
                _TEXT_FILTER,
            )
            for node in output.nodes
        ]
    _wrap_concatenations(tree, through)
    return tree


def _wrap_concatenations(node: nodes.Node, through: Callable[[nodes.Expr, str], nodes.Filter]) -> None:
    for field, value in list(node.iter_fields()):
        items: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if not isinstance(item, nodes.Node):
                continue
            _wrap_concatenations(item, through)
            if isinstance(item, nodes.Concat):
                items[index] = through(item, _TEXT_FILTER)
        setattr(node, field, items if isinstance(value, list) else items[0])


def _check_arguments(name: str, owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse calls whose result could be far larger than what they are given."""
    values = [*args, *kwargs.values()]
    if any(isinstance(value, int) and abs(value) > MAX_NUMBER for value in values) and name != _STEP_FILTER:
        raise SecurityError(f"the template calls {name or 'a function'} with too large a number")
    if name in ("format", "format_map"):
        texts = [owner, *(value for value in values if isinstance(value, str) and value.isdecimal())]
        if any(_WIDE_FIELD.search(str(text)) for text in texts):
            raise SecurityError("the template formats a field that is too wide")
    if name in ("replace", "do_replace") and len(args) >= 2:
        text, old, new = (owner, *args[:2]) if isinstance(owner, str) else (*args[:3], "", "")[:3]
        if str(text).count(str(old)) * len(str(new)) > MAX_CHARACTERS:
            raise SecurityError("the template replaces too much")
    if name == "join":
        separator, items = (owner, args[:1]) if isinstance(owner, str) else ("".join(map(str, args[1:2])), args[:1])
        parts: list[Any] = list(cast(Iterable[Any], items[0])) if items and isinstance(items[0], list | tuple) else []
        if sum(len(part) for part in parts if isinstance(part, str)) + len(separator) * len(parts) > MAX_CHARACTERS:
            raise SecurityError("the template joins too much")


def _check_result(value: Any) -> Any:
    if _size(value) > MAX_CHARACTERS:
        raise SecurityError(f"the template builds more than {MAX_CHARACTERS} characters")
    return value


def _size(value: Any) -> int:
    """The length of a string or sequence, 0 for anything else."""
    return len(cast(str, value)) if isinstance(value, (str, bytes, list, tuple)) else 0


def _checked_filter(sandbox: TemplateSandbox, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with its arguments and result checked; it keeps Jinja's mark of what it is passed first."""
    skip = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    def checked(*args: Any, **kwargs: Any) -> Any:
        sandbox.budget.step(CALL_COST)
        _check_arguments(name, None, args[skip:], kwargs)
        return _check_result(function(*args, **kwargs))

    checked.__dict__.update(getattr(function, "__dict__", {}))
    return checked


def _budget(context: Context) -> Budget:
    environment: Environment = context.environment
    return cast(TemplateSandbox, environment).budget


@pass_context
def _each(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    budget = _budget(context)
    for item in items:
        budget.step()
        yield item


@pass_context
def _text(context: Context, value: Any) -> str:
    return _budget(context).text(value)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: plain JSON, without the HTML escapes of Jinja's own filter."""
    if isinstance(indent, int) and indent > 64:
        raise SecurityError("the template indents JSON too far")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
