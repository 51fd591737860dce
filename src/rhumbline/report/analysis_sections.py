"""Sections of the report for the analyses of a run: one for every record in RUN/analyses that is there.

An analysis is known by the name of its file; `SECTIONS` says what is written of it. Decides nothing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from rhumbline.errors import OutputError
from rhumbline.records.files import read_json
from rhumbline.report import figures, page
from rhumbline.report import stream_sections as reading_report
from rhumbline.report import subspace_sections as span_report
from rhumbline.report.page import Html
from rhumbline.report.stream_sections import Record

Section = Callable[[Record, Mapping, page.Canvas], Html]
"""The record of an analysis, how positions are written, and where to draw -> its part of the page."""
SECTIONS: Mapping[str, Section] = {
    "geometry": reading_report.geometry,
    "base": reading_report.base,
    "suffix": span_report.suffix,
    "directions": span_report.several,
    "monitor": reading_report.monitor,
}
"""Name of an analysis: its section, in the order of the page."""


def sections(run_dir: Path, protocol: Record, protocol_sha256: str, draw: page.Canvas) -> list[Html]:
    """Every analysis of the run that is there; one made under another protocol is refused."""
    chat = protocol["chat"]
    labels = figures.position_labels(chat["positions"], chat["suffix_tokens"])
    parts = []
    for name, section in SECTIONS.items():
        path = run_dir / "analyses" / f"{name}.json"
        if not path.is_file():
            continue
        record = read_json(path)
        if not isinstance(record, dict) or record.get("protocol_sha256") != protocol_sha256:
            raise OutputError(f"{path} belongs to another run than {run_dir}: remove it, or run the analysis again.")
        parts.append(section(record, labels, draw))
    return parts
