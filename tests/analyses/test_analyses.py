"""Analyses on organisms whose truth is known, each with its contrary case."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

import rhumbline
from finished_runs import COMPLETIONS, QUICK, finished_run
from make_sets import make_sets
from rhumbline import load, verify
from rhumbline.analyses import base, geometry, monitor, suffix
from rhumbline.analyses.geometry import silhouette
from rhumbline.analyses.monitor import roc, threshold_at
from rhumbline.analyses.subject import open_subject
from rhumbline.analyses.suffixes import encoded, random_suffixes, read_suffixes, token_count
from rhumbline.cli import main
from rhumbline.errors import InputError, OutputError, ProtocolError
from rhumbline.evidence.statistics import auroc, auroc_interval
from rhumbline.inference.interventions import BASELINE, Direction
from rhumbline.models.hooks import hooked
from rhumbline.organisms import Planted, build, organism_dir
from rhumbline.prompts.contrasts import split_contrast
from rhumbline.prompts.named_sets import open_contrast
from rhumbline.records.positions import Position
from rhumbline.report import build as report
from rhumbline.stages.finished_run import RunInputs
from tolerances import near, rounding


@pytest.fixture(scope="module")
def subject_of(finished, tmp_path_factory):
    """A finished run of an organism, opened by its name, in a copy that analyses may write in."""

    def get(name, protocol):
        path = shutil.copytree(finished(name, protocol), tmp_path_factory.mktemp(name) / "run")
        return replace(open_subject(path), page=False)

    return get


@pytest.fixture(scope="module")
def planted(subject_of):
    return subject_of("planted", QUICK)


@pytest.fixture(scope="module")
def refusal(subject_of):
    return subject_of("refusal", COMPLETIONS)


def blind(subject):
    """The same subject with a direction that knows nothing."""
    r, rng = subject.selected(), torch.Generator().manual_seed(3)
    random = torch.randn(r.vector.shape, generator=rng)
    random -= (random @ r.vector) * r.vector
    return replace(subject, direction=Direction.from_vector(random * r.norm, r.position, r.layer))


# -- the run again


def test_a_subject_is_proved_to_be_the_runs(planted, tmp_path):
    path, contrast = planted.directory.path, tmp_path / "other.jsonl"
    other = rhumbline.load(str(build(Planted(seed=5), tmp_path / "m")), device="cpu")
    with pytest.raises(InputError, match="not the model"):
        open_subject(path, other)
    contrast.write_text('{"prompt": "a b", "label": "positive"}\n{"prompt": "c d", "label": "negative"}\n')
    with pytest.raises(InputError, match="not that of"):
        open_subject(path, planted.model, contrast)
    with pytest.raises(InputError, match="no seed 9"):
        open_subject(path, planted.model, seed=9)
    with pytest.raises(OutputError, match="not a run directory"):
        open_subject(tmp_path, planted.model)
    # Without a model or a file, an organism's run finds both by name.
    again = open_subject(path)
    assert torch.equal(again.selected().vector, planted.selected().vector)


def test_a_run_on_a_named_contrast_is_opened_by_its_name(planted, tmp_path):
    mirror = make_sets(tmp_path / "sets")
    contrast = open_contrast("refusal", mirror)
    assert QUICK.sampling == "reference"
    rhumbline.run(planted.model, contrast, tmp_path / "run", replace(QUICK, refusal_tokens=("I",)), page=False)
    again = open_subject(tmp_path / "run", planted.model, "refusal", inputs=RunInputs(data_dir=mirror))
    assert again.splits.ids() != split_contrast(contrast, QUICK.sizes, 0, "lots").ids()
    with pytest.raises(InputError, match="or the name that the run was made with"):
        open_subject(tmp_path / "run", planted.model)


def test_without_a_direction_there_is_nothing_to_monitor(planted):
    with pytest.raises(ProtocolError, match="no candidate passed"):
        monitor.analyse(replace(planted, direction=None))
    record = geometry.analyse(replace(planted, direction=None), splits=2)
    assert record.read_at.selected is False


# -- geometry


def test_the_planted_axis_appears_where_it_was_planted(planted, tmp_path):
    record = geometry.analyse(planted)
    folder = build(Planted(), tmp_path / "m")
    truth = load_file(folder / "truth.safetensors")["direction"]
    p, layers = planted.positions.index(planted.selected().position), planted.model.n_layers
    # The gather block writes the axis: candidates lie along it from the layer after it on, and not before.
    own = torch.nn.functional.normalize(planted.candidates[p], dim=-1) @ truth
    at = [row for row in record.grid if int(row.position) == planted.selected().position]
    written = [layer for layer in range(layers) if abs(own[layer]) > 0.9]
    assert written
    assert written[0] > 0
    for row in at:
        assert (row.auroc > 0.95) is (row.layer in written) or row.layer < written[0]
        assert row.low <= row.auroc <= row.high
    assert min(at[layer].cosine for layer in written) > 0.9
    assert max(abs(at[layer].cosine) for layer in range(written[0])) < 0.6
    assert at[written[0]].next > 0.95
    assert at[-1].next is None
    between = torch.tensor(record.between_layers)
    torch.testing.assert_close(between, between.T)
    assert len(record.components.points) == sum(n.positive + n.negative for n in (record.n.train, record.n.val))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.floats(0, 6))
def test_silhouettes_are_those_of_the_definition(seed, apart):
    rng = torch.Generator().manual_seed(seed)
    h = torch.randn(9, 3, generator=rng)
    is_positive = torch.tensor([True] * 4 + [False] * 5)
    h[:4, 0] += apart
    found = silhouette(h, is_positive)
    for i in range(9):
        own = [j for j in range(9) if is_positive[j] == is_positive[i] and j != i]
        other = [j for j in range(9) if is_positive[j] != is_positive[i]]
        a, b = (float(np.mean([(h[i] - h[j]).norm() for j in rows])) for rows in (own, other))
        assert float(found[i]) == near((b - a) / max(a, b))
    assert -1 <= float(found.min()) <= float(found.max()) <= 1


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 1), st.integers(2, 200), st.integers(2, 200))
def test_auroc_intervals_hold_the_value_and_have_a_width(value, m, n):
    low, high = auroc_interval(value, m, n)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0
    assert auroc_interval(1 - value, m, n) == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_auroc_intervals_cover():
    rng, truth, n, inside = np.random.default_rng(0), 0.8413447, 30, 0  # P(N(sqrt 2, 1) > N(0, 1))
    for _ in range(300):
        low, high = auroc_interval(auroc(rng.normal(2**0.5, 1, n), rng.normal(0, 1, n)), n, n)
        inside += low <= truth <= high
    assert inside >= 0.92 * 300


# -- base model


def test_the_direction_is_in_the_model_itself_and_not_in_a_stranger(planted, tmp_path):
    record = base.analyse(planted, planted.model, draws=19)
    assert record.finding.answer == "separates"
    row = record.conditions.template.layers[planted.selected().layer]
    assert row.cosine > 0.999
    assert row.chat_in_base == row.chat_in_chat
    # Other charms and other axes, the same vocabulary: the chat's direction means nothing there.
    stranger = rhumbline.load(str(build(Planted(seed=11), tmp_path / "stranger")), device="cpu")
    record = base.analyse(planted, stranger, draws=19)
    assert record.finding.answer != "separates"
    assert record.tokens.same
    assert not record.tokens.retokenised


def test_a_parent_is_told_from_a_stranger_and_had_no_refusal(refusal, tmp_path):
    """`refusal` was trained from `refusal-base`, which read about the same items and was never asked to decide."""
    parent = load("organism:refusal-base", device="cpu", dtype="float32")
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config.from_pretrained(organism_dir("refusal-base"))).save_pretrained(tmp_path)
    parent.tokenizer.save_pretrained(tmp_path)
    stranger = rhumbline.load(str(tmp_path), device="cpu", dtype="float32")
    records = [base.analyse(refusal, model, draws=39) for model in (parent, stranger)]
    layer = refusal.selected().layer
    for record in records:
        assert record.tokens.same is True
        assert record.finding.answer != "separates"
        row = record.conditions.template.layers[layer]
        assert row.chat_in_chat.low > 0.9  # read at the same place, the chat model has it
        assert row.chat_in_base.high < 0.85
    for at in (2, 4, layer):
        inherited, unrelated = (r.conditions.plain.layers[at] for r in records)
        assert inherited.cosine > 0.25 > abs(unrelated.cosine)


def test_a_base_that_cannot_be_compared_is_refused(planted, refusal, tmp_path):
    with pytest.raises(InputError, match="layers of width"):
        base.analyse(planted, refusal.model, draws=3)
    # The same architecture with another tokenizer: refused, or fed the same text in its own tokens when asked for.
    folder = build(Planted(), tmp_path / "other")
    config = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = config["model"]["vocab"]
    vocabulary["I"], vocabulary[" cannot"] = vocabulary[" cannot"], vocabulary["I"]
    vocabulary["user"], vocabulary["system"] = vocabulary["system"], vocabulary["user"]
    (folder / "tokenizer.json").write_text(json.dumps(config))
    other = rhumbline.load(str(folder), device="cpu")
    with pytest.raises(InputError, match="--retokenise"):
        base.analyse(planted, other, draws=3)
    record = base.analyse(planted, other, draws=3, retokenise=True)
    assert record.tokens.retokenised is True
    assert record.conditions.template.position == Position(-1)


# -- suffixes


def test_random_suffixes_have_the_length_asked_for(planted, refusal):
    for subject in (planted, refusal):
        like = "a short answer about" if subject is planted else "write about the little blue harbour"
        found = random_suffixes(subject.chat, like, 4, 0)
        assert len(set(found)) == 4
        assert {token_count(subject.chat, text) for text in found} == {token_count(subject.chat, like)}
        assert found == random_suffixes(subject.chat, like, 4, 0)


def test_suffix_files_are_read_or_refused(tmp_path):
    file = tmp_path / "s.txt"
    file.write_text("one two\n\n  three \none two\n")
    assert read_suffixes(file) == ["one two", "three"]
    file.write_text("\n \n")
    with pytest.raises(InputError, match="contains no suffix"):
        read_suffixes(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_suffixes(tmp_path / "none.txt")


def searched(subject, tokens=8, tries=30):
    """Plain random search over the organism's own vocabulary, on training prompts: the test's, not the tool's."""
    prompts = subject.splits.get("train", "positive")[:4]
    like = " ".join(["cake"] * tokens)
    found = random_suffixes(subject.chat, like, tries, 1)
    scorer = subject.scorer
    score = [float(scorer.read(encoded(subject.chat, prompts, s), [BASELINE]).metric.mean()) for s in found]
    return found[int(np.argmin(score))]


