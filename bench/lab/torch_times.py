"""`python torch_times.py JSON`: how long torch (oneDNN) takes for some products, in an interpreter that has it.

In: `{"threads": n, "products": [[rows, out, k, "f32" or "bf16"], ...]}`. Out: JSON, seconds for each. Weights of few
rows come from memory: there are as many of them as no cache holds. Run by `bench/kernels.py`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

STREAMED = 160_000_000
SECONDS = 0.15


def main() -> None:
    """Measure all of them."""
    torch: Any = importlib.import_module("torch")
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    found: list[float] = []
    for rows, out, k, name in request["products"]:
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
        x = torch.randn(rows, k).to(dtype)
        copies = -(-STREAMED // (out * k * dtype.itemsize)) if rows < 64 else 1
        weights = [torch.randn(out, k).to(dtype) for _ in range(copies)]
        least, spent, turn = float("inf"), 0.0, 0
        torch.nn.functional.linear(x, weights[0])
        while spent < SECONDS:
            start = time.perf_counter()
            torch.nn.functional.linear(x, weights[turn % copies])
            seconds = time.perf_counter() - start
            least, spent, turn = min(least, seconds), spent + seconds, turn + 1
        found.append(least)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
