"""Pages of each kind in Chromium: axe finds nothing in light and dark, nothing is wider than a phone, no errors."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chromium import VIEWS, chromium, found_by_axe
from rhumbline.cli import main

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore")]

SMALL = ("--seeds", "0", "--sizes", "24,10,8", "--nulls", "1", "--wide-nulls", "19", "--max-new-tokens", "8")
TINY = ("--test", "8", "--max-new-tokens", "4")


@pytest.fixture(scope="module")
def made(tmp_path_factory, drawn_pictures) -> Callable[..., Path]:
    """The folder of a page, made by one command the first time it is needed."""
    folder, known = tmp_path_factory.mktemp("pages"), {}

    def make(name: str, *words: str) -> Path:
        if name not in known:
            out = folder / name
            assert main([*words, "--out", str(out)]) == 0, name
            known[name] = out
        return known[name]

    return make


def single(made) -> Path:
    """A quick demo that shows every claim that it tests, with completions."""
    return made("single", "demo", "--quick") / "quick"


def compared(made) -> Path:
    runs = (str(single(made)), str(made("null", "demo", "--organism", "null", "--quick") / "quick"))
    return made("compared", "compare", *runs)


def with_frontier(made) -> Path:
    run = made("planted", "run", "organism:planted", *SMALL)
    few = ("--prompts", "4", "--kl-prompts", "2", "--max-new-tokens", "3", "--interventions", "ablation,rotation")
    assert main(["analyze", "frontier", str(run), "--quick", *few]) == 0
    return run


PAGES: dict[str, Callable[[Callable[..., Path]], Path]] = {
    "single direction": single,
    "not tested": lambda made: made("null", "demo", "--organism", "null", "--quick") / "quick",
    "style": lambda made: made("style", "demo", "--organism", "style", "--quick") / "quick",
    "two seeds": lambda made: made("two", "run", "organism:planted", *SMALL, "--seeds", "0,1"),
    "discover": lambda made: made("discover", "discover", "organism:planted"),
    "comparison": compared,
    "frontier": with_frontier,
    "robustness": lambda made: made("robust", "robustness", "organism:planted", "--ranks", "1", *TINY),
}
"""The page of a run, of a comparison and of analyses, by what is on it."""


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_readable_by_everyone(kind, made, browser):
    (page_of,) = PAGES[kind](made).glob("*.html")
    for view, (scheme, size) in VIEWS.items():
        context = browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True)
        page, errors = context.new_page(), []
        page.on("console", lambda message, errors=errors: errors.append(message.text))
        page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
        page.goto(page_of.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], view
        assert found_by_axe(page) == [], view
        page.evaluate("document.querySelectorAll('details').forEach(section => (section.open = true))")
        assert found_by_axe(page) == [], f"{view}, every section open"
        assert errors == [], view
        context.close()


def test_axe_finds_what_is_wrong(browser):
    page = browser.new_context(bypass_csp=True).new_page()
    page.set_content("<html lang=en><title>t</title><main><h1>h</h1><img src='data:,'><p style='color:#eee'>pale")
    assert {found.split(" at ")[0] for found in found_by_axe(page)} == {"image-alt", "color-contrast"}
