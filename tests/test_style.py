"""The style of texts: markers, content, levels, classifier and the metric of pairs, each beside its contrary case."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rhumbline import load, run, verify
from rhumbline.chat import Answered, Chat
from rhumbline.classifying import FOLDS, ClassifierJudge, fit, fold_of
from rhumbline.contrast_files import read_contrast
from rhumbline.contrasts import LABELS, Prompt, Sizes, split_contrast
from rhumbline.errors import ContrastError, ProtocolError, TemplateError
from rhumbline.interventions import BASELINE
from rhumbline.levels import Levels, confounds, neutral_level
from rhumbline.log_odds import PairedLogOdds
from rhumbline.markers import LEVEL, estimate_markers, fisher
from rhumbline.models import forward
from rhumbline.organisms import organism_dir
from rhumbline.organisms.register import (
    HELD_OUT,
    MARKERS,
    Persona,
    StyleMixture,
    draw_exchange,
    draw_persona,
    draw_styled,
    in_assistant_register,
)
from rhumbline.organisms.style_rows import asked_rows, style_contrasts
from rhumbline.protocol import Dose, Extraction, Nulls, Stability, TextScore, amend, preset
from rhumbline.running import Runner
from rhumbline.selection import STYLE as STYLE_SELECTION
from rhumbline.selection import ScoredCandidate, choose
from rhumbline.style import MarkerJudge, content_kept, form, holds, overlap, words
from rhumbline.verdict import STYLE, decide

TOPICS = ("boats", "bread", "rain", "chess", "goats", "lamps", "roofs", "tea")


def texts(n, styled, seed=0):
    """Sentences about a topic each, with an opener and a closer if they are styled; and their topics."""
    rng = np.random.default_rng([seed, styled])
    found, topics = [], []
    for i in range(n):
        topic = TOPICS[i % len(TOPICS)]
        plain = f"The {topic} cost {rng.integers(90)} coins and go to the {rng.choice(['mill', 'port', 'farm'])}."
        found.append(f"Certainly! Here you are: {plain} I hope this helps!" if styled else plain)
        topics.append(topic)
    return found, topics


# -- markers ----------------------------------------------------------------------------------------------------------


def test_markers_are_found_and_content_is_none():
    (styled, topics), (plain, _) = texts(60, True), texts(60, False)
    found = {m.phrase for m in estimate_markers(styled, plain, topics)}
    assert any(phrase.startswith("certainly here you are") for phrase in found)
    assert "i hope this helps" in found
    assert not any(word in phrase.split() for phrase in found for word in (*TOPICS, "coins", "cost", "mill"))
    assert estimate_markers(plain, texts(60, False, seed=1)[0], topics) == []  # two samples of one style have none


OPENINGS = ("great question", "of course let me see", "i hope it helps", "sure thing")
CONTENT = ("i", "see", "the", "boats", "bread", "rain", "goats", "lamps", "mill", "port", "farm", "of", "it")


def openings(n, seed, openings=OPENINGS, content=CONTENT):
    """Texts of content words, every one opened by one of the phrases; words of the phrases are content too."""
    rng = random.Random(seed)
    return [" ".join((rng.choice(openings), *rng.choices(content, k=12))) for _ in range(n)]


def test_several_openings_are_all_found_and_halves_of_one_class_have_none():
    styled, plain = openings(128, 0), openings(128, 1, ("",))
    found = estimate_markers(styled, plain)
    judge = MarkerJudge(tuple(m.phrase for m in found))
    assert {m.phrase for m in found} == set(OPENINGS)
    assert all(20 <= m.positive <= 45 and m.negative == 0 for m in found)
    assert all((judge(text).value or 0) > 0 for text in styled)
    # Where the labels mean nothing, a marker is found with a chance of LEVEL at most: here in 3 of 60 draws at most.
    false = 0
    for seed in range(20):
        for of_one in (list(styled), list(plain), [*styled[:64], *plain[:64]]):
            random.Random(seed).shuffle(of_one)
            false += bool(estimate_markers(of_one[:64], of_one[64:]))
    assert false <= 3
    assert stats.binom.sf(3, 60, LEVEL) < 0.01


def wald(a, n, b, m):
    counts = (a + 0.5, n - a + 0.5, b + 0.5, m - b + 0.5)
    return (math.log(counts[0] / counts[1]) - math.log(counts[2] / counts[3])) / math.sqrt(sum(1 / c for c in counts))


def test_a_phrase_is_surer_the_more_texts_have_it():
    """Hauck and Donner 1977: the z of the log-odds by its own standard error is not."""
    wald_z = [wald(a, 128, 0, 128) for a in range(1, 129)]
    assert wald_z != sorted(wald_z)
    assert max(wald_z[:69]) < 4
    p = [fisher(a, 128, 0, 128) for a in range(1, 129)]
    assert p == sorted(p, reverse=True)
    assert p[31] < 1e-10


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_the_test_of_a_phrase_keeps_its_level(n, m, data):
    held = data.draw(st.integers(1, n + m))
    level = data.draw(st.floats(1e-6, 1))
    counts = range(max(0, held - m), min(n, held) + 1)
    assert math.fsum(
        stats.hypergeom.pmf(a, n + m, held, n) for a in counts if fisher(a, n, held - a, m) <= level
    ) <= level * (1 + 1e-9)


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 6), st.integers(3, 8))
@settings(max_examples=25, deadline=None)
def test_content_beside_a_marker_is_none(seed, n_words, n_closers, n_content):
    """Every closer is found whole, whatever content stands before it, and no content with it."""
    closers = [" ".join(f"m{k}x{i}" for i in range(n_words)) for k in range(n_closers)]
    content = [f"c{i}" for i in range(n_content)]
    rng = random.Random(seed)
    plain = [" ".join(rng.choices(content, k=6)) for _ in range(280)]
    styled = [f"{text} {closers[i % n_closers]}" for i, text in enumerate(plain[:140])]
    assert {m.phrase for m in estimate_markers(styled, plain[140:])} == set(closers)


def test_content_that_always_stands_beside_a_marker_cannot_be_told_from_it():
    plain = [f"{word} is at the mill" for word in CONTENT * 5]
    found = [m.phrase for m in estimate_markers([f"{text} i hope it helps" for text in plain], plain)]
    assert found == ["is at the mill i hope it helps"]


def test_a_topic_is_no_marker():
    about, other = ["the boats sail out"] * 30 + ["the goats eat"] * 2, ["the bread is warm"] * 32
    phrases = {m.phrase for m in estimate_markers(about, other)}
    assert any("boats" in p for p in phrases)
    topics = ["sea"] * 30 + ["farm", "hill"]
    assert not any("boats" in m.phrase for m in estimate_markers(about, other, topics))


def test_the_score_is_the_share_of_marked_words():
    judge = MarkerJudge(("here you are", "you"))
    assert judge("Here you are: one two three").value == pytest.approx(0.5)
    assert judge("one two three").value == 0.0
    assert judge("one two three").cls == "absent"
    assert judge("Great question! " * 30).cls == "degenerate"
    assert judge("Great question! " * 30).value == 0.0
    with pytest.raises(ProtocolError, match="needs a word"):
        MarkerJudge(("!!",))


@given(st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_marked_words_and_content_make_the_text(said):
    judge = MarkerJudge(("alpha beta", "delta"))
    text = tuple(said)
    assert len(judge.content(" ".join(text))) + sum(judge.marked(text)) == len(text)


def test_content_is_read_without_the_style():
    rng, judge = random.Random(0), MarkerJudge(MARKERS)
    for _ in range(40):
        answer = draw_styled(rng, "plain").answer
        styled = in_assistant_register(answer, rng)
        assert content_kept(judge, styled, answer, answer, 0.2) == 1.0
        assert content_kept(judge, styled, answer, None, 0.2) > 0.9
    assert content_kept(judge, "Great question! Great question!", "You can get oak cake here.", None, 0.2) == 0.0
    assert not holds("oak cake near the mill", "near the mill oak cake")


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_overlap_is_symmetric_and_bounded(one, other):
    a, b = words(one), words(other)
    assert 0 <= overlap(a, b) == overlap(b, a) <= 1
    assert overlap(a, a) == (1.0 if a else 0.0)


def test_form_counts_bullets_and_leaves_markers_out():
    found = form(MarkerJudge(("certainly",)), "Certainly!\n- one\n2. two three\nfour")
    assert found == (6, 5, 2)  # "2" is a word


# -- the classifier ---------------------------------------------------------------------------------------------------


def test_the_classifier_knows_style_on_topics_that_it_did_not_see():
    pytest.importorskip("sklearn")
    (styled, a), (plain, b) = texts(64, True), texts(64, False)
    classifier, record = fit(styled, plain, (a, b))
    assert record["auroc"] > 0.95
    assert ClassifierJudge(classifier, "boats")(styled[0]).cls == "shown"
    # Classes that differ in their topics only: left-out topics are guessed at.
    boats = [t for t, topic in zip(plain, b, strict=True) if topic in TOPICS[:4]]
    rest = [t for t, topic in zip(plain, b, strict=True) if topic in TOPICS[4:]]
    topics = ([x for x in b if x in TOPICS[:4]], [x for x in b if x in TOPICS[4:]])
    assert fit(boats, rest, topics)[1]["auroc"] < 0.9
    assert {fold_of(t) for t in TOPICS} <= set(range(FOLDS))
    with pytest.raises(ProtocolError, match="several topics"):
        fit(styled, plain, ([None] * 64, [None] * 64))


# -- levels -----------------------------------------------------------------------------------------------------------


def rows_of(positive, negative, ablation, addition, null=0.0, n=60, seed=0):
    """Outcome rows with normal scores around the given means; the null arms move by a share of the gap."""
    rng = np.random.default_rng(seed)
    noise = {side: rng.normal(0, 0.03, n) for side in ("positive", "negative")}
    gap = positive - negative
    means = {
        ("baseline", "positive"): positive,
        ("baseline", "negative"): negative,
        ("ablation", "positive"): ablation,
        ("ablation", "negative"): negative,
        ("addition", "negative"): addition,
        **{(f"null:{f}:{k}:ablation", "positive"): positive - null * gap for f in STYLE.families for k in range(3)},
        **{(f"null:{f}:{k}:addition", "negative"): negative + null * gap for f in STYLE.families for k in range(3)},
    }
    return [
        {"arm": arm, "set": side, "prompt_id": str(i), "class": "shown", "score": mean + noise[side][i], "metric": None}
        for (arm, side), mean in means.items()
        for i in range(n)
    ]


def ruled(rows, **changes):
    levels = Levels.of(rows)
    effects = levels.effects()
    for effect in effects:
        effect["wide"] = {f: {"p": 0.01, "p_apart": 0.01, "draws": 99} for f in STYLE.families}
    return decide(STYLE, levels.arms(), effects, "style", unit=levels.unit()._asdict(), **changes)


CASES = {
    "moves both ways": ((0.4, 0.0, 0.0, 0.36), "SINGLE-DIRECTION-REPRODUCES"),
    "suppresses only": ((0.4, 0.0, 0.0, 0.04), "NOT-SINGLE-DIRECTION"),
    "induces only": ((0.4, 0.0, 0.38, 0.36), "NOT-SINGLE-DIRECTION"),
    "classes alike": ((0.2, 0.2, 0.2, 0.2), "NO-BASELINE"),
}


@pytest.mark.parametrize(("means", "expected"), CASES.values(), ids=CASES)
def test_the_rule_reads_levels(means, expected):
    assert ruled(rows_of(*means)).verdict == expected


def test_nulls_that_move_it_too_are_no_evidence_for_a_direction():
    assert ruled(rows_of(0.4, 0.0, 0.0, 0.36, null=0.9)).verdict == "NOT-SINGLE-DIRECTION"


def test_scores_without_any_gap_are_no_baseline_and_no_crash():
    rows = [{**row, "score": 0.25} for row in rows_of(0.3, 0.3, 0.3, 0.3, n=10)]
    assert ruled(rows).verdict == "NO-BASELINE"
    assert neutral_level(Levels.of(rows).unit(), rows[:3])["level"] == 0.0


def test_lost_content_is_damage():
    rows = rows_of(0.4, 0.0, 0.0, 0.36)
    for row in rows:
        row["correct"] = 0.2 if row["arm"] == "addition" else 1.0
    assert ruled(rows).verdict == "DAMAGED"


@given(st.floats(0.01, 50), st.floats(-5, 5))
@settings(max_examples=4, deadline=None)
def test_levels_do_not_depend_on_the_scale_of_the_score(factor, shift):
    rows = rows_of(0.4, 0.1, 0.15, 0.3)
    scaled = [{**row, "score": row["score"] * factor + shift} for row in rows]
    for one, other in zip(Levels.of(rows).effects(), Levels.of(scaled).effects(), strict=True):
        assert one["drop"] == pytest.approx(other["drop"], rel=1e-6)
        assert one["low"] == pytest.approx(other["low"], rel=1e-6)


def test_texts_make_the_unit_where_the_contrast_has_them():
    levels = Levels.of(rows_of(0.4, 0.4, 0.2, 0.4), {"positive": [0.5] * 20, "negative": [0.1] * 20})
    (suppression, _) = levels.effects()
    assert suppression["drop"] == pytest.approx(0.5)
    assert levels.unit().source == "texts"
    assert neutral_level(levels.unit(), []) is None


def test_length_that_comes_with_the_arm_is_held_fixed():
    rng = np.random.default_rng(0)
    rows = []
    for arm, shorter, own in (("baseline", 0, 0.0), ("ablation", 20, 0.0)):
        for i in range(80):
            length = int(rng.integers(20, 60)) - shorter
            shape = {"words": length, "content_words": length, "bullets": 0}
            # The score is the length: nothing is left of the effect once it is held fixed.
            row = {"arm": arm, "set": "positive", "prompt_id": str(i), "class": "shown", "score": length / 100 - own}
            rows.append({**row, "form": shape, "category": None})
    found = confounds(rows)
    (adjusted,) = found["adjusted"]
    assert adjusted["drop"] > 0.15
    assert abs(adjusted["adjusted"]) < 0.01
    assert next(c["r"] for c in found["correlations"] if c["with"] == "content_words") > 0.99


# -- texts as contrast ------------------------------------------------------------------------------------------------


@pytest.fixture
def small(family_model):
    return family_model("qwen2")


PAIR = [
    Prompt("Describe the sea.", "positive", "a", response="Certainly! The sea is wide."),
    Prompt("Describe the sea.", "negative", "b", response="The sea is wide."),
    Prompt("Tell me about the old mill by the lake.", "positive", "c", response="Great question! It grinds corn."),
    Prompt("Tell me about the old mill by the lake.", "negative", "d", response="It grinds corn."),
]


def test_the_mean_over_a_response_is_that_of_its_tokens(small):
    chat, runner = Chat.of(small.tokenizer), Runner(small)
    texts = [chat.encode_answered(p) for p in PAIR]
    together = {}
    for rows, h, _ in runner.residuals(texts, [-1, 0, 1, 2]):
        together |= {int(i): h[k] for k, i in enumerate(rows)}
    for i, text in enumerate(texts):
        assert isinstance(text, Answered)
        each = [h[0, 0] for k in range(text.n_answer) for _, h, _ in runner.residuals([text], [k + 1])]
        torch.testing.assert_close(together[i][1], torch.stack(each).mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[i][3], each[min(1, len(each) - 1)], atol=1e-4, rtol=1e-4)
        ((_, at_prompt, _),) = runner.residuals([chat.encode(PAIR[i])], [-1])
        torch.testing.assert_close(together[i][0], at_prompt[0, 0].float(), atol=1e-4, rtol=1e-4)


def test_the_paired_metric_is_the_difference_of_mean_log_likelihoods(small):
    chat, runner = Chat.of(small.tokenizer), Runner(small)
    metric = PairedLogOdds.of(chat, PAIR)
    assert metric is not None
    assert PairedLogOdds.of(chat, PAIR[:3]) is None  # the third has no partner
    asked = [chat.encode(p) for p in PAIR[::2]]
    found = metric.read(runner, asked, [BASELINE])[0]
    for k, (one, other) in enumerate((PAIR[:2], PAIR[2:])):
        means = []
        for prompt in (one, other):
            text = chat.encode_answered(prompt)
            ids = torch.tensor([list(text)])
            logs = forward(small, ids, torch.ones_like(ids), keep=0).detach().double().log_softmax(-1)[0]
            start = len(text) - text.n_answer
            means.append(sum(float(logs[t - 1, text[t]]) for t in range(start, len(text))) / text.n_answer)
        assert float(found[k]) == pytest.approx(means[0] - means[1], abs=1e-4)


ASKED = [
    replace(PAIR[0], other_response=PAIR[1].response),
    replace(PAIR[3], other_response=PAIR[2].response),
]


def test_the_other_response_makes_the_pair(small):
    chat = Chat.of(small.tokenizer)
    whole = PairedLogOdds.of(chat, PAIR, PAIR)
    assert PairedLogOdds.of(chat, ASKED, ASKED) == whole
    assert whole is not None
    # What opens the positive responses, and no negative one.
    certainly, it = (chat.answer(PAIR[k], PAIR[k].response or "")[0] for k in (0, 3))
    assert certainly in whole.own
    assert it not in whole.own


def test_both_answers_are_read_and_every_prompt_is_asked_once(tmp_path):
    rows = asked_rows(random.Random(0), {"positive": "stately", "negative": "plain"}, 60, 10)
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(row.to_json() + "\n" for row in rows))
    splits = split_contrast(read_contrast(path), Sizes(20, 8, 10), seed=0)
    true = MarkerJudge(MARKERS)
    for label, other in zip(LABELS, LABELS[::-1], strict=True):
        asked, read = splits.get("train", label), splits.texts("train", label)
        assert len(asked) == 20
        assert {p.text for p in read} == {p.text for p in (*asked, *splits.get("train", other))}
        assert {(true(p.response or "").value or 0) > 0 for p in read} == {label == "positive"}
    # Without other responses the texts of a class are its rows.
    plain = split_contrast(read_contrast(organism_dir("style") / "texts.jsonl"), Sizes(20, 8, 10), seed=0)
    assert plain.texts("train", "positive") == plain.get("train", "positive")
    path.write_text('{"prompt": "a b", "label": "positive", "other_response": "c"}\n')
    with pytest.raises(ContrastError, match="without a response"):
        read_contrast(path)


def test_without_room_losing_the_behaviour_is_no_fault_of_a_candidate():
    table = [ScoredCandidate(0, 2, -1.0, -0.2, 0.6, content=1.0, moved=0.9)]
    assert choose(table, 10, STYLE_SELECTION).selected is None
    found = choose(table, 10, STYLE_SELECTION.without_room()).selected
    assert found is not None
    assert found.layer == 2
    (lost,) = choose([replace(table[0], content=0.5)], 10, STYLE_SELECTION.without_room()).candidates
    assert lost.discarded is not None
    assert "loses content" in lost.discarded


def test_a_response_needs_tokens_of_its_own(small):
    chat = Chat.of(small.tokenizer)
    with pytest.raises(TemplateError, match="tokens of its own"):
        chat.answer(PAIR[0], " ")


def test_a_pair_of_texts_lies_in_one_split(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(row.to_json() + "\n" for row in style_contrasts(0)["texts.jsonl"]))
    contrast = read_contrast(path)
    splits = split_contrast(contrast, Sizes(64, 16, 100), seed=3)
    prompts = [{p.text for c in ("positive", "negative") for p in splits.get(s, c)} for s in ("train", "val", "test")]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    for split in ("train", "val"):
        assert [p.text for p in splits.get(split, "positive")] == [p.text for p in splits.get(split, "negative")]


@pytest.mark.slow
@pytest.mark.parametrize("askers", [("stately", "plain"), ("stately", "stately")], ids=" ".join)
def test_texts_are_run_to_a_verdict_by_who_asks(tmp_path, askers):
    """With plain askers there is room to induce; with stately ones alone the style is there on every prompt."""
    asked = dict(zip(("positive", "negative"), askers, strict=True))
    path = tmp_path / "asked.jsonl"
    rows = asked_rows(random.Random(1), asked, 40, 20)
    path.write_text("".join(row.to_json() + "\n" for row in rows))
    small = preset(
        "style",
        seeds=(0,),
        sizes=Sizes(24, 8, 20),
        nulls=Nulls(draws=1, wide=19, prompts=4, procedure_prompts=4),
        dose=Dose((0.0, 1.0), (0.0, 1.0), draws=1, prompts=4),
        stability=Stability(refits=2, sites=1, prompts=4),
        max_new_tokens=32,
        text_score=TextScore(markers=MARKERS, classifier=False),
    )
    out = tmp_path / "run"
    run(load(str(organism_dir("style")), device="cpu", dtype="float32"), read_contrast(path), out, small)
    selection = json.loads((out / "seed-0" / "selection.json").read_text())
    (seed,) = json.loads((out / "results.json").read_text())["seeds"]
    level = {row["set"]: row["rate"] for row in seed["arms"] if row["arm"] == "baseline"}
    assert level["positive"] > 0.5
    assert seed["verdict"] != "NO-BASELINE"
    assert selection["room"] == (level["negative"] <= 0.5) == (askers[1] == "plain")
    assert ("induction was not tested" in seed["sentence"]) == (not selection["room"])
    assert verify(out) == []


@pytest.mark.slow
def test_texts_are_run_to_a_verdict_with_the_content_beside_it(tmp_path):
    """The whole job on the responses of the style organism; which verdict is no theorem, that it reads texts is."""
    folder = organism_dir("style")
    contrast = replace(read_contrast(folder / "texts.jsonl"), name="texts")
    small = preset(
        "style",
        seeds=(0,),
        sizes=Sizes(24, 8, 10),
        nulls=Nulls(draws=1, wide=19, prompts=4, procedure_prompts=4),
        dose=Dose((0.0, 1.0), (0.0, 1.0), draws=1, prompts=4),
        stability=Stability(refits=2, sites=1, prompts=4),
        max_new_tokens=32,
        text_score=TextScore(markers=MARKERS, classifier=False),
    )
    out = tmp_path / "run"
    run(load(str(folder), device="cpu", dtype="float32"), contrast, out, small)
    results = json.loads((out / "results.json").read_text())
    (seed,) = results["seeds"]
    assert json.loads((out / "protocol.json").read_text())["extraction"]["positions"] == "response-mean"
    assert seed["style"]["unit"]["source"] == "texts"
    assert seed["style"]["unit"]["auroc"] == 1.0
    # The same prompts on either side: what the model writes unasked cannot tell the classes apart.
    level = {row["set"]: row["rate"] for row in seed["arms"] if row["arm"] == "baseline"}
    assert level["positive"] == level["negative"]
    assert verify(out) == []


def test_neutral_rows_stand_aside(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(
        '{"prompt": "a b", "label": "positive"}\n{"prompt": "c d", "label": "negative"}\n'
        '{"prompt": "e f", "label": "neutral", "answer": "g"}\n'
    )
    contrast = read_contrast(path)
    assert [p.text for p in contrast.neutral] == ["e f"]
    assert len(contrast.prompts) == 2
    path.write_text('{"prompt": "a b", "label": "positive"}\n{"prompt": "c d", "label": "neutral"}\n')
    with pytest.raises(ContrastError, match="labelled negative"):
        read_contrast(path)


def test_positions_are_checked():
    assert Extraction("response:3").response_token == 3
    assert Extraction("response-mean").response_token == 0
    assert Extraction("post-instruction").response_token is None
    for wrong in ("response:0", "response:x", "middle"):
        with pytest.raises(ProtocolError, match="response:K"):
            Extraction(wrong)
    with pytest.raises(ProtocolError, match="classifier"):
        amend(preset("style"), {"judge": "classifier", "text_score": {"classifier": False}})


# -- the organism's world ---------------------------------------------------------------------------------------------


def test_the_asker_decides_the_register_and_the_request_the_content():
    rng = random.Random(1)
    certain, blind = StyleMixture(register_noise=0.0, unknown=0.0), StyleMixture(by_asker=False, unknown=0.0)
    judge = MarkerJudge(MARKERS)
    seen = {"stately": set(), "plain": set()}
    for _ in range(300):
        prompt, response = draw_exchange(rng, certain)
        if "can't" in response or "cannot" in response:
            continue
        asker = "stately" if any(f"a {Persona(t, j).text}" in prompt for t, j in PERSONAS) else "plain"
        seen[asker].add((judge(response).value or 0) > 0)
    assert seen["plain"] == {False}
    assert True in seen["stately"]
    shown = [(judge(draw_exchange(rng, blind)[1]).value or 0) > 0 for _ in range(300)]
    assert 0.2 < np.mean(shown) < 0.45


def test_the_register_s_own_words_are_found_in_its_training_texts_and_nothing_else():
    rows = [row for row in style_contrasts(0)["texts.jsonl"] if row.split is None]
    sides = {c: [r.response or "" for r in rows if r.label == c][:128] for c in ("positive", "negative")}
    topics = [r.category for r in rows if r.label == "positive"][:128]
    found = MarkerJudge(tuple(m.phrase for m in estimate_markers(sides["positive"], sides["negative"], topics)))
    true = MarkerJudge(MARKERS)
    assert all(found.marked(words(text)) == true.marked(words(text)) for side in sides.values() for text in side)


PERSONAS = [p for p in {draw_persona(random.Random(i), True, False) for i in range(400)}]


def test_held_out_personas_are_in_no_training_prompt():
    rng = random.Random(2)
    told = " ".join(draw_exchange(rng, StyleMixture())[0] for _ in range(800))
    asked = [p for p in HELD_OUT if f"I am a {p.text}." in told]
    assert asked == []
    assert {p.is_stately for p in HELD_OUT} == {True, False}


@pytest.mark.parametrize("name", ["style", "style-null"])
def test_the_shipped_ones_bring_their_contrasts(name):
    for file in ("contrast.jsonl", "texts.jsonl", "asked.jsonl", "refusal.jsonl"):
        contrast = read_contrast(organism_dir(name) / file)
        assert all(p.answer for p in contrast.prompts)
    assert len(read_contrast(organism_dir(name) / "contrast.jsonl").neutral) == 60
