"""GGUF files of Llama and Qwen2 models, written with the package `gguf` as llama.cpp's converter writes them."""

import json

import gguf

_INNER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str) -> str:
    """The name of a parameter of transformers in a GGUF file."""
    owner, _, leaf = name.rpartition(".")
    if owner in _OUTER:
        return f"{_OUTER[owner]}.{leaf}"
    _, _, layer, *inner = owner.split(".")
    return f"blk.{layer}.{_INNER['.'.join(inner)]}.{leaf}"


def write_gguf(model, path, tokenizer=None, *, types=None, **metadata):
    """A model as a GGUF file. Matrices are stored in `types` (float32), vectors in float32.

    `metadata` replaces sizes of the config, such as `block_count`, and the name of the `split` into words.
    """
    c = model.config
    writer = gguf.GGUFWriter(str(path), c.model_type)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(metadata.get("block_count", c.num_hidden_layers))
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_dimension_count(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_tokenizer(writer, tokenizer, c.vocab_size, metadata.get("split") or split_name(tokenizer))
    tied = c.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            _add_tensor(writer, gguf_name(name), tensor, c, types)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensor(writer, name, tensor, config, types):
    if config.model_type == "llama" and ("attn_q" in name or "attn_k" in name):
        # llama.cpp rotates pairs of neighbours there, and transformers halves.
        heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
        half = len(tensor) // heads // 2
        tensor = tensor.reshape(heads, 2, half, -1).transpose(1, 2).reshape(tensor.shape)
    values = tensor.float().contiguous().numpy()
    if types is None or tensor.ndim < 2 or tensor.shape[-1] % 32:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, types), raw_dtype=types)


def split_name(tokenizer):
    """The name that llama.cpp's converter gives to the split of a byte-level tokenizer."""
    text = str(tokenizer.backend_tokenizer.pre_tokenizer)
    if "Split(" not in text:
        return "smollm" if "Digits(" in text else "gpt-2"
    return "llama-bpe" if "{1,3}" in text else "qwen2"


def _add_tokenizer(writer, tokenizer, vocab_size, split):
    """A byte-level BPE tokenizer with its chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["content"]: token["special"] for token in backend["added_tokens"]}
    names = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED, None: gguf.TokenType.NORMAL}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.UNUSED if i not in names else kinds[special.get(token)] for i, token in enumerate(tokens)]
    )
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in backend["model"]["merges"]])
    for kind in ("bos", "eos", "pad"):
        if (token := getattr(tokenizer, f"{kind}_token_id")) is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
