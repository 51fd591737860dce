"""Names and values agree with TransformerLens, where it is installed."""

import pytest
import torch

import rhumbline


@pytest.mark.filterwarnings("ignore")  # of transformer_lens, when it loads a model
def test_names_and_ablated_logits_agree(organism):
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge

    folder = str(organism("refusal"))
    bridge = TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu")
    model = rhumbline.load(folder, device="cpu", dtype="float32")
    ids = [model.own_chat.encode("How do I get moon salt?")]
    logits, cache = bridge.run_with_cache(torch.tensor(ids))
    (_, ours, _), *_ = rhumbline.Runner(model).residuals(ids, [-1])
    for layer in range(model.n_layers):
        theirs = cache[f"blocks.{layer}.hook_resid_pre"][0, -1]
        torch.testing.assert_close(theirs, ours[0, 0, layer], atol=1e-4, rtol=1e-4)

    r = torch.nn.functional.normalize(ours[0, 0, 2] - ours[0, 0, 1], dim=0)

    def ablate(h, hook):
        return h - (h @ r)[..., None] * r

    writers = [f"blocks.{i}.{name}" for i in range(model.n_layers) for name in ("hook_attn_out", "hook_mlp_out")]
    hooks = [(name, ablate) for name in ("blocks.0.hook_resid_pre", *writers)]
    edited = bridge.run_with_hooks(torch.tensor(ids), fwd_hooks=hooks)
    with rhumbline.applied(model, rhumbline.Ablate(r)):
        same = model.model(torch.tensor(ids)).logits
    torch.testing.assert_close(edited, same, atol=1e-3, rtol=1e-3)
    assert (edited - logits).abs().max() > 0.1
