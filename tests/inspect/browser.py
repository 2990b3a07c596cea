"""A real browser for the tests: Chromium of the system, driven by playwright.

Out: `opened(page, size, scheme)`. CI installs both (`.ci/run`); a machine without them fails here rather than skips.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    assert path is not None, "no Chromium on PATH: apt-get install chromium"
    with sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(started: Any, file: Path, width: int, height: int, scheme: str) -> Iterator[Any]:
    """The file in a window of that size; at the end nothing may have gone wrong in it, or been asked of a network."""
    context = started.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, problems, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    try:
        yield page
    finally:
        context.close()
    assert not problems
    assert requests == [file.as_uri()]
