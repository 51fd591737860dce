"""Circuit: on a planted model the head that writes the direction carries everything, and the others nothing."""

from dataclasses import replace

import pytest
import torch

from rhumbline.analyses import patching as patching_module
from rhumbline.analyses.attribution import Part
from rhumbline.analyses.circuit import analyse
from rhumbline.analyses.patching import Patching
from rhumbline.errors import InputError
from rhumbline.models.chat_model import HookPoint
from rhumbline.models.hooks import hooked
from rhumbline.organisms import Planted
from rhumbline.records.circuit_file import CircuitPlan, CircuitRecord
from rhumbline.report.circuit_section import circuit
from rhumbline.report.page import Canvas
from tolerances import WITH_SOFTMAX, tolerance

PLAN = CircuitPlan(sizes=(1, 2), draws=3, prompts=8, random=1, max_new_tokens=8)


@pytest.fixture(scope="module")
def record(planted) -> CircuitRecord:
    return analyse(planted, PLAN)


def test_the_planted_head_carries_everything(record, planted):
    first = record.parts[0]
    assert (first.kind, first.layer, first.head) == ("head", Planted().gather_block, 1)
    for quantity in ("projection", "metric", "metric along the direction"):
        share = record.share("negative", "top", 1, quantity).share
        assert share.mean == pytest.approx(1, abs=0.05)
        assert share.low > 0.9
        assert share.n == PLAN.prompts
    assert planted.directory.read_record(CircuitRecord) == record


@pytest.mark.parametrize("size", PLAN.sizes)
def test_other_heads_and_mlps_carry_nothing(record, size):
    for quantity in ("projection", "metric", "metric along the direction"):
        random = record.share("negative", "random", size, quantity)
        assert abs(random.share.mean) < 0.02
        assert random.largest < 0.05


def test_all_parts_before_the_site_carry_the_whole_projection(record):
    """The site is a token of the template, so both prompts have the same embedding there."""
    assert record.share("negative", "all", record.available, "projection").share.mean == pytest.approx(1, abs=1e-4)
    assert record.tokens == 5


def test_a_suffix_acts_through_the_same_head(planted):
    """The head averages over all words, so a long suffix of ordinary words lowers the projection through this head."""
    text = "and the small mill by the quiet orchard near the old bridge"
    found = analyse(planted, PLAN, [text])
    assert [c.name for c in found.conditions] == ["negative", "suffix 1", "random 1"]
    share, others = (found.share("suffix 1", senders, 1, "projection") for senders in ("top", "random"))
    assert share.share.low > 0.8
    assert others.largest < 0.2
    plain, suffixed, random = found.completions
    assert (plain.name, plain.rate.rate, plain.change) == ("no suffix", 1.0, None)
    assert suffixed.change.mean == pytest.approx(plain.rate.rate - suffixed.rate.rate)
    assert random.rate.n == PLAN.prompts
    assert suffixed.change.n == random.change.n == PLAN.prompts
    assert "Completions with" in str(circuit(found, Canvas()))


@pytest.fixture(scope="module")
def patching(refusal):
    """Every head and MLP of the trained organism before layer 5."""
    writers = [w for w in refusal.model.writers if w.layer < 5]
    heads = refusal.model.model.config.num_attention_heads
    senders = [
        part
        for w in writers
        for part in (
            [Part("head", w.layer, w.module, k) for k in range(heads)]
            if "attn" in w.module
            else [Part("writer", w.layer, w.module)]
        )
    ]
    r = refusal.selected().vector
    return Patching(refusal.model, senders, r, 5, -1, len(refusal.chat.suffix), refusal.tokens)


def test_no_sender_changes_nothing_and_the_own_writes_neither(patching, refusal):
    target, source = refusal.sequences("test", "positive")[0], refusal.sequences("test", "negative")[0]
    none, every = torch.zeros(1, len(patching.senders), dtype=torch.bool), torch.ones(1, len(patching.senders)) > 0
    (plain, own), (_, other) = patching.with_writes(target), patching.with_writes(source)
    for found in (
        patching.plain(target),
        patching.read(target, other, none),
        patching.read(target, other, none, along_direction=True),
        patching.read(target, own, every),
        patching.read(target, own, every, along_direction=True),
    ):
        torch.testing.assert_close(found.projection, plain.projection, **tolerance(terms=4 * WITH_SOFTMAX))
        torch.testing.assert_close(found.metric, plain.metric, **tolerance(terms=8 * WITH_SOFTMAX))
    assert abs(float(patching.read(target, other, every).projection - plain.projection)) > 0.1


@pytest.mark.parametrize("kind", ["head", "writer"])
def test_a_patch_is_the_written_out_replacement(patching, refusal, kind):
    """One head, or one MLP: its channels or its output at the last tokens are those of the other prompt."""
    model, n = refusal.model, patching.n
    target, source = refusal.sequences("test", "positive")[1], refusal.sequences("test", "negative")[2]
    index = next(i for i, part in enumerate(patching.senders) if part.kind == kind and part.layer == 2)
    part = patching.senders[index]
    point = HookPoint("write_input" if kind == "head" else "write", part.layer, part.module)
    stored = []

    def keep(h):
        stored.append(h[:, -n:].clone())
        return h

    def replace_writes(h):
        h = h.clone()
        width = h.shape[-1] // model.model.config.num_attention_heads
        channels = slice(part.head * width, (part.head + 1) * width) if kind == "head" else slice(None)
        h[:, -n:, channels] = stored[0][..., channels]
        return h

    def stream(ids, edit):
        inputs = {}
        with torch.no_grad(), hooked(model, {point: edit}, lambda layer, h: inputs.setdefault(layer, h)):
            model.model(torch.tensor([ids]))
        return float(inputs[5][0, -1] @ patching.r)

    stream(source, keep)
    expected = stream(target, replace_writes)
    chosen = torch.zeros(1, len(patching.senders), dtype=torch.bool)
    chosen[0, index] = True
    found = patching.read(target, patching.with_writes(source)[1], chosen).projection[0]
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert abs(expected - stream(target, lambda h: h)) > 1e-4


def test_a_pair_takes_four_forward_passes(planted, monkeypatch):
    passes, plain = [], patching_module.forward
    monkeypatch.setattr(patching_module, "forward", lambda *a: passes.append(len(a[1])) or plain(*a))
    analyse(planted, replace(PLAN, sizes=(1,), draws=2))
    assert passes == [1, 1, 4, 4] * PLAN.prompts  # prompt, source, and 1 top, 2 random and all senders, twice


def test_positives_need_as_many_negatives(planted):
    parts = planted.splits.parts
    test = {"positive": parts["test"]["positive"], "negative": parts["test"]["negative"][:2]}
    few = replace(planted, splits=replace(planted.splits, parts={**parts, "test": test}))
    with pytest.raises(InputError, match="2 test negatives"):
        analyse(few, PLAN)


def test_the_report_has_a_section(record):
    canvas = Canvas()
    html = str(circuit(record, canvas))
    assert "top 1" in html
    assert [drawing.chart.name for drawing in canvas.drawings] == ["circuit-negative", "circuit-parts"]
