"""`python python_worker.py JSON`: one Python package with one model, for `python_peer.py`.

It runs in the peer's interpreter, where RLX need not be installed, so it imports the standard library and what it
measures. In: on the command line `{"library", "precision", "model", "threads"}`, on stdin a line of JSON for each run
(the fields of `Work`). Out: on stdout a line for each run, `{"seconds": ...}` or `{"error": ...}`. The first run of
each kind is done twice, and the second one counts.

Language models run through transformers (its own cache, logits of the last row only), greedily. Encoders give the last
hidden state; onnxruntime and openvino get the model as ONNX, from the folder or exported with torch.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

CHUNK = 512  # tokens of one step while a depth is filled


class Package(Protocol):
    """A package with its model loaded."""

    version: str

    def prepare(self, work: dict[str, Any]) -> Any:
        """Everything that is not timed."""
        ...

    def run(self, work: dict[str, Any], prepared: Any) -> None:
        """The timed part."""
        ...


def module(name: str) -> Any:
    """An imported package. By name: what RLX itself imports stays without them."""
    return importlib.import_module(name)


def text_rows(work: dict[str, Any]) -> Any:
    """`[sequences, tokens]` int64 token ids that every vocabulary of an encoder has."""
    numpy = module("numpy")
    return numpy.random.default_rng(0).integers(1000, 20000, (work["sequences"], work["tokens"]))


class Torch:
    """transformers on torch."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.torch, self.transformers = module("torch"), module("transformers")
        self.version = f"torch {self.torch.__version__}, transformers {self.transformers.__version__}"
        self.torch.set_num_threads(request["threads"])
        self.torch.set_grad_enabled(False)
        self.dtype = {"f32": self.torch.float32, "bf16": self.torch.bfloat16}[request["precision"]]
        self.path = Path(request["model"])
        self.model: Any = None
        self.deep: tuple[int, Any] = (0, None)

    def prepare(self, work: dict[str, Any]) -> Any:
        """Token ids, and a cache filled to the depth."""
        if work["name"] == "encode":
            self._load("AutoModel")
            ids = self.torch.from_numpy(text_rows(work))
            return {"input_ids": ids, "attention_mask": self.torch.ones_like(ids)}
        self._load("AutoModelForCausalLM")
        columns = work["tokens"] if work["name"] == "prefill" else 1
        ids = self.torch.randint(0, self.model.config.vocab_size, (work["sequences"], columns))
        return ids, self._cache(work["depth"])

    def run(self, work: dict[str, Any], prepared: Any) -> None:
        """The forward passes."""
        if work["name"] == "encode":
            _ = self.model(**prepared).last_hidden_state
            return
        ids, cache = prepared
        for _ in range(1 if work["name"] == "prefill" else work["tokens"]):
            logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(-1)

    def _cache(self, depth: int) -> Any:
        if not depth:
            return self.transformers.DynamicCache()
        if self.deep[0] != depth:
            cache = self.transformers.DynamicCache()
            for start in range(0, depth, CHUNK):
                ids = self.torch.randint(0, self.model.config.vocab_size, (1, min(CHUNK, depth - start)))
                self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.deep = depth, cache
        if grown := self.deep[1].get_seq_length() - depth:
            self.deep[1].crop(-grown)
        return self.deep[1]

    def _load(self, kind: str) -> None:
        if self.model is None:
            is_file = self.path.is_file()
            where = {"gguf_file": self.path.name} if is_file else {}
            folder = self.path.parent if is_file else self.path
            automatic = getattr(self.transformers, kind)
            self.model = automatic.from_pretrained(str(folder), dtype=self.dtype, **where).eval()


