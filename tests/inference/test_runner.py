import itertools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.errors import InputError, ModelError
from rhumbline.inference import decoding, generation, passes
from rhumbline.inference import runner as running
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.batching import CPU_TOKENS, LEAST_TOKENS, MOST_TOKENS, packs, rectangles
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.memory import memory_limits
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import forward, new_cache
from rhumbline.models.packing import shared_length
from tolerances import tolerance

PROMPTS = [[5, 9, 70, 11, 33, 8], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [7, 100, 3, 9], [8, 8, 2, 9, 5]]


def completions(chat_model, budget, **options):
    direction = Direction.from_vector(torch.arange(1.0, 33.0), -1, 1)
    arms = [BASELINE, Arm("ablation", (Ablate(direction),))]
    return Runner(chat_model, budget, **options).generate(PROMPTS, arms, max_new_tokens=8)[0]


def test_the_budget_changes_no_completion(family_model):
    chat_model = family_model("qwen2")
    assert completions(chat_model, 1) == completions(chat_model, 60) == completions(chat_model, 100_000)


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


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(family_model, monkeypatch, caplog):
    chat_model = family_model("qwen2")
    expected = completions(chat_model, 100_000)
    real = decoding.packed_forward

    def small_memory(model, pack, n_arms, attention):
        if len(pack.lengths) * n_arms > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(model, pack, n_arms, attention)

    monkeypatch.setattr(decoding, "packed_forward", small_memory)
    ticks = []
    assert completions(chat_model, 100_000, tick=ticks.append) == expected
    assert sum(ticks) == 2 * len(PROMPTS)
    assert "batches now have at most" in caplog.text


def test_running_out_of_memory_halves_the_budget_once_for_all_batches(family_model, monkeypatch, caplog):
    """Three rows fit into memory: batches of half the size do, so no later batch may fail too."""
    chat_model, prompts = family_model("qwen2"), [[5 + i, 9, 70, 11 + i, 33, 8] for i in range(40)]
    expected = dict(enumerate_rows(Runner(chat_model), prompts))
    real, failures = passes.packed_forward, []

    def small_memory(model, pack, n_arms, attention):
        if len(pack.lengths) * n_arms > 3:
            failures.append(pack)
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(model, pack, n_arms, attention)

    monkeypatch.setattr(passes, "packed_forward", small_memory)
    runner = Runner(chat_model, 30)
    found = dict(enumerate_rows(runner, prompts))
    assert found.keys() == expected.keys()
    for key, logits in found.items():
        torch.testing.assert_close(logits, expected[key], **tolerance())
    assert len(failures) == 1
    assert runner.tokens_per_forward == 15


def enumerate_rows(runner, prompts):
    """The logits of every row, by arm and prompt."""
    for rows, logits in runner.last_logits(prompts):
        yield from zip(zip(rows.arm.tolist(), rows.prompt.tolist(), strict=True), logits, strict=True)


