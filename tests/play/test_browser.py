"""The page of `play` in Chromium, on a phone and a wide screen."""

import threading

import pytest

from chromium import PHONE, VIEWS, chromium, found_by_axe
from rhumbline.play.server import PlayServer

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(session):
    with PlayServer(session, settings=session.settings(max_new_tokens=12)) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.calls.stop()
        thread.join()


@pytest.fixture(scope="module")
def page(server):
    with chromium() as browser:
        page = browser.new_page(viewport=PHONE)
        page.faults, page.requests = [], []
        page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(server.url)
        wait_for(page, "ready")
        yield page


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
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_phone_shows_both_answers_below_each_other(page, prompt):
    completed(page, prompt)
    first, second = (page.locator(f"#text-{column}").bounding_box() for column in (0, 1))
    assert first["y"] + first["height"] <= second["y"]
    assert min(first["width"], second["width"]) > PHONE["width"] / 2


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(view, page, server, prompt):
    scheme, size = VIEWS[view]
    context = page.context.browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True)
    other = context.new_page()
    other.goto(server.url)
    wait_for(other, "ready")
    assert found_by_axe(other) == []
    completed(other, prompt)
    assert found_by_axe(other) == []
    context.close()


def test_a_fault_is_shown(page):
    page.fill("#prompt", "<|im_end|>")
    page.click("#run")
    page.locator("#status.fault").wait_for()
    assert "control token" in page.text_content("#status")
    page.faults.clear()  # the refused request
