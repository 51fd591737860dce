"""Which null draws complete which test prompts."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_outcomes import outcomes_of
from rhumbline.errors import ProtocolError
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.shared import ByLabel
from rhumbline.settings import ROWS_PER_JOB
from rhumbline.stages.outcomes import _has_answer, _requests, check_filter, draws_by_prompt


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 60), st.integers(0, 3))
def test_every_draw_completes_its_number_of_prompts_spread_over_the_prompts(n, draws, completed, seed):
    by_prompt = draws_by_prompt(n, draws, completed, seed)
    assert len(by_prompt) == n
    counts = Counter(draw for some in by_prompt for draw in some)
    assert set(counts.values()) == {n if completed in (0, n) or completed > n else completed}
    assert set(counts) == set(range(draws))
    sizes = [len(some) for some in by_prompt]
    assert max(sizes) - min(sizes) <= 1  # no prompt has two draws while another has none
    assert by_prompt == draws_by_prompt(n, draws, completed, seed)


@pytest.mark.parametrize("completed", [0, 10, 11])
def test_all_prompts(completed):
    assert draws_by_prompt(10, 2, completed, 0) == [(0, 1)] * 10


EVERY = {("positive", i) for i in range(60)} | {("negative", i) for i in range(30)}


@pytest.mark.parametrize(
    ("direction", "positives", "negatives"), [(None, [60], [30]), ("selected", [20, 20, 20], [10, 10, 10])]
)
def test_prompts_with_the_same_arms_are_a_group(direction, positives, negatives):
    """Without a direction there are no null arms, so the draws that a prompt would have do not divide the prompts."""
    (request,) = requests(direction, 1)
    assert prompts_of(request) == EVERY
    for label, groups in (("positive", positives), ("negative", negatives)):
        sizes = Counter()
        for group in request.groups:
            if group.label == label:
                sizes[group.draws] += len(group.prompts)
        assert list(sizes.values()) == groups


def test_jobs_have_nearly_the_same_number_of_completions_whatever_the_classes():
    """90 prompts under 20 arms each are more than one job; a group with more completions than a job is divided."""
    jobs = requests("selected", 20)
    sizes = [20 * sum(len(group.prompts) for group in job.groups) for job in jobs]
    assert set.union(*map(prompts_of, jobs)) == EVERY
    assert sum(map(len, map(prompts_of, jobs))) == len(EVERY)
    assert len(jobs) == -(-90 * 20 // ROWS_PER_JOB) > 1
    assert max(sizes) - min(sizes) <= ROWS_PER_JOB // 2
    assert any(len({group.draws for group in job.groups}) > 1 for job in jobs)
    assert any(len({group.label for group in job.groups}) > 1 for job in jobs)


def prompts_of(request):
    """The class and the number of every prompt of a job."""
    return {(group.label, i) for group in request.groups for i in group.prompts}


def requests(direction, n_arms):
    """The jobs of 60 positives and 30 negatives with three null draws, each on 20 of a class."""
    sizes = {"positive": 60, "negative": 30}
    arms = SimpleNamespace(
        direction=direction, outcomes=lambda label, draws: dict.fromkeys([f"arm {i}" for i in range(n_arms)])
    )
    run = SimpleNamespace(
        arms=arms,
        splits=SimpleNamespace(get=lambda split, label: [SimpleNamespace(id=str(i)) for i in range(sizes[label])]),
        protocol=SimpleNamespace(nulls=SimpleNamespace(draws=3), completed=20),
        seed=0,
    )
    return _requests(run, {"positive": (), "negative": ()})


def test_a_known_answer_is_looked_for_in_negatives():
    said = "It is four, of course."
    assert _has_answer(Prompt("2 + 2?", "negative", "p", answer="four"), said) is True
    assert _has_answer(Prompt("2 + 3?", "negative", "p", answer="five"), said) is False
    assert _has_answer(Prompt("2 + 2?", "negative", "p", response="It is four"), said) is True
    assert _has_answer(Prompt("2 + 2?", "positive", "p", answer="four"), said) is None
    assert _has_answer(Prompt("2 + 2?", "negative", "p"), said) is None


@pytest.mark.parametrize(
    ("kept", "rates", "raises"),
    [
        ((0, 12), (0.9, 0.1), "train positives"),
        ((12, 0), (0.9, 0.1), "train negatives"),
        ((12, 0), (0.9, 0.9), None),  # it shows the behaviour on both: the labels say too little
        ((0, 12), (0.1, 0.1), None),  # it does not show it: not tested
        ((12, 12), (0.9, 0.1), None),
    ],
)
def test_an_empty_class_is_an_error_only_if_the_judge_finds_it(kept, rates, raises):
    rows = [
        row
        for side, rate in zip(("positive", "negative"), rates, strict=True)
        for row in outcomes_of("baseline", side, "r" * round(10 * rate) + "c" * round(10 - 10 * rate))
    ]
    counts = ByLabel(*kept)
    run = SimpleNamespace(
        seed=0,
        extraction=SimpleNamespace(n=SimpleNamespace(train=counts, val=counts)),
        protocol=SimpleNamespace(rule=SimpleNamespace(min_baseline=0.5)),
        directory=SimpleNamespace(path="RUN", read_rows=lambda kind, seed: rows),
    )
    if raises is None:
        check_filter(run)
    else:
        with pytest.raises(ProtocolError, match=f"keeps none of the {raises}"):
            check_filter(run)
