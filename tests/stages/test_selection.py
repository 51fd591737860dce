import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paths import DATA
from rhumbline.errors import ProtocolError
from rhumbline.evidence.selection_rules import (
    ARDITI2024,
    BLOG2026,
    SelectionRule,
    choose,
    describe_discard,
    read_scores,
)
from rhumbline.inference.interventions import Ablate, Add, Arm, Direction, ablate
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import kl_divergence, refusal_metric
from rhumbline.models.hooks import hooked
from rhumbline.records.positions import Position
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.selection_files import Candidate
from rhumbline.stages.selection import score_candidates
from tolerances import near

GOLDEN = DATA / "golden"


@pytest.mark.parametrize("name", ["gemma-2b-it", "yi-6b-chat"])
def test_the_authors_choice_is_reproduced(name):
    table, n_layers = read_scores(GOLDEN / f"{name}.json")
    published = json.loads((GOLDEN / f"{name}.json").read_text())["selected"]
    selected = choose(table, n_layers, ARDITI2024).selected
    assert selected is not None
    assert {"position": int(selected.position), "layer": selected.layer} == published


def test_the_literal_reading_of_the_layer_cut_fails_on_yi():
    table, n_layers = read_scores(GOLDEN / "yi-6b-chat.json")
    right = choose(table, n_layers, ARDITI2024)
    # layer < 0.8 L instead of layer < int(0.8 L): one more layer is let in.
    literal = choose(table, n_layers, replace(ARDITI2024, max_layer_share=(int(0.8 * n_layers) + 1) / n_layers))
    assert 0.8 * n_layers > int(0.8 * n_layers)
    assert right.selected is not None
    assert literal.selected is not None
    assert (int(right.selected.position), right.selected.layer) == (-5, 20)
    assert (int(literal.selected.position), literal.selected.layer) != (-5, 20)
    assert literal.selected.layer == int(0.8 * n_layers)


def cell(position=-1, layer=3, bypass=-5.0, induce=2.0, kl=0.01, **more):
    return Candidate(Position(position), layer, bypass, induce, kl, **more)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (cell(layer=8), "too late (layer 8 >= 8)"),
        (cell(kl=0.2), "kl too large (0.2 > 0.1)"),
        (cell(induce=-0.1), "does not induce (-0.1 < 0)"),
        (cell(bypass=math.nan), "not finite"),
        (cell(induce=math.inf), "not finite"),
        (cell(kl=None), "not scored (kl)"),
        (
            cell(bypass=None, induce=None, kl=None, norm=0.0, discarded=Discard.NO_DIFFERENCE),
            "no difference (norm 0)",
        ),
    ],
)
def test_every_discarded_candidate_has_its_reason(row, reason):
    choice = choose([row], 10, ARDITI2024)
    assert choice.selected is None
    assert choice.survivors == 0
    (discarded,) = choice.candidates
    assert describe_discard(discarded, 10, ARDITI2024) == reason
    assert reason.startswith(str(discarded.discarded))
    assert choice.reason is NoCandidate.ALL_DISCARDED
    survivor = cell(position=-2, bypass=100.0)
    assert choose([row, survivor], 10, ARDITI2024).selected == survivor  # however bad: it passed


@pytest.mark.parametrize("row", [cell(kl=0.1), cell(induce=0.0), cell(layer=7)])
def test_the_bounds_themselves_pass(row):
    assert choose([row], 10, ARDITI2024).selected == row


def test_ties_go_to_the_earliest_position_then_the_lowest_layer():
    rows = [cell(-1, 2), cell(-3, 5), cell(-3, 4), cell(-2, 1)]
    choice = choose(rows, 10, ARDITI2024)
    assert (int(choice.selected.position), choice.selected.layer) == (-3, 4)
    assert len(choice.tied) == 3
    near = choose([cell(-1, 2, -5.0), cell(-2, 2, -4.96), cell(-3, 2, -4.0)], 10, ARDITI2024)
    assert [(int(t.position), t.layer) for t in near.tied] == [(-2, 2)]


