"""Pages in Chromium, and what axe finds on them; needs the extra `browser` and an installed Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import pytest

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
VIEWS = {f"{scheme}, {view['width']} px": (scheme, view) for scheme in ("light", "dark") for view in (WIDE, PHONE)}
"""Colour schemes and sizes in which pages are tested."""


@contextmanager
def chromium() -> Iterator:
    """A browser; the test is skipped if playwright or Chromium is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def found_by_axe(page) -> list[str]:
    """The violations of an open page, each with the elements that have it. Its context must bypass the policy."""
    pytest.importorskip("axe_playwright_python", reason="needs axe: pip install -e '.[browser]'")
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [f"{rule['id']} at {node['target']}: {node['failureSummary']}" for rule in found for node in rule["nodes"]]
