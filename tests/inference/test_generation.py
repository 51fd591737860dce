"""Completions of many rows decoded together are those of each row alone, whatever the memory and the slots."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from rhumbline.errors import InputError
from rhumbline.inference import decoding, generation
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import forward, new_cache
from tolerances import tolerance

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9], [8, 8, 2, 9, 5]]


def test_generation_equals_transformers_own(family_model):
    chat_model = family_model("llama")
    ours = Runner(chat_model).generate(PROMPTS, max_new_tokens=8)[0][0]
    for ids, text in zip(PROMPTS, ours, strict=True):
        theirs = chat_model.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
        )[0, len(ids) :].tolist()
        stops = chat_model.stop_tokens()
        cut = next((i for i, t in enumerate(theirs) if t in stops), len(theirs))
        assert text == theirs[:cut]


def test_a_stopped_row_leaves_and_the_others_go_on(family_model, monkeypatch):
    chat_model = family_model("qwen2")
    free = Runner(chat_model).generate(PROMPTS, max_new_tokens=8)[0][0]
    stop = free[0][2]
    monkeypatch.setattr(type(chat_model), "stop_tokens", lambda self: frozenset({stop}))
    stopped = Runner(chat_model).generate(PROMPTS, max_new_tokens=8)[0][0]
    for whole, text in zip(free, stopped, strict=True):
        assert text == (whole[: whole.index(stop)] if stop in whole else whole)
    assert stopped != free


@pytest.mark.parametrize("family", ["qwen2", "falcon_h1"])
def test_a_decided_row_ends_early_and_no_other_changes(family, family_model):
    chat_model = family_model(family)
    direction = Direction.from_vector(torch.arange(1.0, chat_model.d_model + 1), -1, 1)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),))]
    whole = Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=20)[0]
    asked = []

    def decided(arm, tokens):
        asked.append(arm)
        return arm == 1 and len(tokens) >= 8

    cut = Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=20, decided=decided)[0]
    assert cut[0] == whole[0]
    assert cut[1] == [text[:8] for text in whole[1]] != whole[1]
    assert set(asked) == {0, 1}


@pytest.mark.parametrize("packed", [True, False])
def test_as_many_rows_are_decoded_as_half_of_the_memory_caches(family_model, monkeypatch, packed):
    """Three rows fit at first, then all, then (nothing is cached and every step reads everything) what a pass holds."""
    chat_model = family_model("qwen2")
    chat_model = replace(chat_model, proof=replace(chat_model.proof, packing_is_exact=packed))
    config = chat_model.model.config
    heads, channels = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    row = 2 * 4 * chat_model.n_layers * heads * channels * (max(map(len, PROMPTS)) + 7)

    def rows(runner, free):
        monkeypatch.setattr(generation, "free_memory", lambda device: free)
        with watched(monkeypatch) as seen:
            found = runner.generate(PROMPTS, [BASELINE, BASELINE], max_new_tokens=7)[0]
        assert found[0] == found[1]
        return found, seen

    few, together = rows(Runner(chat_model), 2 * 3 * row)
    assert together[0] == 2  # both arms of the longest prompt; a second prompt would be four rows
    many, together = rows(Runner(chat_model), 2 * 8 * row)
    assert together == [8]
    assert few == many
    uncached = replace(chat_model, proof=replace(chat_model.proof, cache_is_exact=False, packing_is_exact=False))
    again, together = rows(Runner(uncached, tokens_per_forward=4 * (max(map(len, PROMPTS)) + 7)), 0)
    assert together[0] == 4
    assert again == many


@contextmanager
def watched(monkeypatch):
    """How many rows were begun together, each time that prompts were read for decoding (but to measure)."""
    seen = []
    real = decoding.Slots.start
    with monkeypatch.context() as patched:
        patched.setattr(decoding.Slots, "start", lambda self, begun: seen.append(len(begun.row)) or real(self, begun))
        yield seen


def ends_early(monkeypatch, chat_model):
    """Completions of many prompts end at different lengths: some token that they write has become a stop token."""
    prompts = [[5 + i, 9, 70 + 3 * i, 11, *range(20, 20 + i)] for i in range(12)]
    free = Runner(chat_model).generate(prompts, max_new_tokens=12)[0][0]
    written = sorted({t for text in free for t in text}, key=lambda t: sum(text.index(t) for text in free if t in text))
    stops = frozenset(written[: len(written) // 3])
    monkeypatch.setattr(type(chat_model), "stop_tokens", lambda self: stops)
    return prompts


@pytest.mark.parametrize("family", ["qwen2", "gemma3_text", "mistral", "gpt2"])
def test_rows_that_wait_take_the_places_of_finished_ones(family, family_model, monkeypatch):
    """With sliding windows, absolute positions and several arms; whoever is decoded alone writes the same."""
    chat_model = family_model(family)
    prompts = ends_early(monkeypatch, chat_model)
    direction = Direction.from_vector(torch.arange(1.0, chat_model.d_model + 1), -1, 1)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),))]
    metric = dict(max_new_tokens=12, read=lambda logits: logits[:, 7])
    alone = [Runner(chat_model).generate([p], arms, **metric) for p in prompts]
    monkeypatch.setattr(generation, "CPU_ROWS", 6)
    monkeypatch.setattr(generation, "SPARE_SHARE", 0.0)
    ticks = []
    with watched(monkeypatch) as seen:
        texts, first = Runner(chat_model, tick=ticks.append).generate(prompts, arms, **metric)
    for arm in range(2):
        assert texts[arm] == [found[0][arm][0] for found in alone]
        torch.testing.assert_close(first[arm], torch.cat([found[1][arm] for found in alone]), **tolerance())
    assert len({len(text) for text in texts[0]}) > 1
    assert seen[0] == 6
    assert len(seen) > 2
    assert sum(seen) == sum(ticks) == 2 * len(prompts)


def test_an_arm_that_overflows_does_not_change_others(family_model, monkeypatch):
    """A row gets the slot of a longer one whose keys and values are not finite."""
    chat_model = family_model("qwen2")
    overflow = Arm("overflow", (Add(Direction.from_vector(torch.full((chat_model.d_model,), 1e37), -1, 1), 1000.0),))
    long, short = [[5 + i, 9, 70, 11, *range(20, 32)] for i in range(2)], PROMPTS[2:]
    alone = Runner(chat_model).generate(short, max_new_tokens=8)[0]
    monkeypatch.setattr(generation, "CPU_ROWS", 2)
    monkeypatch.setattr(generation, "SPARE_SHARE", 0.0)
    together = Runner(chat_model).generate_groups([(long, [overflow]), (short, [BASELINE])], max_new_tokens=8)
    assert together[1].tokens == alone


def test_no_new_token_is_refused(family_model):
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        Runner(family_model("qwen2")).generate(PROMPTS, max_new_tokens=0)


def test_the_states_of_recurrent_layers_count_as_memory(family_model):
    chat_model = family_model("falcon_h1")
    cache = new_cache(chat_model)
    ids = torch.tensor([PROMPTS[0]])
    forward(chat_model, ids, torch.ones_like(ids), cache)
    arm, edits = torch.zeros(1, dtype=torch.long), BatchEdits.of([BASELINE], chat_model)
    decoder = decoding.PaddedDecoder(chat_model, edits, arm, ids, torch.ones_like(ids), cache)
    states = [x for layer in cache.layers for x in vars(layer).values()]
    parts = [x for some in states for x in (some.values() if isinstance(some, dict) else [some])]
    n_bytes = sum(x.numel() * x.element_size() for x in parts if isinstance(x, torch.Tensor))
    assert any(isinstance(some, dict) and some for some in states)
    assert decoder.bytes_per_token == n_bytes / ids.numel()


def grouped(chat_model):
    """Groups of prompts with one to three arms, an empty one among them."""
    prompts = [[5 + i, 9, 70 + 3 * i, 11, *range(20, 20 + 2 * i)] for i in range(9)]
    axes = [torch.arange(1.0, chat_model.d_model + 1).roll(i) for i in range(3)]
    one, two, three = (Arm(f"{i}", (Ablate(Direction.from_vector(v, -1, 1)),)) for i, v in enumerate(axes))
    return [(prompts[:4], [BASELINE, one, two]), (prompts[4:6], [three]), ([], [one]), (prompts[6:], [two, BASELINE])]


@pytest.mark.parametrize("rows", [3, 7, 192])
@pytest.mark.parametrize("family", ["qwen2", "mistral", "falcon_h1"])
def test_groups_that_are_decoded_together_are_those_decoded_apart(family, rows, family_model, monkeypatch):
    """Packed and padded; with as many slots as one prompt has arms, with waiting rows, and with all rows together."""
    chat_model = family_model(family)
    groups = grouped(chat_model)
    options = dict(max_new_tokens=10, read=lambda logits: logits[:, 7])
    apart = [Runner(chat_model).generate(prompts, arms, **options) for prompts, arms in groups]
    monkeypatch.setattr(generation, "CPU_ROWS", rows)
    monkeypatch.setattr(generation, "SPARE_SHARE", 0.0)
    decided = []
    together = Runner(chat_model).generate_groups(
        groups, decided=lambda arm, tokens: decided.append(arm) or False, **options
    )
    assert [some.tokens for some in together] == [some.tokens for some in apart]
    for some, alone in zip(together, apart, strict=True):
        torch.testing.assert_close(some.readings, alone.readings, **tolerance())
    assert set(decided) == {0, 1, 2, 3, 5, 6}  # arms are numbered through all groups; the fifth has no prompt
    assert apart[0].tokens[0] != apart[0].tokens[1] != apart[0].tokens[2]


def test_groups_are_divided_when_memory_runs_out(family_model, monkeypatch):
    chat_model = family_model("qwen2")
    groups = grouped(chat_model)
    expected = [some.tokens for some in Runner(chat_model).generate_groups(groups, max_new_tokens=6)]
    real = decoding.slot_forward

    def small_memory(model, slots, tokens):
        if len(tokens) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(model, slots, tokens)

    monkeypatch.setattr(decoding, "slot_forward", small_memory)
    ticks = []
    found = Runner(chat_model, tick=ticks.append).generate_groups(groups, max_new_tokens=6)
    assert [some.tokens for some in found] == expected
    assert sum(ticks) == sum(len(prompts) * len(arms) for prompts, arms in groups)


@pytest.mark.parametrize("slots", [3, 4])
def test_a_group_with_more_arms_than_the_first_rows_gets_its_slots(slots, family_model, monkeypatch):
    """The longest prompt is prefilled first and has two arms; three slots for the others are not left beside it."""
    chat_model = family_model("qwen2")
    groups = [([PROMPTS[1]], [BASELINE] * 2), ([PROMPTS[2], PROMPTS[3]], [BASELINE] * 3)]
    expected = [Runner(chat_model).generate(prompts, arms, max_new_tokens=4).tokens for prompts, arms in groups]
    monkeypatch.setattr(generation, "SPARE_SHARE", 0.0)
    monkeypatch.setattr(generation, "CPU_ROWS", slots)
    real, steps = decoding.PackedDecoder.next, []

    def limited(self, token, alive):
        steps.append(bool(alive.any()))
        assert len(steps) < 50  # without its slots the last prompt waits for ever
        return real(self, token, alive)

    monkeypatch.setattr(decoding.PackedDecoder, "next", limited)
    assert [some.tokens for some in Runner(chat_model).generate_groups(groups, max_new_tokens=4)] == expected
    assert all(steps)


def test_groups_share_the_steps_of_decoding(family_model, monkeypatch):
    chat_model = family_model("qwen2")
    groups = [(PROMPTS[:2], [BASELINE]), (PROMPTS[2:], [BASELINE] * 3)]
    with watched(monkeypatch) as seen:
        Runner(chat_model).generate_groups(groups, max_new_tokens=4)
    assert seen == [8]


def test_more_arms_than_rows_are_cut(family_model, monkeypatch):
    chat_model = family_model("qwen2")
    monkeypatch.setattr(generation, "SPARE_SHARE", 0.0)
    arms = [BASELINE] * 5
    whole = Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=4)[0]
    monkeypatch.setattr(generation, "CPU_ROWS", 2)
    with watched(monkeypatch) as seen:
        assert Runner(chat_model).generate(PROMPTS, arms, max_new_tokens=4)[0] == whole
    assert max(seen) == 2


def test_memory_that_runs_out_while_decoding_loses_nothing(family_model, monkeypatch):
    """After some rows have ended: they are done again, and counted once."""
    chat_model = family_model("qwen2")
    prompts = ends_early(monkeypatch, chat_model)
    expected = Runner(chat_model).generate(prompts, max_new_tokens=12)[0]
    monkeypatch.setattr(generation, "SPARE_SHARE", 0.0)
    monkeypatch.setattr(generation, "CPU_ROWS", 6)
    real, ticks = decoding.PackedDecoder.refill, []

    def small_memory(self, free):
        if len(self.slots.length) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(self, free)

    monkeypatch.setattr(decoding.PackedDecoder, "refill", small_memory)
    assert Runner(chat_model, tick=ticks.append).generate(prompts, max_new_tokens=12)[0] == expected
    assert min(ticks) < 0
    assert sum(ticks) == len(prompts)


@pytest.mark.parametrize(("fitting", "rows"), [(2 * 64, 64), (16 * 80, 80), (10**6, 192)])
def test_a_processor_decodes_more_rows_where_memory_is_plentiful(family_model, monkeypatch, fitting, rows):
    """With free memory for so many rows, of which a sixteenth is plenty and one half the most."""
    chat_model = family_model("qwen2")
    config = chat_model.model.config
    channels = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    row = 2 * 4 * chat_model.n_layers * channels * (5 + 1)
    monkeypatch.setattr(generation, "free_memory", lambda device: fitting * row)
    with watched(monkeypatch) as seen:
        Runner(chat_model).generate([[5, 9, 70, 11, i] for i in range(2 * rows - 2)], max_new_tokens=1)
    assert seen == [rows, rows - 2]