def test_the_blogs_rule_takes_the_largest_swing():
    rows = [
        cell(-1, 2, bypass=-8.0, induce=1.0),
        cell(-1, 3, bypass=-6.0, induce=6.0),
        cell(-1, 9, bypass=-1.0, induce=9.0),
    ]
    assert choose(rows, 10, BLOG2026).selected.layer == 3
    assert choose(rows, 10, ARDITI2024).selected.layer == 2


scores = st.one_of(st.none(), st.floats(-20, 20), st.sampled_from([math.nan, math.inf]))


@given(
    st.dictionaries(
        st.tuples(st.integers(-4, -1), st.integers(0, 9)), st.tuples(scores, scores, scores), min_size=1, max_size=40
    )
)
def test_a_choice_satisfies_its_rule_and_nothing_better_does(table):
    rows = [Candidate(Position(p), layer, *s) for (p, layer), s in table.items()]
    choice = choose(rows, 10, ARDITI2024)
    passing = [
        r
        for r in rows
        if r.layer < 8
        and all(s is not None and math.isfinite(s) for s in (r.bypass, r.induce, r.kl))
        and r.kl <= 0.1
        and r.induce >= 0
    ]
    assert choice.survivors == len(passing)
    assert (choice.selected is None) == (not passing)
    if passing:
        assert choice.selected.bypass == min(r.bypass for r in passing)
        assert choice.selected.discarded is None
    assert all((r.discarded is None) == (replace(r, discarded=None) in passing) for r in choice.candidates)
    again = choose(choice.candidates, 10, ARDITI2024)
    assert again == choice  # a table that was read back gives the same choice


def test_bad_tables_list_every_fault(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(
        json.dumps(
            {
                "n_layers": 4,
                "candidates": [
                    {"position": 0, "layer": 1, "bypass": 1, "induce": 1, "kl": 1},
                    {"position": -1, "layer": 9, "bypass": "x", "induce": 1, "kl": 1},
                ],
            }
        )
    )
    with pytest.raises(ProtocolError, match=r"candidate 0: position is 0.*candidate 1: layer is 9.*bypass is 'x'"):
        read_scores(path)
    for text, words in [("{", "not JSON"), ("[]", "expected an object"), ('{"candidates": []}', "n_layers")]:
        path.write_text(text)
        with pytest.raises(ProtocolError, match=words):
            read_scores(path)
    with pytest.raises(ProtocolError, match="cannot be read"):
        read_scores(tmp_path / "nowhere.json")


def test_impossible_rules_are_refused():
    with pytest.raises(ProtocolError, match=r"max_layer_share.*max_kl"):
        SelectionRule("bad", "lowest-bypass", max_layer_share=1.5, max_kl=-1.0)


POSITIVE = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44], [9, 9, 3]]
NEGATIVE = [[7, 100, 3, 9], [77, 78, 79, 80, 81, 82, 83]]


def plain_logits(chat_model, ids, edit_inputs=None, edit_writes=None):
    """One prompt, hooks written out by hand: what the paper's loops do."""
    handles = []
    for layer, block in enumerate(chat_model.blocks):
        if edit_inputs is not None:
            handles.append(
                block.register_forward_pre_hook(lambda m, a, layer=layer: (edit_inputs(layer, a[0]), *a[1:]))
            )
        if edit_writes is not None:
            for w in chat_model.writers:
                if w.layer == layer:
                    handles.append(block.get_submodule(w.module).register_forward_hook(lambda m, a, o: edit_writes(o)))
    with torch.no_grad():
        logits = chat_model.model(torch.tensor([ids])).logits[:, -1]
    for h in handles:
        h.remove()
    return logits


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_scores_equal_the_formulas_written_out(family, family_model):
    chat_model = family_model(family)
    candidates = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    candidates[0, 1] = 0
    tokens = [17, 20]

    def metric(logits):
        return refusal_metric(logits, tokens)

    table = score_candidates(
        Runner(chat_model), candidates, (Position(-2), Position(-1)), POSITIVE, NEGATIVE, metric, ARDITI2024
    )
    assert len(table) == 8
    by_cell = {(int(r.position), r.layer): r for r in table}
    assert by_cell[-2, 1].discarded is Discard.NO_DIFFERENCE
    assert by_cell[-1, 3].bypass is None  # int(0.8 * 4) = 3: never evaluated
    for (position, layer), row in by_cell.items():
        if layer == 3 or (position, layer) == (-2, 1):
            continue
        r = candidates[position + 2, layer]
        unit = r / r.norm()

        def project(h, unit=unit):
            return ablate(h, unit)

        def project_input(at, h, unit=unit):
            return ablate(h, unit)

        def add(at, h, r=r, layer=layer):
            return h + r if at == layer else h

        bypass = torch.cat([metric(plain_logits(chat_model, p, project_input, project)) for p in POSITIVE]).mean()
        induce = torch.cat([metric(plain_logits(chat_model, p, add)) for p in NEGATIVE]).mean()
        kl = torch.cat(
            [
                kl_divergence(plain_logits(chat_model, p), plain_logits(chat_model, p, project_input, project))
                for p in NEGATIVE
            ]
        ).mean()
        assert row.bypass == near(float(bypass))
        assert row.induce == near(float(induce))
        assert row.kl == near(float(kl))


