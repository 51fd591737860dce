"""Jobs of a stage: spans cover every item once, and results are returned in order, NaN included."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.records.codec import convert, to_json
from rhumbline.records.positions import Position
from rhumbline.records.shared import Site
from rhumbline.stages.selection import ScoreRequest, Scores, scores_in_jobs
from rhumbline.stages.stage_jobs import CANDIDATES_PER_JOB, JobKind, SeedJobs, Span, shares, spans
from rhumbline.stages.timings import Timings


@given(st.integers(0, 300), st.integers(1, 50))
def test_spans_cover_everything_once_and_in_order(n, size):
    parts = spans(n, size)
    assert [i for part in parts for i in part.range] == list(range(n))
    assert all(0 < part.end - part.first <= size for part in parts)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 200))
def test_shares_cover_everything_once_and_in_order_in_parts_of_nearly_equal_size(sizes, most):
    parts = shares(sizes, most)
    assert [i for part in parts for i in part] == list(range(len(sizes)))
    assert all(parts)
    n_parts = math.ceil(sum(sizes) / most)
    assert len(parts) <= n_parts
    # Within one item of an equal share, above and (but for parts that a large item leaves empty) below.
    for part in parts:
        assert sum(sizes[i] for i in part) <= sum(sizes) / n_parts + max(sizes)


def test_shares_of_equal_items_are_equal():
    assert shares([45] * 12, 192) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_scores_are_returned_to_their_sites_and_nan_stays_nan():
    """A score that overflowed is discarded as not finite. A null would be read as a score that was not computed."""
    sites = [Site(Position(-1 - position), layer) for position in range(5) for layer in range(20)]
    sizes: list[int] = []

    def request(arguments):
        """The results as JSON values and back, as every engine returns them."""
        results = []
        for a in (convert(to_json(a), ScoreRequest) for a in arguments):
            sizes.append(len(a.sites))
            values = Scores(tuple(math.nan if s.layer == 7 else 100.0 * int(s.position) + s.layer for s in a.sites))
            results.append(convert(to_json(values), Scores))
        return results

    scores = scores_in_jobs(request, "bypass", sites)
    for site, value in zip(sites, scores, strict=True):
        assert math.isnan(value) if site.layer == 7 else value == 100 * int(site.position) + site.layer
    assert max(sizes) <= CANDIDATES_PER_JOB < sum(sizes) == len(sites)


def test_the_rows_of_stored_jobs_are_reported_when_a_run_resumes(tmp_path):
    calls = []

    def jobs_of_a_command():
        timings = Timings(tmp_path / "timings.json", torch.device("cpu"), lambda *call: calls.append(call))
        directory = SimpleNamespace(path=tmp_path, protocol_sha256="")
        return SeedJobs(SimpleNamespace(folder=tmp_path, seed=0, tokens=1, directory=directory, timings=timings))

    def prepare(run):
        def compute(span):
            if span.end > 5:
                raise KeyboardInterrupt
            run.timings.tick("selection", len(span.range))
            return Scores(tuple(map(float, span.range)))

        return compute

    kind = JobKind("scores", Span, Scores, prepare)
    with pytest.raises(KeyboardInterrupt):
        jobs_of_a_command().request(kind, [Span(0, 3), Span(3, 5), Span(5, 9)])
    assert calls == [("selection", 3), ("selection", 2)]
    calls.clear()
    assert [scores.values for scores in jobs_of_a_command().request(kind, [Span(0, 3), Span(3, 5)])] == [
        (0.0, 1.0, 2.0),
        (3.0, 4.0),
    ]
    assert calls == [("selection", 3), ("selection", 2)]