class OnnxRuntime:
    """onnxruntime, int8 by its own dynamic quantisation."""

    def __init__(self, request: dict[str, Any]) -> None:
        runtime = module("onnxruntime")
        self.version = f"onnxruntime {runtime.__version__}"
        self.folder = tempfile.TemporaryDirectory(prefix="rlx-peer-")
        path = onnx_file(Path(request["model"]), Path(self.folder.name))
        if request["precision"] == "int8":
            quantization, quantized = module("onnxruntime.quantization"), Path(self.folder.name, "int8.onnx")
            quantization.quantize_dynamic(path, quantized, weight_type=quantization.QuantType.QInt8)
            path = quantized
        options = runtime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def prepare(self, work: dict[str, Any]) -> Any:
        """The inputs by name."""
        return encoder_inputs(work, self.names)

    def run(self, work: dict[str, Any], prepared: Any) -> None:
        """One forward pass."""
        self.session.run(None, prepared)


class OpenVino:
    """openvino's CPU plugin, set up for latency on one stream."""

    def __init__(self, request: dict[str, Any]) -> None:
        openvino = module("openvino")
        self.version = f"openvino {openvino.__version__}"
        core = openvino.Core()
        with tempfile.TemporaryDirectory(prefix="rlx-peer-") as folder:
            model = core.read_model(str(onnx_file(Path(request["model"]), Path(folder))))
            options = {
                "INFERENCE_NUM_THREADS": request["threads"],
                "INFERENCE_PRECISION_HINT": request["precision"],
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
            }
            compiled = core.compile_model(model, "CPU", options)
        self.request = compiled.create_infer_request()
        self.names = [value.any_name for value in compiled.inputs]

    def prepare(self, work: dict[str, Any]) -> Any:
        """The inputs by name."""
        return encoder_inputs(work, self.names)

    def run(self, work: dict[str, Any], prepared: Any) -> None:
        """One forward pass."""
        self.request.infer(prepared)


def encoder_inputs(work: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Arrays for the inputs that encoders have: ids, a mask of ones, token types of zero."""
    numpy, ids = module("numpy"), text_rows(work)
    known = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
    return {name: known[name] for name in names}


def onnx_file(model: Path, scratch: Path) -> Path:
    """The ONNX file of a model folder; exported with torch into `scratch` if the folder has none."""
    for known in (model / "model.onnx", model / "onnx" / "model.onnx"):
        if known.exists():
            return known
    torch, transformers = module("torch"), module("transformers")
    encoder = transformers.AutoModel.from_pretrained(str(model), attn_implementation="eager").eval()

    class LastHiddenState(torch.nn.Module):
        """The one output that is measured."""

        encoder: Any

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            """`[batch, seq, hidden]`."""
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    exported = LastHiddenState()
    exported.encoder = encoder
    path, ids = scratch / "model.onnx", torch.ones(1, 16, dtype=torch.int64)
    axes = {0: "batch", 1: "seq"}
    names = ("input_ids", "attention_mask")
    torch.onnx.export(
        exported, (ids, ids), str(path), input_names=list(names), output_names=["hidden"],
        dynamic_axes=dict.fromkeys((*names, "hidden"), axes), opset_version=17, dynamo=False,
    )  # fmt: skip
    return path


PACKAGES = {"torch": Torch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def serve(request: dict[str, Any], answers: Any) -> None:
    """Answer every line of stdin."""
    package: Package | None = None
    warm: set[str] = set()
    for line in sys.stdin:
        work = json.loads(line)
        try:
            package = package or PACKAGES[request["library"]](request)
            if line not in warm:
                seconds_of(package, work)
                warm.add(line)
            answer: dict[str, Any] = {"seconds": seconds_of(package, work), "version": package.version}
        except Exception as error:  # whatever a package does wrong is told, and the next work may go well
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def seconds_of(package: Package, work: dict[str, Any]) -> float:
    """How long one run takes."""
    prepared = package.prepare(work)
    start = time.perf_counter()
    package.run(work, prepared)
    return time.perf_counter() - start


def main() -> None:
    """Keep stdout for answers: what packages print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers, suppress(KeyboardInterrupt, BrokenPipeError):
        os.dup2(2, 1)
        serve(json.loads(sys.argv[1]), answers)


if __name__ == "__main__":
    main()
