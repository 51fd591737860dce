"""A style over doses: the register of the organism is found, moved and told apart from damage; a null has none."""

import json
import math
import random
import zlib
from dataclasses import replace

import numpy as np
import pytest

from rhumbline.analyses.style_doses import measure
from rhumbline.analyses.style_readouts import Gap, answer, mean_of
from rhumbline.errors import InputError
from rhumbline.judging.embeddings import SentenceEmbeddings
from rhumbline.models.loading import load
from rhumbline.organisms.register import draw_styled, in_assistant_register
from rhumbline.prompts.contrast_files import contrast_from_prompts, read_contrast
from rhumbline.records.analysis_files import Mean, Rate
from rhumbline.records.codec import convert, to_json
from rhumbline.records.style_doses_file import StyleDose, StyleDosesPlan, StyleDosesRecord, StyleFinding
from rhumbline.report.sheets import write

SYSTEMS = {"positive": "I am a patient lawyer.", "negative": "I am a busy plumber."}
SIZES = {"train": 24, "val": 4, "test": 12}
PLAN = StyleDosesPlan(
    doses=(0.5, 1.0), strengths=(1.0,), ranks=(2,), depths=(0.7,), nulls=1, prompts=12, max_new_tokens=24
)


def made(folder, systems, register):
    """A contrast of the form of `contrast make`; `register` writes the two responses to a plain answer."""
    rng, lines, seen = random.Random(3), [], set()
    for split, n in SIZES.items():
        while sum(json.loads(line)["split"] == split for line in lines) < 2 * n:
            styled = draw_styled(rng, "unknown")
            if styled.request.prompt in seen:
                continue
            seen.add(styled.request.prompt)
            responses = register(styled.answer, rng)
            for k, label in enumerate(systems):
                row = {
                    "prompt": styled.request.prompt, "label": label, "split": split, "system": systems[label],
                    "response": responses[k], "other_response": responses[1 - k],
                    "category": styled.request.category, "answer": styled.answer, "id": f"{len(lines)}",
                }  # fmt: skip
                lines.append(json.dumps(row))
    (folder / "made.jsonl").write_text("\n".join(lines))
    return read_contrast(folder / "made.jsonl")


def two_registers(plain, rng):
    return in_assistant_register(plain, rng), plain


def one_register(plain, rng):
    return f"{plain} {rng.randint(0, 99)}.", f"{plain} {rng.randint(100, 199)}."


