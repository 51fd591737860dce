"""The hash of the code: text that explains does not change it, code that computes does."""

from pathlib import Path

import pytest

from rhumbline.records.source_hash import code_sha256, sources_sha256

MODULE = '''"""A module."""

LIMIT = 0.5
"""The largest share."""


class Share:
    """A share."""

    def is_large(self, x: float) -> bool:
        """Whether `x` exceeds the limit."""
        return x > LIMIT  # not equal
'''


def package(root: Path, **modules: str) -> Path:
    """A package with the given modules; `a__b` is a/b.py."""
    for name, text in modules.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ('"""A module."""', '"""Another sentence."""', False),
        ('"""The largest share."""', '"""An upper bound."""', False),
        ('    """A share."""\n\n', "", False),
        ('"""Whether `x` exceeds the limit."""', '"""`x > LIMIT`."""', False),
        ("  # not equal", "", False),
        ("x > LIMIT", "(\n            x > LIMIT\n        )", False),
        ("LIMIT = 0.5", "LIMIT = 0.6", True),
        ("x > LIMIT", "x >= LIMIT", True),
        ("LIMIT = 0.5", "LIMIT = '0.5'", True),
        ("LIMIT = 0.5", "LIMIT = None", True),
    ],
)
def test_only_code_changes_the_hash(tmp_path, old, new, changes):
    assert old in MODULE
    before = sources_sha256(package(tmp_path / "a", module=MODULE))
    after = sources_sha256(package(tmp_path / "b", module=MODULE.replace(old, new)))
    assert (before != after) == changes


def test_packages_that_only_display_results_do_not_count(tmp_path):
    before = sources_sha256(package(tmp_path / "a", module=MODULE, report__page="WIDTH = 1", cli__main="N = 1"))
    after = sources_sha256(package(tmp_path / "b", module=MODULE, report__page="WIDTH = 2", cli__other="N = 1"))
    assert before == after


@pytest.mark.parametrize("name", ["other", "stages__report", "report_card", "figures"])
def test_every_other_file_counts_whatever_its_name(tmp_path, name):
    before = sources_sha256(package(tmp_path / "a", module=MODULE))
    assert sources_sha256(package(tmp_path / "b", module=MODULE, **{name: "N = 1"})) != before
    one, two = (package(tmp_path / f"c{n}", **{name: f"N = {n}"}) for n in (1, 2))
    assert sources_sha256(one) != sources_sha256(two)


def test_the_package_has_one_hash():
    assert code_sha256() == code_sha256()
    assert len(code_sha256()) == 64
