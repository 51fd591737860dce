"""docs/results.md ends with the notes from which `benchmarks/results_page.py` writes it."""

import paths


def test_the_page_of_results_has_the_notes_of_its_source():
    notes = (paths.ROOT / "benchmarks" / "results_notes.md").read_text(encoding="utf-8")
    page = (paths.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page.endswith("\n" + notes)
