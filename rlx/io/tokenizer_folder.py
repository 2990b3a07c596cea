"""Builds a `Tokenizer` from a Hugging Face folder.

tokenizer.json says how text becomes ids; tokenizer_config.json, special_tokens_map.json, generation_config.json and
config.json say which tokens begin and end a text. Source: the file formats of `tokenizers` and `transformers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from rlx.errors import TokenizerError
from rlx.io.json_file import read_object_if_present
from rlx.io.tokenizer import END_OF_TURN, Tokenizer, TokenizerFacts, TokenStyle


def build(folder: Path) -> Tokenizer:
    """The tokenizer of a folder; see `tokenizer.tokenizer_from_folder`."""
    backend = _load(folder / "tokenizer.json")
    added = backend.get_added_tokens_decoder()
    special = frozenset(token_id for token_id, token in added.items() if token.special)
    files = [
        read_object_if_present(folder / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
    ]
    bos_ids, eos_ids = _named_ids(backend, files, "bos"), _named_ids(backend, files, "eos")
    eos_ids |= {token_id for token_id in special if added[token_id].content in END_OF_TURN}
    style, leading_space = _style(backend)
    return Tokenizer(
        backend,
        TokenizerFacts(
            style=style,
            bos_id=min(bos_ids, default=None),
            eos_ids=frozenset(eos_ids),
            special_ids=special,
            added_ids=frozenset(added),
            post_process=True,
            leading_space=leading_space,
            token_types=_gives_token_types(files[0]),
        ),
    )


# Classes of transformers that stand for a tokenizer.json as it is; from version 5 on they give no token types.
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


def _gives_token_types(config: dict[str, Any]) -> bool:
    """Whether transformers passes on the types that the post-processor gives: what the file says, or the class does."""
    names = config.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return config.get("tokenizer_class") not in _PLAIN_CLASSES


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    if not path.is_file():
        raise TokenizerError(
            "the folder has no tokenizer.json",
            where=str(path.parent),
            fix="save the tokenizer with a fast tokenizer of transformers, which writes this file",
        )
    try:
        backend = Backend.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and a panic that is none
        raise TokenizerError("tokenizer.json cannot be used", where=str(path), found=str(error)[:200]) from None
    # Truncation and padding belong to a training run that was saved; a text is encoded whole.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _named_ids(backend: Any, files: list[dict[str, Any]], role: str) -> set[int]:
    """Ids of a role ("bos", "eos"): by the token's text in one file, by number in another."""
    ids: set[int] = set()
    for content in files:
        token = content.get(f"{role}_token")
        text = cast(dict[str, Any], token).get("content") if isinstance(token, dict) else token
        found = backend.token_to_id(text) if isinstance(text, str) else None
        if found is not None:
            ids.add(found)
        number = content.get(f"{role}_token_id")
        numbers = cast(list[Any], number) if isinstance(number, list) else [number]
        ids.update(value for value in numbers if type(value) is int and value >= 0)
    return ids


def _style(backend: Any) -> tuple[TokenStyle, bool]:
    """How vocabulary entries spell bytes, and whether decoding takes one leading space away."""
    description: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    parts = cast(list[dict[str, Any]], description.get("decoders", [description]))
    kinds = {part.get("type") for part in parts}
    if "ByteLevel" in kinds:
        return "byte_level", False
    if "WordPiece" in kinds:
        return "wordpiece", True
    strips = any(part.get("type") == "Strip" and part.get("content") == " " and part.get("start") for part in parts)
    metaspace = any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never" for part in parts
    )
    return "sentencepiece", strips or metaspace
