"""A stopped analysis resumes: what was computed is read, and nothing else is taken for it."""

from dataclasses import replace

import pytest

from finished_runs import QUICK
from rhumbline import load, read_contrast, verify
from rhumbline.analyses import robustness, stored_parts
from rhumbline.analyses.frontier import analyse
from rhumbline.analyses.gradient_search import GradientSearch
from rhumbline.analyses.stored_parts import ResumableRunner, StoredParts
from rhumbline.inference.interventions import BASELINE, Ablate, AblateSpan, Add, Arm
from rhumbline.inference.runner import Runner
from rhumbline.inference.windows import Window
from rhumbline.models.chat import ChatWithResponse
from rhumbline.records.directory import PARTS
from rhumbline.records.frontier_file import FrontierPlan
from rhumbline.records.shared import BySplit
from rhumbline.records.sheet_files import RobustnessPlan

PLAN = FrontierPlan(
    doses=(0.03,), prompts=8, kl_prompts=2, answer_tokens=3, max_new_tokens=3, draws=1, steps=1, members=2
)
NAMES = ("ablation", "subtraction", "cone", "system-prompt")


class Stopped(BaseException):
    """The process was asked to end."""


@pytest.fixture
def calls(monkeypatch):
    """The number of arms of every batch of completions that is generated."""
    made: list[int] = []
    generate = Runner.generate

    def counted(self, sequences, arms=(BASELINE,), **options):
        made.append(len(arms))
        return generate(self, sequences, arms, **options)

    monkeypatch.setattr(Runner, "generate", counted)
    return made


def runner_of(subject, folder, *depends):
    return ResumableRunner(subject.model, parts=StoredParts(folder, depends))


def arms_of(direction):
    return [
        BASELINE,
        Arm("a", (Ablate(direction),)),
        Arm("b", (Add(direction, 2.0),)),
        Arm("c", (Add(direction, 2.0),), Window(stop=0)),
        Arm("d", (AblateSpan(direction.vector[None], spared=1),)),
    ]


def test_kept_completions_are_those_of_a_plain_runner(planted, tmp_path, calls, monkeypatch):
    monkeypatch.setattr(stored_parts, "ROWS", 10)
    sequences, arms = planted.sequences("test", "positive")[:5], arms_of(planted.selected())
    expected = Runner(planted.model).completions(sequences, arms, max_new_tokens=4)
    calls.clear()
    assert runner_of(planted, tmp_path).completions(sequences, arms, max_new_tokens=4) == expected
    assert calls == [2, 2, 1]
    renamed = [replace(arm, name="other") for arm in arms]
    assert runner_of(planted, tmp_path).completions(sequences, renamed, max_new_tokens=4) == expected
    assert calls == [2, 2, 1]
    assert len({str(of_arm) for of_arm in expected}) > 1


@pytest.mark.parametrize("changed", ["sequences", "arms", "order", "window", "length", "stop", "run"])
def test_a_part_that_differs_in_anything_is_computed(planted, tmp_path, calls, changed):
    sequences, direction = planted.sequences("test", "positive")[:3], planted.selected()
    arms = [BASELINE, Arm("b", (Add(direction, 2.0),))]
    runner_of(planted, tmp_path, "run").completions(sequences, arms, max_new_tokens=4, stop=(1,))
    other = {
        "sequences": (sequences[::-1], arms, 4, (1,)),
        "arms": (sequences, [BASELINE, Arm("b", (Add(direction, 1.0),))], 4, (1,)),
        "order": (sequences, arms[::-1], 4, (1,)),
        "window": (sequences, [BASELINE, Arm("b", (Add(direction, 2.0),), Window(stop=0))], 4, (1,)),
        "length": (sequences, arms, 5, (1,)),
        "stop": (sequences, arms, 4, ()),
        "run": (sequences, arms, 4, (1,)),
    }
    texts, some, length, stop = other[changed]
    runner = runner_of(planted, tmp_path, "other" if changed == "run" else "run")
    runner.completions(texts, some, max_new_tokens=length, stop=stop)
    assert calls == [2, 2]


