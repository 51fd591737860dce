"""Sources of damage: the positions of a prompt add up, and ablation at all of them is that of the engine."""

from dataclasses import replace

import pytest

from rhumbline.analyses import damage
from rhumbline.inference.interventions import Ablate, Arm
from rhumbline.records.analysis_files import Mean
from rhumbline.records.damage_file import DamageRecord, PositionDamage
from rhumbline.records.positions import Position
from rhumbline.records.shared import Site
from tolerances import near


def test_ablation_at_all_positions_is_that_of_the_engine(planted):
    record = damage.analyse(planted, prompts=4)
    sequences = planted.sequences("test", "negative")[:4]
    baseline = planted.scorer.baseline(sequences)
    engine = planted.scorer.kl(sequences, [Arm("ablation", (Ablate(planted.selected()),))], baseline)
    assert record.kl("all").mean == near(float(engine.mean()))
    assert record.kl("all").n == 4
    tokens = {row.positions: row.tokens for row in record.by_position}
    parts = ("the template before the instruction", "the instruction", "the template after the instruction")
    assert sum(tokens[part] for part in parts) == tokens["all"]
    assert tokens["the first token"] == tokens["all"] - tokens["all but the first token"] == 1
    assert [row.layer for row in record.by_layer] == list(range(planted.model.n_layers))
    assert planted.directory.read_record(DamageRecord) == record


def test_without_a_direction_the_best_discarded_candidate_is_ablated(planted):
    record = damage.analyse(replace(planted, direction=None), prompts=2)
    assert not record.is_selected
    assert record.site == planted.selected_site()  # the candidate with the lowest bypass score


def kls(everywhere: float | None, spared: float | None, bound: float | None = 0.1) -> DamageRecord:
    values = dict.fromkeys(damage.PLACES, everywhere) | {"all but the first token": spared}
    rows = tuple(PositionDamage(place, 1.0, Mean(kl, kl, kl, 4)) for place, kl in values.items())
    mean = Mean(1.0, 1.0, 1.0, 4)
    return DamageRecord(
        seed=0, site=Site(Position(-1), 2), is_selected=False, bound=bound, by_position=rows, by_layer=(),
        first_norm=mean, other_norm=mean,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (kls(0.05, 0.05), "within 0.1"),
        (kls(4.8, 0.08), "Sparing the first token brings it within the bound"),
        (kls(4.8, 0.08), "--spare-tokens 1 "),
        (kls(4.8, 0.55), "does not bring it within the bound (the first token: 0.55,"),
        (kls(4.8, None), "the first token: not measured,"),
        (kls(None, 0.08), "was not measured"),
        (replace(kls(4.8, 0.08), spared=1), "Sparing the first token, as the run does, brings it within the bound"),
        (kls(4.8, 0.08, bound=None), "4.80; the selection rule has no bound on it"),
        (kls(None, None, bound=None), "was not measured"),
    ],
)
def test_the_record_states_whether_sparing_positions_brings_the_kl_within_the_bound(record, text):
    assert text in record.sentence


def test_a_system_prompt_of_its_own_belongs_to_the_instruction(planted):
    """Only what all prompts share is the template."""
    ids = planted.sequences("test", "negative")[0]
    end = planted.chat.spans(ids).prefix_end
    other = [*ids[: end - 1], *[ids[end]] * 3, *ids[end - 1 :]]
    masks = {place: damage._mask(planted, other, place) for place in damage.PLACES}
    assert int(masks["the template before the instruction"].sum()) == end - 1
    assert int(masks["the instruction"].sum()) == len(other) - (end - 1) - len(planted.chat.suffix)
