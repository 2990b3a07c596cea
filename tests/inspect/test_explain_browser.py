"""The page in a real browser: a walk through every view, on a desk and on a phone, light and dark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inspect.browser import browser, opened
from tests.inspect.conftest import HOSTILE, LAYERS

VIEWS = ("overview", "blocks", "code", "passes", "dispatch", "memory", "timing")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


def test_a_block_is_followed_down_to_its_instructions_and_back(chromium: Any, file: Path) -> None:
    with opened(chromium, file, 1280, 900, "light") as page:
        assert page.inner_text("h1") == HOSTILE
        assert page.evaluate("window.hacked") is None
        page.click(".legend >> text=layers.*.mlp >> nth=0")
        assert page.inner_text("#block h2") == "layers.*.mlp"
        assert page.locator("#block select option").count() == LAYERS
        page.select_option("#block select", "layers.7.mlp")
        levels = page.locator("#block details")
        assert levels.locator("h3").all_inner_texts() == ["Flow", "HIR", "MIR", "LIR"]
        hir = levels.nth(1).locator(".line", has_text="= linear(").first
        assert "layers.7" in levels.nth(1).inner_text()
        hir.click()
        chosen = page.locator(".line.chosen").all_inner_texts()
        assert sum("= linear(" in text for text in chosen) == 2  # in HIR and in MIR
        assert sum(text.startswith(("step k", "beside k")) for text in chosen) == 1
        page.click("#block .chips .chip >> nth=0")
        page.wait_for_selector(".pane .listing")
        page.locator(".pane").nth(2).locator(".at").nth(20).click()
        marked = page.locator(".listing .chosen")
        assert marked.count() >= 2
        assert page.locator(".pane").nth(0).locator(".chosen").count() == 1
        page.click("text=used by >> button >> nth=0")
        assert page.inner_text("#block h2").startswith("layers.*")
        page.click("#block .source >> nth=0")
        page.wait_for_selector("dialog .chosen")
        page.keyboard.press("Escape")


def test_every_other_view_answers(chromium: Any, file: Path) -> None:
    with opened(chromium, file, 1280, 900, "dark") as page:
        page.click("nav >> text=Passes")
        page.click("summary >> text=legalize")
        assert page.locator(".minus", has_text="swiglu").first.is_visible()
        page.click("nav >> text=Dispatch")
        assert "there is no kernel for swiglu" in page.inner_text("#view")
        page.click("nav >> text=Memory")
        page.click("text=whole program")
        page.locator("rect.buffer").nth(3).click()
        assert page.get_attribute("#view", "data-view") == "blocks"
        page.click("nav >> text=Time")
        page.click("text=prefill")
        page.click("text=by step")
        assert page.locator("tbody tr").count() > 60
        page.click("text=/^\\d+ more$/")
        assert page.locator("circle.dot").count() > 3
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click(".theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(chromium: Any, file: Path, width: int, scheme: str) -> None:
    with opened(chromium, file, width, 844, scheme) as page:
        for view in VIEWS:
            page.evaluate(f"location.hash = '#{view}'")
            page.wait_for_selector(f"#view[data-view={view}]")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_a_deep_model_opens_in_two_seconds(chromium: Any, file: Path) -> None:
    start = time.perf_counter()
    with opened(chromium, file, 1280, 900, "light") as page:
        page.click("nav >> text=Blocks")
        page.wait_for_selector("#block .line")
        assert time.perf_counter() - start < 2.0
