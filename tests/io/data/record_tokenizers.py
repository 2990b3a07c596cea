"""Makes tokenizers.json, variants.json and smollm2.json anew: reference token ids for small texts.

    python -m tests.io.data.record_tokenizers LLAMA_CPP/models SmolLM2-135M-Instruct.Q4_1.gguf

tokenizers.json: the references are the `.inp` and `.out` files beside the vocabulary-only GGUFs of llama.cpp, which
hold texts and the ids that the Hugging Face tokenizer of each model gave. A whole vocabulary is megabytes; kept here
are the entries that occur in the texts and the merges among them, in their order, so that every decision a tokenizer
takes on these texts is the same. Ids are renumbered. The GGUFs are read with the `gguf` package.

encoders.json: the same for the vocabularies of encoders, WordPiece and unigram; the answers for the latter, which lies
there without any, are llama.cpp's.

variants.json: llama.cpp itself (through llama-cpp-python, of the `references` extra) on GPT-2's vocabulary under other
names of the pre-tokenizer. smollm2.json: llama.cpp on the default model, all of its ids.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from gguf import GGUFReader

from rlx.io.byte_level import BYTE_TO_CHARACTER
from tests.io.gguf_writer import write_gguf

VOCABULARIES = (
    ("gpt-2", "llama-bpe", "qwen2", "qwen35", "falcon", "deepseek-coder", "starcoder", "command-r"),
    ("llama-spm", "phi-3"),
)
SEPARATOR = "\n__ggml_vocab_test__\n"
TYPES_KEPT = (2, 3, 4, 6)


MORE_TEXTS = (
    "<|im_start|>user\nWhat's 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, there were 365 days; naïve café — “quoted” text…",
    "def f(x):\n    return x**2  # squared\n\n\n",
    "1234567890 12,345.67 ½ ²³ ①",
    "a\u0301e\u0301 ｆｕｌｌ　ｗｉｄｔｈ",
    " \t \n leading",
    "trailing   ",
    "don't I'LL we'Ve O'Neil'd",
)
# One name of each family without a vocabulary of its own above.
VARIANTS = ("default", "llama-bpe", "deepseek-r1-qwen", "deepseek-v3", "tekken", "gpt-4o", "chatglm-bpe", "glm4")


def record(path: Path, byte_level: bool, texts: list[str], answers: list[list[int]]) -> dict[str, object]:
    fields = GGUFReader(path).fields
    tokens, types = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.token_type"].contents()
    if byte_level:
        haystack = "\n".join("".join(BYTE_TO_CHARACTER[byte] for byte in text.encode()) for text in texts)
    else:
        haystack = "\n".join(text.replace(" ", "\u2581") for text in ["", *texts, *(" " + text for text in texts)])
    used = {token_id for answer in answers for token_id in answer}
    kept = [
        index
        for index, token in enumerate(tokens)
        if index in used or token in haystack or (len(token) == 1 if byte_level else types[index] == 6)
    ]
    number = {old: new for new, old in enumerate(kept)}
    names = {tokens[old] for old in kept}
    result: dict[str, object] = {
        "model": "gpt2" if byte_level else "llama",
        "pre": fields["tokenizer.ggml.pre"].contents(),
        "tokens": [tokens[old] for old in kept],
        "token_type": [types[old] for old in kept],
        "cases": [[text, [number[old] for old in answer]] for text, answer in zip(texts, answers, strict=False)],
    }
    if byte_level:
        merges = fields["tokenizer.ggml.merges"].contents()
        result["merges"] = [merge for merge in merges if {*merge.split(" "), merge.replace(" ", "")} <= names]
    else:
        scores = fields["tokenizer.ggml.scores"].contents()
        result["scores"] = [scores[old] for old in kept]
    return result


def record_encoder(path: Path, texts: list[str], answers: list[list[int]]) -> dict[str, object]:
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    fields = GGUFReader(path).fields
    prefix = "tokenizer.ggml."
    values = {key.removeprefix(prefix): f.contents() for key, f in fields.items() if key.startswith(prefix)}
    tokens, types = values["tokens"], values["token_type"]
    if values["model"] == "bert":
        split = BertPreTokenizer()
        words = [word for text in texts for word, _ in split.pre_tokenize_str(BertNormalizer().normalize_str(text))]
    else:
        words = [word for text in texts for word in text.split()]
    haystack = "\n".join("\u2581" + word for word in words)
    used = {token_id for answer in answers for token_id in answer}
    # the lowest score says what an unknown character costs
    lowest = {min(range(len(tokens)), key=values["scores"].__getitem__)} if "scores" in values else set[int]()
    kept = [i for i, token in enumerate(tokens) if i in used | lowest or types[i] in TYPES_KEPT or token in haystack]
    number = {old: new for new, old in enumerate(kept)}
    named = {key: number[value] for key, value in values.items() if key.endswith("_token_id") and value in number}
    lists = {key: [values[key][old] for old in kept] for key in ("tokens", "token_type", "scores") if key in values}
    flags = {key: value for key, value in values.items() if isinstance(value, bool | str)}
    cases = [[text, [number[old] for old in answer]] for text, answer in zip(texts, answers, strict=False)]
    return {**flags, **named, **lists, "cases": cases}


def published(path: Path, byte_level: bool) -> dict[str, object]:
    texts = Path(f"{path}.inp").read_bytes().decode().split(SEPARATOR)
    answers = [[int(word) for word in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    return record(path, byte_level, texts, answers)


def asked(path: Path, texts: list[str]) -> list[list[int]]:
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    model = Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def variant(path: Path, name: str, texts: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        fields = {key: field.contents() for key, field in GGUFReader(path).fields.items() if "GGUF." not in key}
        renamed = write_gguf(Path(folder) / "renamed.gguf", fields | {"tokenizer.ggml.pre": name})
        return record(renamed, True, texts, asked(renamed, texts))


def save(name: str, content: Mapping[str, object]) -> None:
    lines = [f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in content.items()]
    Path(__file__).with_name(name).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main(folder: Path, smollm2: Path) -> None:
    by_name = {
        name: published(folder / f"ggml-vocab-{name}.gguf", byte_level)
        for names, byte_level in zip(VOCABULARIES, (True, False), strict=True)
        for name in names
    }
    save("tokenizers.json", by_name)
    texts = (folder / "ggml-vocab-gpt-2.gguf.inp").read_bytes().decode().split(SEPARATOR) + list(MORE_TEXTS)
    save("smollm2.json", {"cases": [list(case) for case in zip(texts, asked(smollm2, texts), strict=True)]})
    bert, xlm_roberta = (folder / f"ggml-vocab-{name}.gguf" for name in ("bert-bge", "nomic-bert-moe"))
    answers = [[int(word) for word in line.split()] for line in Path(f"{bert}.out").read_text().split("\n")]
    texts = Path(f"{bert}.inp").read_bytes().decode().split(SEPARATOR)
    encoders = {"bert-bge": record_encoder(bert, texts, answers)}
    with tempfile.TemporaryDirectory() as place:
        fields = {key: field.contents() for key, field in GGUFReader(xlm_roberta).fields.items() if "GGUF." not in key}
        del fields["tokenizer.ggml.precompiled_charsmap"]  # as large as all the rest
        plain = write_gguf(Path(place) / "plain.gguf", fields)
        encoders["xlm-roberta"] = record_encoder(plain, texts, asked(plain, texts))
    save("encoders.json", encoders)
    gpt2 = folder / "ggml-vocab-gpt-2.gguf"
    entries = {name: variant(gpt2, name, texts) for name in VARIANTS}
    # The vocabulary is the same for all, so it is kept once.
    shared = {key: entries[VARIANTS[0]][key] for key in ("model", "tokens", "token_type", "merges")}
    save("variants.json", shared | {"cases": {name: entry["cases"] for name, entry in entries.items()}})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
