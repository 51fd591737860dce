"""Reading whole texts: the packed and the padded path give what a plain forward pass of one text gives."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhumbline.errors import InputError
from rhumbline.inference import documents
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.documents import Document, token_readings
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm, Direction
from rhumbline.inference.runner import Runner
from rhumbline.models.chat_model import forward
from rhumbline.models.hooks import hooked
from tolerances import WITH_SOFTMAX, tolerance

DOCUMENTS = [
    Document([1, 9, 70, 11, 33, 8, 5, 6], 3),
    Document([1, 9, 70, 42, 43, 44, 45, 46, 47, 48, 49, 50], 7),
    Document([1, 100], 1),
    Document([1, 9, 70, 42, 43, 44, 45, 90, 91], 2),
]
FAMILIES = ["llama", "qwen2", "gemma2", "gemma3_text", "granite", "gpt2", "opt", "bloom", "phi3", "mixtral", "gpt_neox"]
OTHERS = ["cohere", "mamba2", "recurrent_gemma", "gptj", "deepseek_v3", "qwen3_next"]
ARM_NAMES = ["baseline", "ablation", "addition", "addition to the prompt"]


def arms_of(chat_model) -> list[Arm]:
    direction = Direction.from_vector(torch.linspace(-1, 2, chat_model.d_model), -1, 1)
    edits = [(), (Ablate(direction),), (Add(direction, 2.0),), (Add(direction, 2.0, "prompt"),)]
    return [Arm(name, edit) for name, edit in zip(ARM_NAMES, edits, strict=True)]


def loss(logits, tokens):
    log_p = logits.float().log_softmax(-1)
    return -log_p.gather(-1, tokens[None, :, None].expand(len(logits), -1, 1))


def plain(chat_model, document: Document, arm: Arm):
    """One text, one arm, one whole forward pass."""
    ids = torch.tensor([document.ids])
    edits = BatchEdits.of([arm], chat_model).on(torch.zeros(1, dtype=torch.long), document.start)
    with torch.no_grad(), hooked(chat_model, edits):
        logits = forward(chat_model, ids, torch.ones_like(ids), keep=0)[0].float()
    return torch.nn.functional.cross_entropy(
        logits[document.start - 1 : -1], ids[0, document.start :], reduction="none"
    )


def losses(chat_model, documents, arms, budget=4096, **options) -> dict[tuple[int, int], torch.Tensor]:
    found = {}
    for document, these, values in token_readings(Runner(chat_model, budget, **options), documents, arms, loss):
        for arm, value in zip(these, values, strict=True):
            assert (document, arm) not in found
            found[document, arm] = value[:, 0].float()
    return found


def check(chat_model, documents, arms, **options):
    found = losses(chat_model, documents, arms, **options)
    assert len(found) == len(documents) * len(arms)
    for (document, arm), value in found.items():
        torch.testing.assert_close(
            value, plain(chat_model, documents[document], arms[arm]), **tolerance(terms=WITH_SOFTMAX)
        )


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_every_path_equals_a_plain_forward(family, family_model):
    chat_model = family_model(family)
    arms = arms_of(chat_model)
    check(chat_model, DOCUMENTS, arms)
    if chat_model.proof.packing_is_exact:
        check(replace(chat_model, proof=replace(chat_model.proof, packing_is_exact=False)), DOCUMENTS, arms)
    before, after = (plain(chat_model, DOCUMENTS[1], arm) for arm in arms[:2])
    assert (before - after).abs().max() > 1e-2  # the arms differ, so mixing them up would show


def test_the_steps_after_the_head_are_not_lost(family_model):
    """Soft-capping changes the losses: without it they would be others, and the paths would agree on them."""
    capped = family_model("gemma2")
    config = capped.model.config
    assert config.final_logit_softcapping
    before = losses(capped, DOCUMENTS, [BASELINE])
    config.final_logit_softcapping, old = 0.5, config.final_logit_softcapping
    try:
        check(capped, DOCUMENTS, [BASELINE])
        assert (losses(capped, DOCUMENTS, [BASELINE])[0, 0] - before[0, 0]).abs().max() > 1e-2
    finally:
        config.final_logit_softcapping = old


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_documents_in_any_budget(data, family_model):
    chat_model = family_model("qwen2")
    arms = arms_of(chat_model)
    texts = data.draw(st.lists(st.lists(st.integers(3, 40), min_size=2, max_size=12), min_size=1, max_size=5))
    documents = [Document(ids, data.draw(st.integers(1, len(ids) - 1))) for ids in texts]
    check(chat_model, documents, arms, budget=data.draw(st.sampled_from([1, 20, 60, 4096])))


def test_few_logits_at_once_change_nothing(family_model, monkeypatch):
    chat_model = family_model("gemma2")
    arms = arms_of(chat_model)
    sizes = []

    def seen(logits, tokens):
        sizes.append(logits.numel())
        return loss(logits, tokens)

    monkeypatch.setattr(documents, "LOGITS_AT_ONCE", 5000)
    for _ in token_readings(Runner(chat_model), DOCUMENTS, arms, seen):
        pass
    assert max(sizes) <= 5000
    assert len(sizes) > 4
    check(chat_model, DOCUMENTS, arms)


def test_the_first_arm_is_always_there_to_compare_with(family_model, monkeypatch):
    """Memory for two rows only: the arms are split, and each half sees the baseline in row 0."""
    chat_model = family_model("llama")
    real, arms = documents.packed_states, arms_of(chat_model)

    def moved(logits, tokens):
        found = loss(logits, tokens)
        return torch.cat([found, found - found[:1]], -1)

    def small(model, pack, n_arms, attention):
        if n_arms > 3 or len(pack.lengths) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(model, pack, n_arms, attention)

    monkeypatch.setattr(documents, "packed_states", small)
    seen = 0
    for document, these, values in token_readings(Runner(chat_model), DOCUMENTS, arms, moved):
        for arm, value in zip(these, values.float(), strict=True):
            base, own = (plain(chat_model, DOCUMENTS[document], arms[a]) for a in (0, arm))
            torch.testing.assert_close(value, torch.stack([own, own - base], -1), **tolerance(terms=WITH_SOFTMAX))
            seen += 1
    assert seen == len(DOCUMENTS) * len(arms)


@pytest.mark.parametrize("start", [0, 3, 4])
def test_a_document_without_a_token_to_predict_is_refused(start, family_model):
    with pytest.raises(InputError, match="no token to predict"):
        list(token_readings(Runner(family_model("qwen2")), [Document([1, 2, 3], start)], [BASELINE], loss))


def test_reading_leaves_no_hook_and_no_replaced_forward(family_model):
    chat_model = family_model("qwen2")
    # transformers keeps hooks of its own once hidden states were requested, which another test may have done.
    before = hooks_of(chat_model)
    list(token_readings(Runner(chat_model), DOCUMENTS, arms_of(chat_model), loss))
    assert "forward" not in vars(chat_model.model.get_decoder())
    assert hooks_of(chat_model) == before


def hooks_of(chat_model) -> list[tuple[int, int]]:
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in chat_model.model.modules()]
