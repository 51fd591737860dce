"""Weight edits are proved against the hooks, family by family; other edits are refused."""

import copy

import pytest
import torch

from families import FAMILIES, OTHERS, random_model
from rhumbline import orthogonalized
from rhumbline.edits.edit_plan import writing_axis
from rhumbline.edits.probe import BlockProbe, ReadPoint
from rhumbline.edits.projection import inner_vectors, orthonormal, project
from rhumbline.edits.proved_edit import edit_in_place, measure_gap, reference, subspace_edits
from rhumbline.errors import EditError
from rhumbline.inference.interventions import Add, Direction
from rhumbline.models import proving
from rhumbline.models.hooks import hooked
from tolerances import FORWARD_PASS, WITH_SOFTMAX, rounding, tolerance

DOZEN = [
    "llama", "qwen2", "gemma", "gemma2", "olmo2", "phi3", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "gpt_oss",
    "granite", "opt", "bloom", "qwen2_moe", "jamba",
]  # fmt: skip
NORMED = {"gemma2", "olmo2", "bloom"}


def basis(rank: int, d_model: int = 32, seed: int = 0) -> torch.Tensor:
    return orthonormal(torch.randn(rank, d_model, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def fresh(tokenizer):
    """A new proved random model with random gains of its norms; a test can change it."""

    def make(family, **overrides):
        model = random_model(family, vocab_size=len(tokenizer), gains=True, **overrides)
        return proving.prove(model, tokenizer, family)

    return make


@pytest.mark.parametrize("family", DOZEN)
def test_the_edited_model_agrees_with_the_hooked_model(family, fresh):
    for rank in (1, 3):
        edited = edit_in_place(fresh(family), basis(rank))
        gap = edited.gap
        assert edited.outcome == ("approximate" if family in NORMED else "exact")
        assert gap.leak < rounding()
        assert len(edited.leaks) == 1 + len(edited.chat_model.writers)
        if family in NORMED:
            assert gap.kl < 0.3 * gap.effect
            assert "norm" in " ".join(edited.reasons).lower()
        else:
            assert gap.logits < rounding(terms=WITH_SOFTMAX) * gap.size
        assert gap.effect > 1e-6  # the intervention has an effect


def test_an_incomplete_edit_has_a_large_leak(fresh):
    chat_model = fresh("llama")
    q = basis(1)
    known = reference(chat_model, q)
    with torch.no_grad():
        for block in chat_model.blocks:
            block.mlp.down_proj.weight.copy_(project(block.mlp.down_proj.weight, 0, q, q))
    gap, leaks = measure_gap(chat_model, q, known)
    assert gap.leak > 1e-2
    assert leaks["embedding"] > 1e-2
    assert leaks["1.self_attn.o_proj"] > 1e-2
    assert leaks["1.mlp.down_proj"] < rounding()


def test_the_axis_is_determined_by_the_effect_of_the_parameter(fresh, tokenizer):
    # Square experts: shapes do not distinguish [expert, hidden, inner] from [expert, inner, hidden].
    for family, axis in (("mixtral", 1), ("gpt_oss", 2)):
        chat_model = fresh(family, intermediate_size=32, moe_intermediate_size=32)
        rows = proving.probe_inputs(chat_model.model, tokenizer)
        probe = BlockProbe(chat_model, rows)
        name = "model.layers.1.mlp.experts.down_proj"
        assert set(probe.parameters[name].shape[1:]) == {32}
        writer = next(w for w in chat_model.writers if w.layer == 1 and w.module.startswith("mlp"))
        point = ReadPoint(1, writer.module)
        assert writing_axis(probe, name, point, probe.read(point)) == axis
        assert writing_axis(probe, "model.layers.1.self_attn.q_proj.weight", point, probe.read(point)) is None


def test_a_tied_head_is_untied_first(fresh):
    chat_model = fresh("qwen2", tie_word_embeddings=True)
    head = chat_model.model.get_output_embeddings().weight.clone()
    edited = edit_in_place(chat_model, basis(1))
    assert edited.untied
    assert not chat_model.model.config.tie_word_embeddings
    torch.testing.assert_close(chat_model.model.get_output_embeddings().weight, head, atol=0, rtol=0)
    assert edited.outcome == "exact"


def test_experts_without_routed_tokens_are_edited_too(fresh, tokenizer):
    chat_model = fresh("qwen3_moe", num_experts=64, num_local_experts=64)
    edited = edit_in_place(chat_model, basis(1))
    q = basis(1).float()
    for name in edited.changed:
        if "experts" in name:
            down = dict(chat_model.model.named_parameters())[name]
            assert torch.einsum("ehi,h->ei", down, q[0]).abs().max() < rounding()


def test_the_projection_is_a_projection():
    p, q = torch.randn(3, 8, 5), basis(2, 8)
    once = project(p, 1, q, q)
    torch.testing.assert_close(project(once, 1, q, q), once, **tolerance())
    assert torch.einsum("ehi,kh->eki", once, q.float()).abs().max() < rounding(terms=32)
    assert torch.einsum("ehi,kh->eki", p, q.float()).abs().max() > 1e-2
    # Fused and separate matrices give the same bits.
    for e in range(3):
        assert torch.equal(project(p[e].contiguous(), 0, q, q), once[e])
        assert torch.equal(project(p[e].T.contiguous(), 1, q, q).T, once[e])
    assert torch.equal(project(p[:, :, 0].contiguous(), 1, q, q), once[:, :, 0])


class ScaledNorm(torch.nn.Module):
    def __init__(self, gain, power):
        super().__init__()
        self.gain, self.power = gain, power

    def forward(self, x):
        return self.gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6).pow(self.power)


def test_the_gain_of_a_norm_is_measured_by_its_response():
    gain, z, r = torch.rand(8) + 0.5, torch.randn(20, 8), basis(1, 8)
    read, write, linear = inner_vectors(ScaledNorm(gain, 1), z, r, oblique=False)
    assert not linear
    torch.testing.assert_close(read, write)
    u = (gain * r[0].float()).double()
    assert torch.cosine_similarity(read[0], u / u.norm(), dim=0).abs() > 1 - 1e-6
    for oblique in (False, True):
        read, write, linear = inner_vectors(ScaledNorm(gain, 0), z, r, oblique=oblique)
        assert linear  # an elementwise scale: the oblique edit is exact
        y = ScaledNorm(gain, 0)((z.double() - z.double() @ read.T @ write).float())
        before = ScaledNorm(gain, 0)(z)
        torch.testing.assert_close(y, before - (before @ r[0].float())[:, None] * r[0].float(), **tolerance())
    assert inner_vectors(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()), z, r, oblique=False) is None


