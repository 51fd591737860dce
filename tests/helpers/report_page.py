"""A page of the report as elements and texts, and the check that it loads nothing."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Elements with their attributes, the text people read, and the contents of scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self.styles: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data):
        # The parser passes a long script in several pieces.
        if self.cdata_elem == "script":
            attributes, before = self.scripts.pop()
            self.scripts.append((attributes, before + data))
        elif self.cdata_elem == "style":
            self.styles.append(data)
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def assert_self_contained(page: Page):
    loading = {"link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form"}
    assert not loading & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            is_anchor = (tag, name) == ("a", "href") and value.startswith("#")
            assert is_anchor or name not in ("src", "href", "xlink:href", "action", "srcset"), (tag, name, value)
    assert not any(re.search(r"@import|url\(", style) for style in page.styles)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "content" in a and "http-equiv" in a)
    assert "default-src 'none'" in policy
    for attributes, script in page.scripts:
        if attributes.get("type") != "application/json":
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