def test_a_search_by_gradient_is_kept_as_it_is(planted, tmp_path, monkeypatch):
    train = [planted.sequences("train", c)[:4] for c in ("positive", "negative")]
    search = GradientSearch(runner_of(planted, tmp_path), *train, planted.metric, planted.selected(), steps=1)
    none = planted.selected().vector[None][:0]
    found = search.fit(none, n=2)
    assert found.equal(replace(search, runner=Runner(planted.model)).fit(none, n=2))
    assert not found.equal(search.fit(none, n=2, seed=1))
    monkeypatch.setattr(GradientSearch, "_search", None)
    assert found.equal(search.fit(none, n=2))


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_stopped_frontier_resumes_to_the_same_record(subject_of, monkeypatch, after):
    """It is stopped after some parts; then it computes the others only, and leaves none of them."""
    subject, plan = subject_of("planted", QUICK), replace(PLAN, interventions=NAMES)
    whole = analyse(subject, plan)
    folder, parts = subject.parts.folder, []
    assert not folder.exists()
    result = StoredParts.result

    def stopping(self, kind, inputs, compute):
        def computed():
            if len(parts) == after:
                raise Stopped
            parts.append(kind)
            return compute()

        return result(self, kind, inputs, computed)

    monkeypatch.setattr(StoredParts, "result", stopping)
    with pytest.raises(Stopped):
        analyse(subject, plan)
    assert len(list(folder.iterdir())) == after
    assert verify(subject.directory.path) == []
    done, after = len(parts), 1000
    assert analyse(subject, plan) == whole
    everything = parts[:]
    assert not folder.exists()
    parts.clear()
    analyse(subject, plan)
    assert parts == everything, "the stopped analysis and its continuation compute every part once"
    assert 0 < done < len(everything)


def test_parts_of_another_analysis_stay(planted, tmp_path):
    one, other = (runner_of(planted, tmp_path / PARTS, name) for name in ("one", "other"))
    for runner in (one, other):
        runner.completions(planted.sequences("test", "positive")[:2], max_new_tokens=2)
    one.parts.clear()
    assert len(list((tmp_path / PARTS).iterdir())) == 1
    other.parts.clear()
    assert not (tmp_path / PARTS).exists()


def test_robustness_reads_what_a_stopped_call_completed(planted_folder, tmp_path, calls):
    model, contrast = load(str(planted_folder), device="cpu"), read_contrast(planted_folder / "contrast.jsonl")
    plan = RobustnessPlan(
        ranks=1, nulls=1, sizes=BySplit(16, 4, 8), strengths=(1.0,), suffixes=1, max_new_tokens=3, doses=(0.05,),
        answer_tokens=3,
    )  # fmt: skip
    record = robustness.measure(model, contrast, plan, keep=tmp_path)
    assert calls
    calls.clear()
    assert robustness.measure(model, contrast, plan, keep=tmp_path) == record
    assert not calls
    assert robustness.measure(model, contrast, plan) == record
    assert calls


def test_a_response_is_another_input_than_the_same_tokens(planted, tmp_path, calls):
    ids = planted.sequences("test", "positive")[0]
    runner = runner_of(planted, tmp_path)
    runner.completions([ids], max_new_tokens=2)
    runner.completions([ChatWithResponse(ids[:-2], ids[-2:])], max_new_tokens=2)
    assert calls == [1, 1]


def test_the_parts_of_a_part_are_removed_with_it(tmp_path):
    parts = StoredParts(tmp_path / PARTS, ())

    def outer():
        return parts.result("inner", 1, lambda: 2) + parts.result("inner", 2, lambda: 3)

    assert parts.result("outer", 0, outer) == 5
    assert len(list(parts.folder.iterdir())) == 1
    assert parts.result("outer", 0, lambda: 1 / 0) == 5
    parts.clear()
    assert not parts.folder.exists()