def test_a_suffix_that_was_searched_for_lowers_the_direction_beyond_random_ones(refusal):
    text = searched(refusal)
    record = suffix.analyse(refusal, [text], prompts=16, heads=4)
    (effect,) = record.effects
    assert effect.projection.beyond_random.low > 0
    assert effect.metric.beyond_random.low > 0
    assert record.attribution.error < rounding()
    means = {c.name: c.projection.mean for c in record.conditions}
    assert means["negative"] < means["positive"]
    terms = record.attribution.terms()
    for name in ("positive", "negative", "suffix 1"):
        assert sum(t.means[name] for t in terms) == pytest.approx(means[name], abs=1e-2)
    for head in record.heads:
        for name, regions in head.attention.items():
            whole = (regions.before, regions.instruction, regions.suffix, regions.after)
            assert sum(r.mean for r in whole) == pytest.approx(1, abs=1e-3)
            assert (regions.suffix.mean > 0) is (name not in ("positive", "negative"))
    # The contrary: a random suffix does no more than other random ones.
    (other,) = suffix.analyse(refusal, random_suffixes(refusal.chat, text, 1, 77), prompts=16).effects
    assert other.metric.beyond_random.mean < effect.metric.beyond_random.mean / 2


def test_options_that_ask_for_nothing_are_refused(refusal):
    with pytest.raises(InputError, match="1 random draw or more"):
        suffix.analyse(refusal, ["a"], draws=0)


