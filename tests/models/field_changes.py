"""Changing every field of a configuration, to see which ones change nothing.

In: a configuration, and whether a changed one gives what the plain one gave. Out: the fields that were ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

# Numbers of a table of RoPE parameters that round to the same angles, or lie beyond the context RLX allows; and what in
# a table of a whole model the field of this name outside of it says.
FINE = ("beta_fast", "beta_slow", "long_factor", "tie_word_embeddings")


def changed(value: object) -> list[Any]:
    """Other values of the same kind."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value + 2]
    if isinstance(value, float):
        return [value * 1.5 + 0.25]
    if isinstance(value, str):
        return ["gelu" if value != "gelu" else "silu", "something else"]
    if isinstance(value, list):
        return [value[1:] + value[:1], value[:-1]] if len(set(map(str, value))) > 1 else [value[:-1]]
    return [7]


def attempts(value: object, harmless: Collection[str]) -> list[list[Any]]:
    """Groups of other values; each number inside a table has a group of its own."""
    if not isinstance(value, dict):
        return [changed(value)]
    return [
        [{**value, key: other} for other in group]
        for key, inner in value.items()
        if key not in (*FINE, *harmless)
        for group in attempts(inner, harmless)
    ]


def ignored_fields(
    config: dict[str, Any], harmless: Collection[str], is_the_same: Callable[[dict[str, Any]], bool]
) -> set[str]:
    """Fields of which no other value changes anything, but for the harmless ones."""
    ignored: set[str] = set()
    for field, value in config.items():
        if field in harmless and field != "architectures":
            continue
        for group in attempts(value, harmless):
            others = [other for other in group if other != []]
            if others and all(is_the_same({**config, field: other}) for other in others):
                ignored.add(field)
    return ignored
