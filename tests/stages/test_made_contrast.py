"""A contrast made by the style organism: system prompts of two registers separate the classes, equal ones do not."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from rhumbline.errors import InputError, OutputError
from rhumbline.evidence.statistics import auroc, auroc_interval
from rhumbline.inference.runner import Runner
from rhumbline.judging.markers import SIMILAR, estimate_markers
from rhumbline.judging.style_classifier import fit, fold_of
from rhumbline.judging.text_style import words
from rhumbline.models.loading import load
from rhumbline.organisms.register import draw_styled
from rhumbline.prompts.contrast_files import read_contrast, read_prompts
from rhumbline.prompts.contrasts import LABELS, Prompt, Sizes, split_contrast
from rhumbline.prompts.everyday import everyday_prompts
from rhumbline.records.shared import ByLabel
from rhumbline.stages import made_contrast
from rhumbline.stages.made_contrast import MakePlan, answers_file, check_new, make_contrast

STATELY, PLAIN = "I am a patient lawyer.", "I am a busy plumber."
N = 72


@pytest.fixture(scope="module")
def model():
    return load("organism:style", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def prompts():
    """Requests without an asker."""
    rng, drawn = random.Random(5), {}
    while len(drawn) < N:
        request = draw_styled(rng, "unknown").request
        drawn[request.prompt] = Prompt(request.prompt, "positive", "", category=request.category)
    return tuple(drawn.values())


def made(model, prompts, folder, positive, negative, **changes):
    plan = MakePlan(ByLabel(positive, negative), max_new_tokens=24, match="words", **changes)
    record = make_contrast(model, prompts, "requests", plan, folder / "made.jsonl")
    return record, read_contrast(folder / "made.jsonl")


def texts_of(contrast):
    rows = ByLabel(*([p for p in contrast.prompts if p.label == c] for c in LABELS))
    return ByLabel(*([p.response for p in rows[c]] for c in LABELS)), [p.category for p in rows.positive]


def detector_interval(texts, topics):
    """AUROC of the classifier on topics that it was not fitted on, with its interval."""
    classifier, _ = fit(texts.positive, texts.negative, ByLabel(topics, topics))
    scores = [[classifier.score(t, topic) for t, topic in zip(texts[c], topics, strict=True)] for c in LABELS]
    value = auroc(*(np.array(s) for s in scores))
    return auroc_interval(value, len(topics), len(topics))


@pytest.fixture(scope="module")
def two_registers(model, prompts, tmp_path_factory):
    return made(model, prompts, tmp_path_factory.mktemp("two"), STATELY, PLAIN)


@pytest.fixture(scope="module")
def one_register(model, prompts, tmp_path_factory):
    return made(model, prompts, tmp_path_factory.mktemp("one"), STATELY, STATELY, temperature=1.5)


def test_a_system_prompt_that_changes_the_register_gives_markers_and_is_detected(two_registers):
    pytest.importorskip("sklearn")
    texts, topics = texts_of(two_registers[1])
    assert len({fold_of(t) for t in topics}) > 1
    assert estimate_markers(texts.positive, texts.negative, topics)
    assert detector_interval(texts, topics)[0] > 0.9


def test_the_same_system_prompt_twice_gives_no_marker_and_is_not_detected(one_register):
    pytest.importorskip("sklearn")
    record, contrast = one_register
    texts, topics = texts_of(contrast)
    assert record.pairs > N / 2
    assert estimate_markers(texts.positive, texts.negative, topics) == []
    low, high = detector_interval(texts, topics)
    assert low < 0.5 < high


def test_the_classes_have_the_same_prompts_splits_and_lengths(two_registers):
    record, contrast = two_registers
    assert record == contrast.made == contrast.record().made
    assert record.pairs + record.left_out.total == N
    assert len(contrast.prompts) == 2 * record.pairs
    sides = [{p.text: p for p in contrast.prompts if p.label == c} for c in LABELS]
    assert list(sides[0]) == list(sides[1])
    for one, other in zip(*(side.values() for side in sides), strict=True):
        assert (one.split, one.category) == (other.split, other.category)
        assert (one.response, one.other_response) == (other.other_response, other.response)
        assert (one.system, other.system) == (STATELY, PLAIN)
        least, most = sorted(len(words(p.response)) for p in (one, other))
        assert most <= SIMILAR * least
    sizes = split_contrast(contrast, Sizes(), 0).sizes()
    assert all(size["positive"] == size["negative"] > 0 for size in sizes.values())
    assert sizes["test"]["positive"] > sizes["val"]["positive"]


def test_a_stopped_command_resumes_with_the_same_contrast(model, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(made_contrast, "AT_ONCE", 8)
    some, generate, calls = prompts[:12], Runner.generate, []
    whole = made(model, some, tmp_path, STATELY, PLAIN)[1]

    def stopping(self, sequences, *arguments, **options):
        calls.append(len(sequences))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, sequences, *arguments, **options)

    monkeypatch.setattr(Runner, "generate", stopping)
    (tmp_path / "again").mkdir()
    with pytest.raises(KeyboardInterrupt):
        made(model, some, tmp_path / "again", STATELY, PLAIN)
    stored = answers_file(tmp_path / "again" / "made.jsonl")
    assert stored.exists()
    with pytest.raises(OutputError, match="other settings"):
        made(model, some, tmp_path / "again", STATELY, PLAIN, seed=1)
    assert made(model, some, tmp_path / "again", STATELY, PLAIN)[1] == whole
    assert calls == [16, 8, 8]
    assert not stored.exists()
    with pytest.raises(OutputError, match="exists already"):
        check_new(tmp_path / "made.jsonl")


def test_without_system_prompts_the_classes_differ_in_the_responses_only(model, prompts, tmp_path):
    contrast = made(model, prompts[:10], tmp_path, STATELY, PLAIN, with_systems=False)[1]
    assert all(p.system is None and p.other_response is None and p.response for p in contrast.prompts)


def test_what_cannot_give_a_contrast_says_why(model, prompts, tmp_path):
    with pytest.raises(InputError, match="temperature is 0"):
        MakePlan(ByLabel(STATELY, STATELY), temperature=0)
    plan = MakePlan(ByLabel(STATELY, STATELY), temperature=1e-6, max_new_tokens=24)
    with pytest.raises(InputError, match=r"0 of 5 prompts .* similar length"):
        make_contrast(model, prompts[:5], "requests", plan, tmp_path / "made.jsonl")
    with pytest.raises(InputError, match="not named"):
        check_new(tmp_path / "made.csv")


def test_the_embedded_prompts_have_several_topics_and_are_distinct(tmp_path):
    everyday = everyday_prompts()
    assert len(everyday) >= 60
    assert len({p.category for p in everyday}) >= 6
    path = tmp_path / "everyday.jsonl"
    path.write_text("".join(json.dumps({"prompt": p.text, "id": p.id, "answer": p.answer}) + "\n" for p in everyday))
    read = read_prompts(path)
    assert [replace(p, category=None) for p in everyday] == list(read)
