"""Pages as Chromium shows them: nothing overflows at 1280 and 390 px, nothing is requested, nothing complains."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetl.bundle import Bundle
from edgetl.report.stage import ReportOptions, report

from .conftest import ODD_LABELS

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

LONG = ("a name without a single space that goes on and on for ever".replace(" ", "_"), "wide " * 30, *ODD_LABELS)
BUNDLES: dict[str, dict[str, Any]] = {
    "usual": {"photos": True, "n": 40, "wrong": 30},
    "odd labels": {
        "labels": LONG,
        "n": 90,
        "wrong": 40,
        "graphs": [("cpu", "fp32"), ("cpu", "int8"), ("trt10", "int8")],
    },
    "many classes": {"labels": [f"class {i:04}" for i in range(1000)], "n": 1500},
    "thirty classes": {"labels": [f"class {i:04}" for i in range(30)], "n": 300},
    "nothing yet": {"bench": False, "graphs": []},
}

# What lies beyond the page's right edge, unless something around it scrolls by itself.
BEYOND = """() => {
  const wide = document.documentElement.clientWidth, out = [];
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (box.right <= wide + 1 || box.width === 0) continue;
    let up = e, kept = false;
    while ((up = up.parentElement)) kept ||= ["auto", "scroll", "hidden"].includes(getComputedStyle(up).overflowX);
    if (!kept) out.push(e.tagName + " " + e.className + " " + Math.round(box.right));
  }
  return [document.documentElement.scrollWidth - wide, out];
}"""
# Text of a picture that leaves it, and pictures without a text.
PICTURES = """() => [...document.querySelectorAll("svg, img")].flatMap(e => {
  const out = [];
  if (e.tagName === "IMG") { if (!e.alt || !e.naturalWidth) out.push("img " + e.alt); return out; }
  if (!e.querySelector("title")?.textContent || !e.querySelector("desc")?.textContent) out.push("svg without text");
  const all = e.getBoundingClientRect();
  for (const t of e.querySelectorAll("text")) {
    const b = t.getBoundingClientRect();
    if (b.left < all.left - 3 || b.right > all.right + 3 || b.top < all.top - 3 || b.bottom > all.bottom + 3)
      out.push(e.querySelector("title").textContent + ": " + t.textContent);
  }
  return out;
})"""


COLOURS = """() => [document.body, document.querySelector("svg .lab")].map(e => getComputedStyle(e))
  .map((style, i) => i ? style.fill : style.backgroundColor)"""


PATIENCE_MS = 300_000  # a busy machine may take its time


def new_page(browser: Any, **how: Any) -> Any:
    page = browser.new_page(**how)
    page.set_default_timeout(PATIENCE_MS)
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = os.environ.get("EDGETL_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here (set EDGETL_CHROMIUM)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield started
        started.close()


def test_the_checks_see_what_they_are_for(browser):
    page = new_page(browser, viewport={"width": 390, "height": 900})
    page.set_content("""<div style="width:500px">x</div><div style="overflow:auto"><p style="width:900px">kept</p></div>
        <svg width="50" viewBox="0 0 50 9"><text x="40" y="8">far too long</text></svg>
        <img src="data:image/png;base64,">""")
    beyond, elements = page.evaluate(BEYOND)
    assert beyond > 100 and [e.split()[0] for e in elements] == ["DIV"]
    found = page.evaluate(PICTURES.replace('e.querySelector("title").textContent', '""'))
    assert found == ["svg without text", ": far too long", "img "]
    page.close()


@pytest.mark.parametrize("name", BUNDLES)
def test_a_page_fits_and_is_quiet(name, browser, make_bundle, tmp_path):
    file = tmp_path / "page.html"
    report(Bundle.open(make_bundle(**BUNDLES[name])), ReportOptions(html=file))
    for width, scheme in ((1280, "light"), (390, "dark")):
        requests, complaints = [], []
        page = new_page(browser, viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.on("console", lambda message, seen=complaints: seen.append(message.text))
        page.on("pageerror", lambda error, seen=complaints: seen.append(str(error)))
        page.goto(Path(file).as_uri())
        assert page.evaluate(BEYOND) == [0, []], (width, scheme)
        assert page.evaluate(PICTURES) == [], (width, scheme)
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
        assert complaints == []
        page.close()


def test_light_and_dark_and_print_are_three_sets_of_colours(browser, make_bundle, tmp_path):
    file = tmp_path / "page.html"
    report(Bundle.open(make_bundle()), ReportOptions(html=file))
    found = []
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        page = new_page(browser, color_scheme=scheme)
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(file.as_uri())
        found.append(page.evaluate(COLOURS))
        page.close()
    light, dark, paper = found
    assert light[0] == paper[0] == "rgb(255, 255, 255)" and dark[0] != light[0]
    assert light[1] != dark[1] and paper[1] == "rgb(0, 0, 0)"
