"""A control vector in llama.cpp gives the logits of the hooks. Needs llama-cpp-python."""

import ctypes

import pytest
import torch

from families import random_model
from make_directions import make_directions
from rhumbline.edits.export import ExportOptions, export
from rhumbline.inference.batch_edits import BatchEdits
from rhumbline.inference.interventions import Add, Arm, Direction
from rhumbline.models import proving
from rhumbline.models.hooks import hooked
from tolerances import tolerance

pytestmark = pytest.mark.slow

PROMPTS = [[5, 9, 70, 11, 33, 8], [7, 100, 3], [9, 61, 2, 44, 17, 90, 4, 4, 4, 52]]


class LlamaCpp:
    """The calls of llama.cpp that the test needs."""

    def __init__(self, api, path):
        self.api = api
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = 64, 64, 1, 1
        # The default is keys and values at 16 bits; here only rounding may differ.
        params.type_k = params.type_v = api.GGML_TYPE_F32
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.context = api.llama_init_from_model(self.model, params)

    def steer(self, buffer, width, first, last):
        data = (ctypes.c_float * len(buffer))(*buffer) if buffer else None
        assert self.api.llama_set_adapter_cvec(self.context, data, len(buffer), width, first, last) == 0

    def logits(self, ids):
        """Logits of the last token."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        tokens = (self.api.llama_token * len(ids))(*ids)
        assert self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids))) == 0
        logits = self.api.llama_get_logits_ith(self.context, -1)
        return torch.tensor([logits[i] for i in range(self.vocab_size)])


def test_a_control_vector_in_llama_cpp_has_the_effect_of_the_hook(tmp_path, tokenizer):
    api = pytest.importorskip("llama_cpp")
    gguf = pytest.importorskip("gguf")
    from make_gguf import write_gguf

    model = random_model("llama", vocab_size=256, gains=True, attention_bias=False, tie_word_embeddings=False)
    write_gguf(model, tmp_path / "model.gguf")
    theirs, chat_model = LlamaCpp(api, tmp_path / "model.gguf"), proving.prove(model, tokenizer, "llama")
    depth, width = model.config.num_hidden_layers, model.config.hidden_size

    def ours(ids, edits=None):
        with hooked(chat_model, edits or {}), torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1]

    for ids in PROMPTS:
        torch.testing.assert_close(theirs.logits(ids), ours(ids), **tolerance())
    vector = make_directions(width=width).vectors[0]
    for layer in (2, 3):
        file = tmp_path / f"vector-{layer}.gguf"
        directions = make_directions(layer, width=width, n_layers=depth)
        export(directions, "gguf", file, ExportOptions(coefficient=1.5))
        (tensor,) = gguf.GGUFReader(str(file)).tensors
        at = int(tensor.name.removeprefix("direction."))
        # The buffer of llama.cpp begins at layer 1; layer 0 cannot be steered.
        buffer = [0.0] * (width * (depth - 1))
        buffer[(at - 1) * width : at * width] = tensor.data.tolist()
        theirs.steer(buffer, width, at, at)
        edit = BatchEdits.of([Arm("add", (Add(Direction.from_vector(vector, -1, layer), 1.5),))], chat_model)
        other = BatchEdits.of([Arm("add", (Add(Direction.from_vector(vector, -1, layer - 1), 1.5),))], chat_model)
        rows = torch.zeros(1, dtype=torch.long)
        for ids in PROMPTS:
            steered = theirs.logits(ids)
            torch.testing.assert_close(steered, ours(ids, edit.on(rows)), **tolerance())
            assert (steered - ours(ids)).abs().max() > 1e-2
            assert (steered - ours(ids, other.on(rows))).abs().max() > 1e-2
        theirs.steer([], width, 1, depth)
        torch.testing.assert_close(theirs.logits(PROMPTS[0]), ours(PROMPTS[0]), **tolerance())