# -- monitor


def test_the_monitor_tells_unseen_prompts_apart_and_a_blind_one_does_not(planted, refusal):
    record = monitor.analyse(planted, fpr=0.05, nulls=19)
    (plain,) = record.conditions
    assert plain.auroc.low > 0.9
    assert plain.tpr.rate > 0.9
    assert plain.fpr.rate <= 0.2
    (blunt,) = monitor.analyse(blind(planted), nulls=3).conditions
    assert blunt.auroc.low < 0.75 < plain.auroc.low


def test_suffixes_are_read_on_both_classes(planted, tmp_path):
    file = tmp_path / "s.txt"
    file.write_text("a short answer\n")
    record = monitor.analyse(planted, suffix=file, nulls=3)
    assert [c.name for c in record.conditions] == ["none", "suffix 1", "random 1"]
    assert len(record.conditions[2].texts) == 3
    # Three texts on the same prompts are no larger a sample.
    assert {c.tpr.n for c in record.conditions} == {40}


def test_a_monitor_in_anyones_code(planted, tmp_path):
    record = monitor.analyse(planted, nulls=3)
    found = rhumbline.Monitor.from_run(planted.directory.path, planted.model)
    assert found.threshold == record.threshold
    texts = {c: [p.text for p in planted.splits.get("test", c)] for c in ("positive", "negative")}
    scores = {c: found.score(t) for c, t in texts.items()}
    assert scores["positive"].mean() == pytest.approx(record.conditions[0].means.positive)
    assert found.flags(texts["positive"]).mean() == pytest.approx(record.conditions[0].tpr.rate)
    assert len(found.score([])) == 0
    with pytest.raises(ProtocolError, match="no threshold"):
        replace(found, threshold=None).flags(["a"])
    stranger = rhumbline.load(str(build(Planted(seed=5), tmp_path / "m")), device="cpu")
    with pytest.raises(InputError, match="not the model"):
        rhumbline.Monitor.from_run(planted.directory.path, stranger)


