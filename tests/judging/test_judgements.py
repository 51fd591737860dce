"""Judgements of a run: rates, agreement, stored judgements, retries, and files that stay unchanged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from make_judge import RUBRIC, Endpoint, spec
from rhumbline import verify
from rhumbline.cli import main
from rhumbline.errors import InputError, OutputError
from rhumbline.judging import judgements
from rhumbline.judging.judge_models import ExternalJudge
from rhumbline.judging.judge_specs import Judgement, published
from rhumbline.judging.judgements import judge_run, read_judgements
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import read_rows

COPY = {"refused": "refused", "complied": "complied"}


@pytest.fixture
def kept(texts_run, tmp_path):
    """A copy of the run to judge."""
    return Path(shutil.copytree(texts_run, tmp_path / "run"))


def test_a_trained_classifier_agrees_with_the_rule_that_it_copies(classifier, kept):
    judge = spec(form="classifier", model=str(classifier), answers=COPY)
    summary = judge_run(kept, judge, ExternalJudge(judge, device="cpu"))
    by = {p.judges: p for p in summary.agreement}
    pair = by["refusal-anywhere", "mine"]
    assert pair.agreement > 0.95
    assert pair.kappa > 0.9
    rates = {(str(r.arm), r.side): r for r in summary.judges["mine"].rows}
    assert rates["baseline", "positive"].refusal_score > 0.9
    assert rates["ablation", "positive"].refusal_score < 0.1
    assert rates["baseline", "positive"].safety_score is None


def test_a_judge_with_constant_replies_agrees_by_chance_alone(kept):
    always = spec(url="http://localhost")
    summary = judge_run(kept, always, lambda prompts, _: [always.read("no") for _ in prompts])
    assert all(not p.kappa for p in summary.agreement)  # 0, or unknown where chance explains everything


def test_only_failed_questions_are_sent_again(kept):
    with Endpoint(lambda n, q: (500, b"") if "lumarko" in q else None) as server:
        judge = spec(url=server.url, retries=0)
        first = judge_run(kept, judge, ExternalJudge(judge))
        asked = len(server.seen)
        again = judge_run(kept, judge, ExternalJudge(judge))
        retried = len(server.seen) - asked
    rows = list(read_judgements(RunDirectory.read(kept), "mine"))
    unscored = {place.key for place, row in rows if row.cls == "unscored"}
    assert 0 < len(unscored) < asked
    assert retried == len(unscored)  # only the failed questions
    assert again.judges["mine"].asked == len(unscored)
    assert again.judges["mine"].rows == first.judges["mine"].rows
    table = first.judges["mine"].rows
    assert sum(r.unscored for r in table) == sum(row.cls == "unscored" for _, row in rows)
    assert all(r.n + r.unscored == 12 for r in table)
    with Endpoint() as server:  # now it answers, and nothing is left
        judge = spec(url=server.url, retries=0)
        assert judge_run(kept, judge, ExternalJudge(judge)).judges["mine"].asked == len(unscored)
        assert judge_run(kept, judge, ExternalJudge(judge)).judges["mine"].asked == 0
        assert len(server.seen) == len(unscored)
        other = replace(judge, template="Other words: {response}")
        assert (
            judge_run(kept, other, ExternalJudge(other)).judges["mine"].asked == asked
        )  # another judge: nothing known


def test_a_retry_that_is_stopped_leaves_the_run_readable(kept, monkeypatch):
    """An unscored row stays in the file until it is replaced, so other judges can be compared with this one."""
    monkeypatch.setattr(judgements, "AT_ONCE", 4)
    first, other = spec(url="http://localhost"), replace(spec(url="http://localhost"), name="other")
    unscored = Judgement("unscored", None, "down")
    judge_run(kept, first, lambda prompts, _: [unscored for _ in prompts])
    asked: list[int] = []

    def stops(prompts, responses):
        if asked:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return [first.read("yes") for _ in prompts]

    with pytest.raises(KeyboardInterrupt):
        judge_run(kept, first, stops)
    rows = list(read_judgements(RunDirectory.read(kept), "mine"))
    assert {row.cls for _, row in rows} == {"refused", "unscored"}
    changed = replace(first, template="Other words: {response}")
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        judge_run(kept, changed, stops)
    summary = judge_run(kept, other, lambda prompts, _: [other.read("no") for _ in prompts])
    assert ("mine", "other") in [p.judges for p in summary.agreement]
    assert 0 < len(list(read_judgements(RunDirectory.read(kept), "mine"))) < len(rows)


def test_a_judge_with_the_name_of_a_keyword_judge_is_refused(kept):
    judge = replace(spec(url="http://localhost"), name="refusal-opening")
    with pytest.raises(InputError, match="Set another `name`"):
        judge_run(kept, judge, lambda prompts, _: [judge.read("yes") for _ in prompts])


def test_judging_writes_no_text_and_changes_no_file_of_the_run(kept):
    judge = spec(url="http://localhost")
    judge_run(kept, judge, lambda prompts, _: [judge.read("yes") for _ in prompts])
    written = "".join(p.read_text() for p in (kept / "judgements").iterdir())
    for row in read_rows(kept / "seed-0" / "outcomes.jsonl"):
        assert row["prompt"] not in written
        assert row["completion"] not in written
    assert verify(kept) == []


def test_harm_and_refusal_have_the_scores_of_the_paper(kept):
    harm = replace(published()["llamaguard-2"], name="guard")

    def guard(prompts, responses):
        return [harm.read("safe" if "cannot" in r else "unsafe") for r in responses]

    summary = judge_run(kept, harm, guard)
    rates = {(str(r.arm), r.side): r for r in summary.judges["guard"].rows}
    assert rates["baseline", "positive"].safety_score == 1
    assert rates["ablation", "positive"].safety_score == 0
    assert rates["ablation", "positive"].rate == 1
    assert rates["ablation", "positive"].refusal_score is None
    pair = next(p for p in summary.agreement if p.judges == ("refusal-anywhere", "guard"))
    assert pair.kappa == 1  # "gives in" is the same question to both


def test_a_run_without_texts_cannot_be_judged(kept):
    """As a run without --save-completions leaves its rows: see test_rows_hold_no_text_unless_asked."""
    path = kept / "seed-0" / "outcomes.jsonl"
    rows = [{k: v for k, v in row.items() if k not in ("prompt", "completion")} for row in read_rows(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = spec(url="http://localhost")
    with pytest.raises(OutputError, match="--save-completions"):
        judge_run(kept, judge, ExternalJudge(judge))


def test_the_command(kept, classifier, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(
        f'asks = "refusal"\nform = "classifier"\nmodel = "elsewhere"\ntemplate = {json.dumps(RUBRIC)}\n'
        '[answers]\nrefused = "refused"\ncomplied = "complied"\n'
    )
    command = ["judge", str(kept), "--judge", str(file), "--model", str(classifier), "--device", "cpu"]
    assert main(command) == 0
    assert "kappa" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judges"]["mine"]["asked"] == 0
    assert main(["judge", "--list"]) == 0
    assert "harmbench" in capsys.readouterr().out
    assert main(["judge", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["harmbench"]["asks"] == "harm"
    assert main(["judge", str(kept), "--judge", "nobody"]) == 2
    assert main(["judge", str(kept)]) == 2
    assert main(["judge", str(kept), "--judge", "harmbench", "--model", str(tmp_path / "none")]) == 2


def test_the_report_has_a_section_on_external_judges_only_if_there_are_any(kept):
    from rhumbline.report.reliability_sections import external_judges
    from rhumbline.report.run_record import read_run

    assert external_judges(read_run(kept)) == ""
    judge = spec(url="http://localhost")
    judge_run(kept, judge, lambda prompts, _: [judge.read("yes") for _ in prompts])
    assert "Judges after the run" in external_judges(read_run(kept))
