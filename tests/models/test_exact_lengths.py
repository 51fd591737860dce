"""Models that compute long texts in another way than the probe of the proof: batches equal whole single passes."""

import pytest
import torch

from families import random_model
from rhumbline.inference.documents import log_likelihoods
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import ChatWithResponse
from rhumbline.models.chat_model import forward
from rhumbline.models.proving import prove
from rhumbline.records.positions import Position
from tolerances import tolerance

LONG_ROPE = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 24,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 24,
        "factor": 21.0,
    },
}
TEMPERATURE = {"attn_temperature_tuning": True, "floor_scale": 25, "attn_scale": 4.0, "no_rope_layers": [1, 0, 1, 0]}
SMALL = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 48, "head_dim": 8}
LIMITED = {
    "longrope": ("phi3", LONG_ROPE),
    "chunks": ("llama4_text", {**SMALL, "attention_chunk_size": 24, "attn_temperature_tuning": False}),
    "temperature": ("llama4_text", {**SMALL, "attention_chunk_size": 400, **TEMPERATURE}),
    "selected keys": ("deepseek_v32", {"index_topk": 24}),
    "window outside the attention call": ("phimoe", {"num_local_experts": 4, "sliding_window": 24}),
}
LENGTHS = (40, 8, 10, 20, 30, 12)
NEW = 8


def prompts():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 256, (n,), generator=generator).tolist() for n in LENGTHS]


def whole_pass(model, ids):
    with torch.no_grad():
        return forward(model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0]


def loss_of(model, ids, response):
    whole = torch.tensor([[*ids, *response]])
    with torch.no_grad():
        logits = forward(model, whole, torch.ones_like(whole), keep=0)[0, len(ids) - 1 : -1]
    return logits.log_softmax(-1)[range(len(response)), response].mean()


def greedy(model, ids):
    tokens = list(ids)
    for _ in range(NEW):
        tokens.append(int(whole_pass(model, tokens).argmax()))
    return tokens[len(ids) :]


@pytest.fixture(scope="module", params=LIMITED)
def limited(request):
    family, options = LIMITED[request.param]
    return prove(random_model(family, **options), None, family)


def test_texts_beyond_the_proof_have_the_logits_of_whole_passes(limited):
    assert limited.proof.longest_proved == 24
    texts = prompts()
    for rows, logits in Runner(limited).last_logits(texts):
        for prompt, row in zip(rows.prompt.tolist(), logits, strict=True):
            torch.testing.assert_close(row, whole_pass(limited, texts[prompt]), **tolerance())
    losses = log_likelihoods(Runner(limited), texts, [[7, 9]] * len(texts))[0]
    wanted = [loss_of(limited, t, [7, 9]) for t in texts]
    torch.testing.assert_close(losses.float(), torch.stack(wanted), **tolerance())


def test_responses_of_which_a_batch_is_longer_than_the_proof_are_read_alone(limited):
    """Each text is within the proof, but prompts are padded on the left and responses on the right."""
    ids = prompts()[0]
    texts = [ChatWithResponse(ids[:18], ids[20:23]), ChatWithResponse(ids[:4], ids[20:35])]
    positions = [Position.post_instruction(-1), Position.response_mean()]
    parts = list(Runner(limited).residuals(texts, positions))
    together = {i: h for part in parts for i, h in zip(part.prompt.tolist(), part.h, strict=True)}
    for i, text in enumerate(texts):
        (alone,) = Runner(limited).residuals([text], positions)
        torch.testing.assert_close(together[i], alone.h[0], **tolerance())


def test_completions_beyond_the_proof_are_those_of_whole_passes(limited):
    """The prompt of 20 tokens is within the proof, and its completion is not."""
    texts = prompts()
    assert Runner(limited).completions(texts, max_new_tokens=NEW, stop=[])[0] == [greedy(limited, t) for t in texts]


def test_a_model_without_such_fields_has_no_limit():
    proof = prove(random_model("mistral", head_dim=8, sliding_window=8), None, "mistral").proof
    assert (proof.longest_proved, proof.longest_pack, proof.packing_is_exact) == (None, None, True)