def test_memory_too_small_for_one_prompt_is_an_error_that_helps(family_model, monkeypatch):
    def no_memory(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    monkeypatch.setattr(passes, "packed_forward", no_memory)
    with pytest.raises(ModelError, match=r"single prompt.*dtype"):
        list(Runner(family_model("qwen2")).last_logits(PROMPTS))


def test_another_error_is_not_mistaken_for_memory(family_model, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(passes, "packed_forward", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        list(Runner(family_model("qwen2")).last_logits(PROMPTS))


def test_models_that_padding_changes_are_batched_by_length(family_model):
    chat_model = family_model("qwen2")
    strict = replace(chat_model, proof=replace(chat_model.proof, padding_changes_logits=True))
    strict = replace(strict, proof=replace(strict.proof, packing_is_exact=False))
    for block in Runner(strict).batches([*PROMPTS, [1, 2, 3, 4]], 2):
        assert len({len([*PROMPTS, [1, 2, 3, 4]][p]) for p in block.prompts}) == 1
    assert completions(strict, 1000) == completions(chat_model, 1000)


def test_an_accelerators_budget_is_measured(family_model, monkeypatch):
    """A pretended device: 2 MiB for each pass, 1 GiB free."""
    chat_model = family_model("qwen2")
    assert running.measured_tokens(chat_model, PROMPTS[0]) == CPU_TOKENS
    monkeypatch.setattr(type(chat_model), "device", torch.device("cuda"))
    read = []
    monkeypatch.setattr(Runner, "last_logits", lambda self, sequences: read.extend(sequences) or iter(sequences))
    memory = {"free": 2**30, "peak": 2 * 2**20}
    for name in ("reset_peak_memory", "allocated_memory"):
        monkeypatch.setattr(running, name, lambda device: 0)
    monkeypatch.setattr(running, "peak_memory", lambda device: memory["peak"])
    monkeypatch.setattr(running, "free_memory", lambda device: memory["free"])
    tokens = 1024 // len(PROMPTS[0]) * len(PROMPTS[0])
    assert running.measured_tokens(chat_model, PROMPTS[0]) == min(65536, int(2**29 / (2 * 2**20 / tokens)))
    assert sum(map(len, read)) == tokens
    assert shared_length(read[: len(PROMPTS[0])]) == 0  # what prompts share is read once, and would make it look cheap
    memory["free"] = 2**22
    assert running.measured_tokens(chat_model, PROMPTS[0]) == LEAST_TOKENS
    memory |= {"free": 2**40}
    assert running.measured_tokens(chat_model, PROMPTS[0]) == MOST_TOKENS


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


def test_limits_of_control_groups_count(tmp_path):
    """Both versions, the limits of the groups above included; "max" is no limit, and no groups are none."""
    assert memory_limits(tmp_path / "none", tmp_path) == []
    groups = tmp_path / "cgroup"
    groups.write_text("4:memory:/job/step\n3:cpu:/job\n0::/slice/run\n")
    for path, limit in {
        "memory/job/memory.limit_in_bytes": "2000",
        "memory/memory.limit_in_bytes": "9000",
        "cpu/job/memory.limit_in_bytes": "1",
        "slice/run/memory.max": "max",
        "slice/memory.max": "5000",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(limit + "\n")
    assert memory_limits(groups, tmp_path) == [2000, 9000, 5000]


LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=30)


@given(
    lengths=LENGTHS,
    arms=st.integers(1, 9),
    extra=st.integers(0, 60),
    tokens=st.integers(1, 600),
    rows=st.integers(1, 40),
)
def test_rectangles_hold_every_row_once_within_their_bounds(lengths, arms, extra, tokens, rows):
    found = list(rectangles(lengths, arms, tokens, extra=extra, rows=rows))
    assert sorted((a, p) for b in found for a in b.arms for p in b.prompts) == sorted(
        itertools.product(range(arms), range(len(lengths)))
    )
    for block in found:
        n, longest = len(block.arms) * len(block.prompts), max(lengths[p] for p in block.prompts)
        assert n == 1 or (n * (longest + extra) <= tokens and n <= rows)
    free = list(rectangles(lengths, arms, 10**6))
    assert len(free) == 1 <= len(found)


@given(lengths=LENGTHS, arms=st.integers(1, 9), tokens=st.integers(1, 600), data=st.data())
def test_packs_hold_every_row_once_within_their_budget(lengths, arms, tokens, data):
    shared = data.draw(st.integers(0, min(lengths) - 1))
    found = list(packs(lengths, shared, arms, tokens))
    assert sorted((a, p) for b in found for a in b.arms for p in b.prompts) == sorted(
        itertools.product(range(arms), range(len(lengths)))
    )
    for block in found:
        held = shared + sum(lengths[p] - shared for p in block.prompts)
        assert len(block.prompts) == len(block.arms) == 1 or len(block.arms) * held <= tokens or len(block.arms) == 1
        assert len(block.prompts) == 1 or held <= tokens
    # Prompts come before arms: who can hold all prompts does.
    if shared + sum(n - shared for n in lengths) <= tokens:
        assert all(len(block.prompts) == len(lengths) for block in found)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_what_sequences_share(sequences):
    n = shared_length(sequences)
    assert len({tuple(s[:n]) for s in sequences}) == 1
    assert n == min(map(len, sequences)) or len({tuple(s[: n + 1]) for s in sequences}) > 1
