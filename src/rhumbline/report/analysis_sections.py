"""Sections on the analyses of a run, one for each record in RUN/analyses."""

from rhumbline.records.analysis_files import BaseRecord, GeometryRecord, MonitorRecord
from rhumbline.records.directions_file import DirectionsRecord
from rhumbline.records.suffix_file import SuffixRecord
from rhumbline.report import (
    base_model_section,
    geometry_section,
    monitor_section,
    page,
    several_directions_section,
    suffix_section,
)
from rhumbline.report.page import Html
from rhumbline.report.run_record import RunRecord
from rhumbline.report.site_figures import position_labels


def analyses(run: RunRecord, draw: page.Canvas) -> list[Html]:
    """Return the section of every analysis of the run."""
    sections = []
    for record in run.analyses:
        match record:
            case GeometryRecord():
                sections.append(geometry_section.geometry(record, position_labels(run.context.chat), draw))
            case BaseRecord():
                sections.append(base_model_section.base_model(record, draw))
            case SuffixRecord():
                sections.append(suffix_section.suffixes(record, draw))
            case DirectionsRecord():
                sections.append(several_directions_section.several_directions(record, draw))
            case MonitorRecord():
                sections.append(monitor_section.monitor(record, draw))
    return sections