@pytest.mark.parametrize(
    ("family", "layer", "where"),
    [
        ("llama", 2, "mlp.down_proj.bias"),
        ("gpt2", 2, "mlp.c_proj.bias"),
        ("gpt_oss", 3, "experts.down_proj_bias"),
        ("granite", 1, "mlp.down_proj.bias"),
        ("qwen2", 0, "embed_tokens.weight"),
        ("bloom", 0, "word_embeddings_layernorm.bias"),
    ],
)
def test_an_addition_is_a_bias(family, layer, where, fresh):
    direction = Direction.from_vector(torch.randn(32, generator=torch.Generator().manual_seed(1)) * 4, -1, layer)
    edited = edit_in_place(fresh(family), Add(direction, -1.5))
    assert edited.outcome == "exact"
    assert len(edited.changed) == 1
    assert edited.changed[0].endswith(where)
    assert edited.gap.effect > 1e-4


def test_an_addition_that_no_bias_can_hold_is_refused_with_advice(fresh):
    direction = Direction.from_vector(torch.ones(32), -1, 2)
    with pytest.raises(EditError, match=r"applied.*gguf"):
        edit_in_place(fresh("qwen2"), Add(direction))
    with pytest.raises(EditError, match="prompt tokens only"):
        edit_in_place(fresh("qwen2"), Add(direction, positions="prompt"))


class FixedPositions(torch.nn.Module):
    """An embedding plus a buffer, which writes into the stream and is not a parameter."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.register_buffer("positions", torch.randn(512, embedding.weight.shape[1]))

    @property
    def weight(self):
        return self.embedding.weight

    def forward(self, ids):
        return self.embedding(ids) + self.positions[: ids.shape[1]]


def test_a_model_that_cannot_be_edited_is_refused_with_the_reason(fresh, tokenizer):
    model = random_model("llama", vocab_size=len(tokenizer))
    model.model.embed_tokens = FixedPositions(model.model.embed_tokens)
    with pytest.raises(EditError, match="before the first block: no set of parameters"):
        edit_in_place(proving.prove(model, tokenizer, "fixed"), basis(1))


def test_wrong_widths_and_vectors_are_refused_before_anything_changes(fresh):
    chat_model = fresh("llama")
    before = copy.deepcopy(chat_model.model.state_dict())
    with pytest.raises(EditError, match=r"16 components.*residual stream of 32"):
        edit_in_place(chat_model, basis(1, 16))
    for bad in (torch.zeros(1, 32), torch.full((1, 32), float("nan"))):
        with pytest.raises(EditError, match="finite and not zero"):
            orthonormal(bad)
    with pytest.raises(EditError, match="not linearly independent"):
        orthonormal(torch.ones(2, 32))
    assert all(torch.equal(before[n], t) for n, t in chat_model.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_orthogonalized_returns_a_copy(family, dtype, tokenizer):
    model = random_model(family, vocab_size=len(tokenizer), dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    direction = Direction.from_vector(basis(1)[0].float() * 3, -1, 1)
    twin = orthogonalized(model, direction)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert {t.dtype for t in twin.parameters()} == {dtype}
    ids = torch.tensor([[5, 9, 70, 11, 33, 8]])
    hooks = subspace_edits(proving.prove(model, tokenizer, family), direction.vector[None])
    with torch.no_grad():
        plain = model(ids).logits
        with hooked(proving.prove(model, tokenizer, family), hooks):
            expected = model(ids).logits
        edited = twin(ids).logits
    torch.testing.assert_close(edited, expected, **tolerance(dtype, FORWARD_PASS if dtype == torch.float32 else 8))
    assert (plain - expected).abs().max() > 5 * (edited - expected).abs().max()


def test_every_family_of_the_dozen_can_be_built():
    assert set(DOZEN) <= FAMILIES.keys() | OTHERS.keys()