def test_directions_and_arms_fit_the_model(family_model):
    from rhumbline.errors import DirectionError

    chat_model = family_model("llama")
    for vector in (torch.zeros(32), torch.full((32,), float("nan"))):
        with pytest.raises(DirectionError, match="norm"):
            Direction.from_vector(vector, -1, 0)
    wide, deep = Direction.from_vector(torch.ones(33), -1, 0), Direction.from_vector(torch.ones(32), -1, 4)
    for direction, words in ((wide, "width 33"), (deep, "layer 4")):
        with pytest.raises(DirectionError, match=words):
            list(Runner(chat_model).last_logits(POSITIVE, [Arm("a", (Add(direction),))]))
    ok = Direction.from_vector(torch.ones(32), -1, 0)
    with pytest.raises(ProtocolError, match="ablates twice"):
        list(Runner(chat_model).last_logits(POSITIVE, [Arm("a", (Ablate(ok), Ablate(ok)))]))
    with hooked(chat_model, {}):
        pass


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("rule", [ARDITI2024, BLOG2026, replace(ARDITI2024, max_kl=0.02, min_induce=-1.2)])
def test_a_lazy_grid_makes_the_choice_of_the_full_one(family, rule, family_model):
    runner = Runner(family_model(family))
    for seed in range(3):
        candidates = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(seed))
        given = (
            candidates,
            tuple(map(Position, (-3, -2, -1))),
            POSITIVE,
            NEGATIVE,
            lambda logits: refusal_metric(logits, [17, 20, 33]),
        )
        full, lazy = (score_candidates(runner, *given, rule, full_grid=full) for full in (True, False))
        chosen, again = choose(full, 4, rule), choose(lazy, 4, rule)
        assert (chosen.selected is None) == (again.selected is None)
        if chosen.selected is not None:
            assert again.selected.position == chosen.selected.position
            assert again.selected.layer == chosen.selected.layer
            assert [(int(t.position), t.layer) for t in again.tied] == [(int(t.position), t.layer) for t in chosen.tied]
        by_cell = {(r.position, r.layer): r for r in full}
        for row in lazy:
            for name in ("bypass", "induce", "kl"):
                score, other = getattr(row, name), getattr(by_cell[row.position, row.layer], name)
                assert score is None or score == near(other)
        # What was left out has its reason, and something was left out.
        assert all(r.discarded for r in again.candidates if r.kl is None and "kl" in rule.needed())
        assert sum(r.kl is None for r in lazy) > sum(r.kl is None for r in full)


def test_near_ties_are_scored_again_in_one_shape(family_model):
    runner = Runner(family_model("llama"))
    candidates = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    candidates[1] = candidates[0]  # the same direction twice: an exact tie up to rounding
    rule = replace(ARDITI2024, max_kl=10.0, min_induce=-100.0)
    table = score_candidates(runner, candidates, (Position(-2), Position(-1)), POSITIVE, NEGATIVE,
                             lambda logits: refusal_metric(logits, [17]), rule)  # fmt: skip
    choice = choose(table, 4, rule)
    assert choice.selected.position == Position(-2)  # the earliest position
    assert choice.selected.rescored
    assert (int(choice.tied[0].position), choice.tied[0].layer) == (-1, choice.selected.layer)
    others = [r for r in table if r.layer not in (3, choice.selected.layer)]
    assert not any(r.rescored for r in others)
