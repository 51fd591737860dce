"""The page of `play` in Chromium, where playwright and Chromium are installed."""

import shutil
import threading

import pytest

from rhumbline.play.server import PlayServer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page(session):
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with PlayServer(session, settings=session.settings(max_new_tokens=12)) as server, sync_api.sync_playwright() as p:
        thread = threading.Thread(target=server.serve)
        thread.start()
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.faults, page.requests = [], []
        page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(server.url)
        wait_for(page, "ready")
        yield page
        browser.close()
        server.calls.stop()
        thread.join()


def wait_for(page, status):
    """Without a script of its own: the policy of the page forbids it."""
    page.locator(f"#status:text-is('{status}')").wait_for()


def completed(page, prompt):
    page.fill("#prompt", prompt)
    page.click("#run")
    wait_for(page, "done")
    return [page.text_content(f"#text-{column}") for column in (0, 1)]


def test_both_answers_are_shown_and_change_with_the_strength(page, prompt):
    baseline, edited = completed(page, prompt)
    assert baseline
    assert edited
    assert baseline != edited
    assert len(page.query_selector_all("#text-0 span")) > 1
    projections = page.eval_on_selector_all("#prompt-tokens span", "all => all.map(s => +s.dataset.projection)")
    assert max(map(abs, projections)) > 0.1
    page.fill("#strength", "0")
    assert completed(page, prompt) == [baseline, baseline]
    assert page.text_content("#probability-0") == page.text_content("#probability-1")


def test_texts_are_no_markup(page):
    completed(page, "<img src=x onerror=alert(1)><b>bold</b>")
    assert page.query_selector("#prompt-tokens img") is None
    assert page.query_selector("#prompt-tokens b") is None


def test_nothing_else_is_requested_and_a_phone_needs_no_scrolling(page):
    assert {url.split("/")[2] for url in page.requests} == {page.url.split("/")[2]}
    assert page.faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_fault_is_shown(page):
    page.fill("#prompt", "<|im_end|>")
    page.click("#run")
    page.locator("#status.fault").wait_for()
    assert "control token" in page.text_content("#status")
    page.faults.clear()  # the refused request