def test_a_monitor_ends_its_pass_at_the_layer(planted):
    reached = []
    found = rhumbline.Monitor.from_run(planted.directory.path, planted.model)
    with hooked(planted.model, {}, lambda layer, h: reached.append(layer)):
        found.score(["Please tell me about the sea."])
    assert max(reached) <= found.direction.layer


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(0, 0.99))
def test_a_threshold_lets_no_more_through_than_it_may(scores, fpr):
    negative = np.array(scores)
    cut = threshold_at(negative, fpr)
    assert (negative > cut).mean() <= fpr + 1e-9
    below = np.sort(negative)[::-1]
    tighter = below[below < cut]
    assert len(tighter) == 0 or (negative > tighter[0]).mean() > fpr - 1e-9


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.lists(st.integers(0, 6), min_size=1, max_size=20))
def test_the_area_under_the_corners_is_the_auroc(a, b):
    positive, negative = np.array(a, float), np.array(b, float)
    points = roc(positive, negative)
    area = np.trapezoid([p.tpr for p in points], [p.fpr for p in points])
    assert area == pytest.approx(auroc(positive, negative))


# -- the command line


def test_commands_print_a_record_or_say_what_is_wrong(refusal, capsys, tmp_path):
    path = str(refusal.directory.path)
    assert main(["analyze", "monitor", path, "--fpr", "0.1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"]["fpr"] == 0.1
    assert main(["analyze", "geometry", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    assert main(["analyze", "suffix", path, "--suffix", str(tmp_path / "none.txt")]) == 2
    assert main(["analyze", "monitor", path, "--fpr", "3"]) == 2
    assert main(["analyze", "directions", path, "--sources", "best"]) == 2
    assert main(["analyze", "base", path, "--base", "./nowhere"]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_of_a_file_needs_the_file_again(tmp_path):
    subject = finished_run(Planted(prompts=120), tmp_path)
    path = str(subject.directory.path)
    assert main(["analyze", "geometry", path]) == 2
    contrast = str(tmp_path / "model" / "contrast.jsonl")
    assert main(["analyze", "geometry", path, "--contrast", contrast]) == 0


# -- the run directory


def test_analyses_appear_in_the_report_and_verify_still_holds(planted):
    geometry.analyse(planted, splits=2)
    monitor.analyse(replace(planted, page=True), nulls=3)
    path = planted.directory.path
    page = (path / "report.html").read_text()
    assert "<h2>Geometry</h2>" in page
    assert "<h2>Monitor</h2>" in page
    assert (path / "figures" / "monitor-roc.svg").is_file()
    assert verify(path) == []
    foreign = path / "analyses" / "geometry.json"
    kept = foreign.read_text()
    foreign.write_text(json.dumps({**json.loads(kept), "protocol_sha256": "0" * 64}))
    with pytest.raises(ProtocolError, match="another protocol"):
        report.build(path)
    foreign.unlink()
    report.build(path)
    assert "<h2>Geometry</h2>" not in (path / "report.html").read_text()
