"""Tiny random models of real architectures: one config per family, no names of modules anywhere."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

FAMILIES: dict[str, dict] = {
    "llama": {"attention_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "sliding_window_pattern": 2},
    "mistral": {"head_dim": 8, "sliding_window": 16},
    "phi3": {},
    "olmo2": {},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "mixtral": {**MOE},
    "qwen3_moe": {"head_dim": 8, **MOE, "decoder_sparse_step": 2},
    "gpt_oss": {"head_dim": 8, "sliding_window": 8, **MOE},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "bloom": {},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 48},
    "jamba": {**MOE, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
}


def random_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, gains: bool = False, **overrides
) -> torch.nn.Module:
    """A random model of `family`; weights large enough that every sublayer matters, norms of any gain with `gains`."""
    options = {**SMALL, **FAMILIES.get(family, {}), **overrides}
    config = AutoConfig.for_model(family, **options)
    config.initializer_range = 0.3 / options["hidden_size"] ** 0.5 * 2
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.05)
            elif gains and parameter.ndim == 1 and "norm" in name:
                parameter += torch.rand_like(parameter) - 0.5
    return model.eval()
