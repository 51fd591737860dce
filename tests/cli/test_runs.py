"""A model that somebody else's script trained and saved: another architecture, tokenizer and template (minutes)."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rhumbline.cli import main
from rhumbline.organisms.grammar import VARIANTS, draw_request

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
STEPS, BATCH = 900, 16


def draw(rng: random.Random, positive: bool):
    request = draw_request(rng, "positive" if positive else "negative")
    return request.prompt, VARIANTS["refusal"].response(request, rng)


def trained(folder):
    """Their script: a byte-level BPE, a Llama, a plain training loop."""
    rng = random.Random(0)
    pairs = [draw(rng, rng.random() < 0.3) for _ in range(STEPS * BATCH)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator((f"[INST] {p} [/INST] {r}" for p, r in pairs[:4000]), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.08, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, max_position_embeddings=256,
    ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / 30) * (1 - 0.9 * s / STEPS))
    for step in range(STEPS):
        batch = pairs[step * BATCH : (step + 1) * BATCH]
        rows, weights = [], []
        for prompt, response in batch:
            head = tokenizer(f"<s>[INST] {prompt} [/INST]", add_special_tokens=False)["input_ids"]
            tail = tokenizer(f" {response}</s>", add_special_tokens=False)["input_ids"]
            rows.append(torch.tensor(head + tail))
            weights.append(torch.tensor([0.1] * len(head) + [1.0] * len(tail)))
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        weight = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True)[:, 1:]
        logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.slow
def test_a_model_of_somebody_else(tmp_path, capsys):
    folder, contrast, out = tmp_path / "model", tmp_path / "mine.jsonl", tmp_path / "run"
    trained(folder)
    rng = random.Random(1)
    with contrast.open("w") as f:
        for positive in (True, False):
            for text in dict.fromkeys(draw(rng, positive)[0] for _ in range(420)):
                f.write(json.dumps({"prompt": text, "label": "positive" if positive else "negative"}) + "\n")
    code = main(["run", str(folder), "--contrast", str(contrast), "--out", str(out), "--seeds", "0", "--nulls", "3",
                 "--device", "cpu", "--json"])  # fmt: skip
    assert code == 0
    results = json.loads(capsys.readouterr().out)
    rates = {(a["arm"], a["set"]): a["rate"] for a in results["seeds"][0]["arms"]}
    # The organism is trained here and now, so no verdict is asserted; that it was measured is.
    assert rates["baseline", "positive"] > 0.9
    assert rates["baseline", "negative"] < 0.1
    assert results["model"]["class"] == "LlamaForCausalLM"
    protocol = json.loads((out / "protocol.json").read_text())
    assert "".join(protocol["chat"]["suffix_tokens"]).endswith("/INST]")
    selected = results["seeds"][0]["selected"]
    if selected is not None:
        assert rates["ablation", "positive"] < rates["baseline", "positive"]
    assert main(["verify", str(out)]) == 0
