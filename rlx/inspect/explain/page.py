"""The page: HTML with its styles, its script and its data in one file, which asks nothing of a network.

In: `PageData`. Out: text. The data lie in it as compressed JSON in base64, so that nothing a model file says is ever
read as HTML, and the script builds every element from text (`page/dom.js`); a policy in the head forbids all else.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
from importlib.resources import files

from rlx.inspect.explain.data import PageData

SCRIPTS = (
    "dom.js", "model.js", "charts.js", "overview.js", "blocks.js", "code.js", "passes.js", "dispatch.js", "memory.js",
    "timing.js", "app.js",
)  # fmt: skip
STYLES = ("base.css", "views.css")


def render_page(data: PageData) -> str:
    """The whole file."""
    folder = files("rlx.inspect.explain") / "page"
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    values = {
        "TITLE": html.escape(str(data.core["model"])),
        "STYLE": "\n".join((folder / name).read_text(encoding="utf-8") for name in STYLES),
        "CORE": packed(data.core),
        "CODE": packed(data.code),
        "SCRIPT": f'"use strict";\n(() => {{\n{script}\n}})();',
    }
    text = (folder / "page.html").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"%%{name}%%", value, 1)
    return text


def packed(value: object) -> str:
    """JSON, compressed, in base64. The same value gives the same text."""
    plain = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(plain, 9, mtime=0)).decode("ascii")
