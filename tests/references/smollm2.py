# pyright: basic, reportMissingImports=false
"""Record what SmolLM2-135M-Instruct (Q4_1 GGUF, dequantised to float32) answers under transformers.

In: the GGUF file and botchan.txt. Out: smollm2.json and smollm2.npz. Run
`python -m tests.references.smollm2 FILE.gguf botchan.txt` with the `references` extra installed. Next: `load.py`.

Token ids come from llama.cpp, because the file names the pre-tokenizer "smollm" (numerals one by one), which the
conversion from GGUF in transformers leaves out (it differs on numerals beyond ASCII); chat templates are rendered by
transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from tests.references.botchan_text import read_text
from tests.references.kl import log_sum_exp
from tests.references.recording import write
from tests.references.smollm2_model import SHA256, load_llama_cpp, load_reference, load_tokenizer, logits_of, tokenize
from tests.references.smollm2_texts import CONVERSATIONS, PROMPTS, TOKENIZER_TEXTS

TOP = 32
GREEDY_TOKENS = 32
BOTCHAN_TOKENS = 200
SMALLEST_MARGIN = 4e-3  # two logits that each move by the bar of 2e-3 cannot change places


def greedy(model: LlamaForCausalLM, ids: list[int], count: int) -> tuple[list[int], float]:
    """The `count` most likely next tokens (an end token does not stop it), and the smallest lead of a best one."""
    result: list[int] = []
    margin = float("inf")
    with torch.no_grad():
        output = model(torch.tensor([ids]), use_cache=True)
        for _ in range(count):
            best = output.logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            result.append(int(best.indices[0]))
            output = model(best.indices[None, :1], cache=output.cache, use_cache=True)
    return result, margin


def prompt_answer(model: LlamaForCausalLM, ids: list[int]) -> tuple[dict[str, NDArray[Any]], float]:
    """ids, greedy, last_logits [vocab], top_ids and top_logits [tokens, 32], log_sum_exp [tokens]; and the margin.

    Raises:
        RuntimeError: a greedy step is too close to call for a test.
    """
    continuation, margin = greedy(model, ids, GREEDY_TOKENS)
    if margin < SMALLEST_MARGIN:
        raise RuntimeError(f"a greedy step is decided by {margin}; change the prompt")
    logits = logits_of(model, ids)
    top = np.argsort(-logits, axis=-1, kind="stable")[:, :TOP]
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array(ids, np.int32),
        "greedy": np.array(continuation, np.int32),
        "last_logits": logits[-1],
        "top_ids": top.astype(np.uint16),
        "top_logits": np.take_along_axis(logits, top, axis=-1),
        "log_sum_exp": log_sum_exp(logits),
    }
    return arrays, margin


def main() -> None:
    """Record prompts, tokenisations and rendered templates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("botchan", type=Path)
    options = parser.parse_args()
    model, llama = load_reference(options.gguf), load_llama_cpp(options.gguf, vocab_only=True)
    tokenizer = load_tokenizer(options.gguf)
    conversations: list[dict[str, Any]] = []
    for messages in CONVERSATIONS:
        for generation in (True, False):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
            conversations.append(
                {"messages": messages, "add_generation_prompt": generation, "text": text, "ids": tokenize(llama, text)}
            )
    texts = [{"text": text, "ids": tokenize(llama, text), "ids_without_special": tokenize(llama, text, special=False)}
             for text in TOKENIZER_TEXTS]  # fmt: skip
    prompts = {name: (text, tokenize(llama, text)) for name, text in PROMPTS.items()}
    prompts["chat"] = (conversations[0]["text"], conversations[0]["ids"])
    novel = tokenize(llama, read_text(options.botchan))[1000 : 1000 + BOTCHAN_TOKENS]
    prompts["botchan_200"] = (llama.detokenize(novel, special=True).decode(), novel)
    described: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for name, (text, ids) in prompts.items():
        found, margin = prompt_answer(model, ids)
        arrays |= {f"{name}.{key}": value for key, value in found.items()}
        greedy_text = llama.detokenize(found["greedy"].tolist(), special=True).decode(errors="replace")
        described.append({"name": name, "text": text, "greedy_text": greedy_text, "smallest_greedy_margin": margin})
    document = {"model_sha256": SHA256, "prompts": described, "tokenizer": texts, "conversations": conversations}
    write("smollm2", document, arrays, ["torch", "transformers", "gguf", "llama-cpp-python"])


if __name__ == "__main__":
    main()
