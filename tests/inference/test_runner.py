import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhumbline.errors import ModelError
from rhumbline.inference import decoding, passes
from rhumbline.inference import runner as running
from rhumbline.inference.batching import CPU_TOKENS, LEAST_TOKENS, MOST_TOKENS, packs, rectangles
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.memory import memory_limits
from rhumbline.inference.runner import Runner
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