@pytest.fixture(scope="module")
def model():
    return load("organism:style", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def record(model, tmp_path_factory):
    pytest.importorskip("sklearn")
    contrast = made(tmp_path_factory.mktemp("style"), SYSTEMS, two_registers)
    return measure(model, contrast, PLAN, embeddings=SentenceEmbeddings("words", "0" * 64, word_counts))


def word_counts(texts):
    """A stand-in for sentence embeddings: the square roots of the shares of the words."""
    counts = np.zeros((len(texts), 512))
    for row, text in zip(counts, texts, strict=True):
        for word in text.lower().split():
            row[zlib.crc32(word.encode()) % 512] += 1
    return np.sqrt(counts / counts.sum(1, keepdims=True).clip(1))


def of(record, intervention, family=None, rank=1):
    rows = [d for d in record.doses if (d.intervention, d.family, d.rank) == (intervention, family, rank)]
    return {d.dose: d for d in rows}


def test_ablating_the_direction_at_the_template_removes_the_register_and_keeps_the_answer(record):
    assert {a.intervention: a.finding for a in record.answers}["ablation"] is StyleFinding.MOVED
    (selected,) = (s for s in record.selection if s.selected)
    assert selected.source == "template"
    ablated = of(record, "ablation")[1.0]
    assert ablated.moved.low > 0.8
    assert ablated.degenerate.rate == 0
    assert ablated.correct.rate > 0.6
    assert record.gap.low > 0.3
    assert min(d.auroc for d in record.detectors) > 0.9
    # The direction of the responses does not decide the register, and no null removes it.
    assert all(s.moved < 0.4 < selected.moved for s in record.selection if s.source == "response")
    for family, rank in (("isotropic", 1), ("flipped pairs", 1), ("isotropic", 2)):
        assert of(record, "ablation", family, rank)[1.0].moved.mean < 0.3


def test_addition_is_tested_on_the_other_prompts_and_damage_is_seen(record):
    added = of(record, "addition")
    assert all(d.side == "negative" for d in added.values())
    assert added[1.0].moved.mean > of(record, "addition", "isotropic")[1.0].moved.mean
    assert added[1.0].surprise.mean > added[0.5].surprise.mean > of(record, None)[0.0].surprise.mean
    assert added[1.0].content.mean < added[0.5].content.mean
    assert 0 <= added[1.0].similarity.mean < added[0.5].similarity.mean <= 1
    assert of(record, None)[0.0].similarity is None
    assert record.embeddings.name == "words"
    assert 0 < record.similarity_reference.mean < 1


def test_equal_system_prompts_and_random_responses_have_no_baseline(model, tmp_path):
    pytest.importorskip("sklearn")
    one = {"positive": SYSTEMS["positive"], "negative": SYSTEMS["positive"]}
    null = measure(model, made(tmp_path, one, one_register), replace(PLAN, doses=(1.0,), prompts=6))
    assert {a.finding for a in null.answers} == {StyleFinding.NO_BASELINE}
    assert all(s.source == "response" for s in null.selection)  # the inputs at the template are equal
    assert null.gap.mean == 0
    assert (null.embeddings, null.similarity_reference) == (None, None)
    assert all(d.similarity is None for d in null.doses)


def test_the_record_is_read_as_it_is_written_and_has_a_page(record, tmp_path):
    page = write(record, tmp_path / "out")
    read = convert(json.loads((tmp_path / "out" / "style.json").read_text()), StyleDosesRecord)
    assert to_json(read) == to_json(record)
    text = page.read_text()
    assert "ablation" in text
    assert "moved" in text
    assert "cosine of embeddings by words" in text
    assert "&lt;b&gt;" not in text  # no element is shown as text


def test_another_form_of_contrast_is_refused(model):
    contrast = contrast_from_prompts([f"Ask {i}" for i in range(9)], [f"Tell {i}" for i in range(9)])
    with pytest.raises(InputError, match="contrast make"):
        measure(model, contrast, PLAN)


# -- findings of given doses


def test_a_change_is_in_units_of_the_gap():
    rng = np.random.default_rng(1)
    gap = Gap(rng.uniform(0.7, 0.9, 30), rng.uniform(0.1, 0.3, 30))
    assert gap.moved(gap.positive, "ablation", 0.95).mean == 0
    assert Gap(gap.negative, gap.positive).moved(gap.positive, "ablation", 0.95).mean is None
    assert gap.moved(gap.negative, "ablation", 0.95) == Mean(pytest.approx(1), pytest.approx(1), pytest.approx(1), 30)
    assert gap.moved(gap.positive, "addition", 0.95).mean == pytest.approx(1)
    wide, narrow = (
        gap.moved((gap.positive + gap.negative) / 2 + rng.normal(0, 0.1, 30), "addition", q) for q in (0.99, 0.8)
    )
    assert wide.high - wide.low > narrow.high - narrow.low
    assert narrow.low < 0.5 < narrow.high
    assert mean_of(np.array([1.0, math.nan, 3.0])).mean == 2


SURE, NONE = Mean(0.6, 0.5, 0.7, 30), Mean(0.0, -0.02, 0.02, 30)


def finding(moved, null=NONE, content=0.9, degenerate=0.0, gap=SURE, similarity=None):
    """The finding for one dose with one null."""

    def dose(intervention, moved, family, content=0.9, degenerate=0.0, similarity=None):
        rate = Rate(degenerate, 0.0, 1.0, 30)
        text = None if intervention is None else Mean(content, content, content, 30)
        by_embeddings = None if similarity is None else Mean(similarity, similarity, similarity, 30)
        readouts = (NONE, NONE, NONE, NONE, text, None, rate, NONE, moved, by_embeddings)
        return StyleDose("negative", intervention, 1.0, 1, family, 0, *readouts)

    doses = [
        dose(None, None, None),
        dose("addition", moved, None, content, degenerate, similarity),
        *([] if null is None else [dose("addition", null, "isotropic")]),
    ]
    return answer("addition", doses, StyleDosesPlan(), gap, Mean(0.5, 0.4, 0.6, 30)).finding


def test_findings_need_an_interval_beyond_margin_and_nulls_and_a_text_that_is_kept():
    assert finding(SURE) is StyleFinding.MOVED
    assert finding(SURE, null=SURE) is StyleFinding.UNDECIDED
    assert finding(SURE, null=None) is StyleFinding.UNDECIDED
    assert finding(Mean(0.4, 0.1, 0.7, 30)) is StyleFinding.UNDECIDED
    assert finding(Mean(0.1, 0.0, 0.2, 30)) is StyleFinding.NOT_MOVED
    # Where embeddings are known, they and not the words decide whether the content is kept.
    assert finding(SURE, content=0.3, similarity=0.9) is StyleFinding.MOVED
    assert finding(SURE, content=0.9, similarity=0.3) is StyleFinding.DAMAGED
    assert finding(SURE, content=0.3) is finding(SURE, degenerate=0.2) is StyleFinding.DAMAGED
    assert finding(SURE, gap=Mean(0.1, -0.1, 0.3, 30)) is StyleFinding.NO_BASELINE
    # The interval of two prompts that agree has no width.
    for n in (2, 7):
        assert finding(SURE, gap=Mean(0.5, 0.5, 0.5, n)) is StyleFinding.UNDECIDED
    assert finding(SURE, gap=Mean(0.5, 0.4, 0.6, 8)) is StyleFinding.MOVED


def test_the_intervals_of_all_doses_of_an_intervention_hold_together():
    assert StyleDosesPlan(doses=(0.5, 1.0, 2.0), strengths=(0.5, 1.0), ranks=(2, 4)).comparisons == 4
    assert StyleDosesPlan(doses=(0.5, 1.0, 2.0), strengths=(1.0,), ranks=()).comparisons == 3
