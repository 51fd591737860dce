"""An organism in plain transformers: completions, residuals and edits that are independent of the library."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


class Chat:
    """A loaded organism."""

    def __init__(self, directory: Path):
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
        self.rows = rows_of(directory)

    def prompts(self, label: str, n: int) -> list[str]:
        return [row["prompt"] for row in self.rows if row["label"] == label][:n]

    def encode(self, prompts: list[str]):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        texts = self.tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)

    @torch.no_grad()
    def complete(self, prompts: list[str], max_new_tokens: int = 40) -> list[str]:
        batch = self.encode(prompts)
        tokens = self.model.generate(**batch, max_new_tokens=max_new_tokens)
        return self.tokenizer.batch_decode(tokens[:, batch.input_ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def residuals(self, prompts: list[str]) -> Float[Tensor, "prompt layer d_model"]:
        """The input of every block at the last token."""
        states = self.model(**self.encode(prompts), output_hidden_states=True).hidden_states
        return torch.stack([state[:, -1] for state in states[:-1]], dim=1)

    @contextmanager
    def edited(self, edit: Callable[[Tensor], Tensor], layers: list[int]) -> Iterator[None]:
        """The input of each of the blocks, and its two sublayer outputs, passed through `edit`."""
        handles = []
        try:
            for layer in layers:
                block = self.model.model.layers[layer]
                handles.append(block.register_forward_pre_hook(lambda _, args: (edit(args[0]), *args[1:])))
                handles.append(block.mlp.register_forward_hook(lambda _, args, out: edit(out)))
                handles.append(block.self_attn.register_forward_hook(lambda _, args, out: (edit(out[0]), *out[1:])))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def ablated(self, r: Tensor):
        return self.edited(lambda h: h - (h @ r)[..., None] * r, list(range(self.model.config.num_hidden_layers)))

    @contextmanager
    def added(self, vector: Tensor, layer: int) -> Iterator[None]:
        handle = self.model.model.layers[layer].register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
        try:
            yield
        finally:
            handle.remove()


def rows_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "contrast.jsonl").read_text().splitlines()]


def assert_portable(directory: Path, home: Path) -> None:
    """No file contains a path of this machine."""
    for path in directory.iterdir():
        if path.suffix in {".json", ".md", ".jinja", ".jsonl"}:
            text = path.read_text()
            assert str(home) not in text, path
            assert "/tmp" not in text, path
            assert "name_or_path" not in text, path
