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
    "granite": {"residual_multiplier": 0.22, "embedding_multiplier": 12.0, "logits_scaling": 8.0},
}


MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
BART = {
    "d_model": 32,
    "decoder_layers": 4,
    "encoder_layers": 1,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
}
INDEXED = {
    **MOE,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    **MLA,
    "first_k_dense_replace": 1,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
}
OTHERS: dict[str, dict] = {
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "marian", "mbart", "mvp", "pegasus", "plbart"), BART),
    "whisper": {**BART, "max_target_positions": 512},
    **dict.fromkeys(("axk2", "glm_moe_dsa"), INDEXED),
    "git": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 16,
        }
    },
    "roc_bert": {"pronunciation_vocab_size": 64, "shape_vocab_size": 64},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "jamba": {**MOE, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "attn_layer_indices": [1, 3],
    },
    "granitemoehybrid": {
        **MOE,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "shared_intermediate_size": 48,
        "layer_types": ["mamba", "attention", "mamba", "attention"],
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    "deepseek_v2": {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, **MLA, "first_k_dense_replace": 1},
    "deepseek_v3": {
        **MOE,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        **MLA,
        "first_k_dense_replace": 1,
    },
    "glm4_moe_lite": {
        **MOE,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        **MLA,
        "first_k_dense_replace": 1,
    },
    "axk1": {
        **MOE,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        **MLA,
        "first_k_dense_replace": 1,
    },
    "youtu": {**MLA},
    "minicpm3": {**MLA},
    "kimi_linear": {**MOE, "n_routed_experts": 4, **MLA, "num_key_value_heads": 4, "head_dim": 8},
    "longcat_flash": {
        **MOE,
        "num_layers": 2,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 24,
        "ffn_hidden_size": 48,
        **MLA,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
    "gptj": {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4, "n_positions": 512},
    "codegen": {"n_embd": 32, "n_layer": 4, "n_head": 4, "rotary_dim": 4, "n_positions": 512, "n_ctx": 512},
    "gpt_neo": {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8},
    "helium": {"head_dim": 8},
    "gemma3n_text": {
        "head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 256,
        "laurel_rank": 4,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 0,
        "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "sliding_window": 8,
    },
    "gemma4_text": {
        "head_dim": 8,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 256,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
    },
    "lfm2_moe": {**MOE, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "dots1": {
        **MOE,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "head_dim": 8,
        "routed_scaling_factor": 1.0,
    },
    "zamba2": {
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "use_mamba_kernels": False,
        "num_mem_blocks": 1,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "adapter_rank": 4,
        "num_key_value_heads": 4,
        "layer_types": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "zaya": {**MOE, "num_experts_per_tok": 1},
    "recurrent_gemma": {
        "head_dim": 8,
        "lru_width": 32,
        "attention_window_size": 16,
        "block_types": ["recurrent", "attention"],
    },
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 4,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "xlstm": {"num_heads": 4, "num_blocks": 4, "embedding_dim": 32},
    "cpmant": {
        "num_attention_heads": 4,
        "dim_head": 8,
        "dim_ff": 48,
        "prompt_length": 4,
        "prompt_types": 4,
        "segment_types": 4,
    },
    "xglm": {"d_model": 32, "num_layers": 4, "attention_heads": 4, "ffn_dim": 48},
    "moshi": {"ffn_dim": 48, "audio_vocab_size": 64, "head_dim": 8, "num_codebooks": 2},
    "hy_v4": {**MOE, "head_dim": 8, **MLA},
    "dots3_note_text": {**MOE, "num_key_value_heads": 4},
    "doge": {},
    "bailing_hybrid": {**MOE},
    "nemotron_h": {**MOE, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1},
    "qwen3_next": {
        **MOE,
        "shared_expert_intermediate_size": 24,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "head_dim": 8,
    },
    "qwen3_5_text": {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "head_dim": 8,
    },
    "deepseek_v32": {
        **MOE,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        **MLA,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 8,
    },
}
"""Further families of the table in docs/models.md, where the small sizes alone do not do."""


def random_model(
    family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, gains: bool = False, **overrides
) -> torch.nn.Module:
    """A random model of `family`; weights large enough that every sublayer matters, norms of any gain with `gains`."""
    options = {**SMALL, **FAMILIES.get(family, OTHERS.get(family, {})), **overrides}
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
