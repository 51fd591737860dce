"""Faults of model directories, each as a change of a healthy directory, and healthy variants of the same kinds.

The directory is that of a Llama model with one safetensors file, tiny or real.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
Change = Callable[[Path], None]


@dataclass(frozen=True)
class Fault:
    """A change after which a model cannot be handled."""

    make: Change
    names: tuple[str, ...]
    """Words of the error."""
    in_values: bool = False
    """Whether only the values of the weights show it, which a plan does not read."""
    code: int = 3
    """Exit code of a command: 2 if there is no model at all."""


# -- changes ----------------------------------------------------------------------------------------------------------


def config(**values) -> Change:
    """Fields of config.json; those with the value `...` are removed."""

    def change(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text()) | values
        path.unlink()
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return change


def depth(more: int) -> Change:
    """The number of layers in config.json, changed by `more`."""

    def change(folder):
        layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        config(num_hidden_layers=layers + more)(folder)

    return change


def tensors(edit: Callable[[dict], dict | None], name: str = WEIGHTS) -> Change:
    """The tensors of a safetensors file, edited in place or replaced."""

    def change(folder):
        found = load_file(folder / name)
        edited = edit(found)
        found = found if edited is None else edited
        (folder / name).unlink()
        save_file({k: t.contiguous() for k, t in found.items()}, folder / name, {"format": "pt"})

    return change


def scaled(name: str, factor: float) -> Change:
    """One tensor times a factor."""
    return tensors(lambda found: found.update({name: found[name] * factor}))


def element(name: str, value: float) -> Change:
    """The last element of one tensor."""

    def edit(found):
        found[name] = found[name].clone()
        found[name].view(-1)[-1] = value

    return tensors(edit)


def file(name: str, content: str | bytes | None) -> Change:
    """A file with this content, or none."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def link(name: str, target: str) -> Change:
    """A link in the place of a file."""

    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def cut(name: str, share: float) -> Change:
    """A file of which a share is left."""

    def change(folder):
        data = (folder / name).read_bytes()
        file(name, data[: int(len(data) * share)])(folder)

    return change


def both(*changes: Change) -> Change:
    """Several changes, one after another."""

    def change(folder):
        for one in changes:
            one(folder)

    return change


def sharded(folder: Path) -> None:
    """The weights in two files with an index."""
    found = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, index = sorted(found), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: found[name] for name in part}, folder / shard, {"format": "pt"})
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def index(**entries) -> Change:
    """Shards whose index has further entries."""

    def change(folder):
        sharded(folder)
        path = folder / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        content["weight_map"] |= entries
        path.write_text(json.dumps(content))

    return change


def as_bin(folder: Path) -> None:
    """The weights in a file of torch.save."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


class _Pickled:
    """An object whose pickle executes code."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def executing_bin(folder: Path) -> None:
    """A file of torch.save that would execute code."""
    torch.save({"weight": _Pickled()}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def without_tokenizer(folder: Path) -> None:
    """No file of the tokenizer."""
    for path in folder.glob("*token*"):
        path.unlink()


def fewer_embeddings(rows: Callable[[int], int]) -> Change:
    """Embedding and head with fewer rows than the tokenizer has tokens."""

    def change(folder):
        n = rows(len(load_file(folder / WEIGHTS)[EMBEDDING]))
        tensors(lambda found: {k: t[:n] if k in (EMBEDDING, "lm_head.weight") else t for k, t in found.items()})(folder)
        config(vocab_size=n)(folder)

    return change


def emptied(folder: Path) -> None:
    """No files."""
    shutil.rmtree(folder)
    folder.mkdir()


def head(value: float | None) -> Change:
    """An unembedding apart from the embedding: its values times a factor, or under a config that ties them."""

    def edit(found):
        found["lm_head.weight"] = found[EMBEDDING] * (2.0 if value is None else value)

    return both(tensors(edit), config(tie_word_embeddings=value is None))


def without(*parts: str) -> Change:
    """No tensors whose names contain one of the parts."""
    return tensors(lambda found: {k: t for k, t in found.items() if not any(part in k for part in parts)})


CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}

FAULTS: dict[str, Fault] = {
    # names and shapes
    "more layers than the config has": Fault(depth(-1), ("layers.", "input_layernorm", "does not describe")),
    "fewer layers than the config has": Fault(depth(+1), ("layers.", "missing")),
    "a tensor is missing": Fault(without(DOWN), ("1 missing", DOWN)),
    "no tensors": Fault(without("model", "lm_head"), ("missing", EMBEDDING)),
    "a bias that the config does not describe": Fault(
        tensors(lambda found: found.update({DOWN.replace("weight", "bias"): torch.zeros(len(found[DOWN]))})),
        ("down_proj.bias", "does not describe"),
    ),
    "a bias of the last norm": Fault(
        tensors(lambda found: found.update({"model.norm.bias": torch.zeros_like(found[NORM])})), ("model.norm.bias",)
    ),
    "a matrix of another shape": Fault(
        tensors(lambda found: found.update({DOWN: found[DOWN][:, :-1]})), (DOWN, "another shape", "expected")
    ),
    "another size of the vocabulary": Fault(config(vocab_size=60_000), (EMBEDDING, "60000")),
    "matrices of a quantised model without its config": Fault(
        tensors(lambda found: found.update({DOWN: found[DOWN].to(torch.int8)})), (DOWN, "quantization_config")
    ),
    # values
    "NaN": Fault(scaled(DOWN, float("nan")), (DOWN, "NaN or infinity"), in_values=True),
    "infinity in one row of the embedding": Fault(
        element(EMBEDDING, float("inf")), (EMBEDDING, "infinity"), in_values=True
    ),
    "one huge weight": Fault(element(DOWN, 1e30), (DOWN, "above"), in_values=True),
    "a huge matrix": Fault(scaled(DOWN, 1e20), (DOWN, "above"), in_values=True),
    "every weight is huge": Fault(
        tensors(lambda found: {k: t * 1e25 for k, t in found.items()}), (EMBEDDING, "above"), in_values=True
    ),
    "every weight is zero": Fault(
        tensors(lambda found: {k: t * 0 for k, t in found.items()}), ("constant",), in_values=True
    ),
    "the embedding is zero": Fault(both(head(1.0), scaled(EMBEDDING, 0)), ("constant",), in_values=True),
    "all tokens have one embedding": Fault(
        both(
            head(1.0),
            tensors(lambda found: found.update({EMBEDDING: found[EMBEDDING][-1:].expand_as(found[EMBEDDING])})),
        ),
        ("constant", "all texts"),
        in_values=True,
    ),
    "the head is zero": Fault(head(0.0), ("constant", "vocabulary"), in_values=True),
    "the last norm is zero": Fault(scaled(NORM, 0), ("constant",), in_values=True),
    "tied weights that differ": Fault(head(None), ("lm_head.weight", EMBEDDING, "tie_word_embeddings"), in_values=True),
    # config.json
    "no layers": Fault(config(num_hidden_layers=0), ("num_hidden_layers is 0",)),
    "no layers and no weights of them": Fault(
        both(config(num_hidden_layers=0), without(".layers.")), ("num_hidden_layers is 0",)
    ),
    "a negative number of layers": Fault(config(num_hidden_layers=-1), ("num_hidden_layers is -1",)),
    "a word as the number of layers": Fault(config(num_hidden_layers="two"), ("num_hidden_layers", "two")),
    "no heads": Fault(config(num_attention_heads=0), ("num_attention_heads is 0",)),
    "no channels": Fault(config(hidden_size=0), ("hidden_size is 0",)),
    "infinite rms_norm_eps": Fault(config(rms_norm_eps=float("inf")), ("rms_norm_eps is inf",)),
    "rms_norm_eps is NaN": Fault(config(rms_norm_eps=float("nan")), ("rms_norm_eps is nan",)),
    "negative rms_norm_eps": Fault(config(rms_norm_eps=-1e6), ("rms_norm_eps is -1000000",)),
    "large rms_norm_eps": Fault(config(rms_norm_eps=1e30), ("constant",), in_values=True),
    "rope_theta is zero": Fault(
        config(rope_parameters={"rope_type": "default", "rope_theta": 0.0}), ("inv_freq",), in_values=True
    ),
    "an unknown activation": Fault(config(hidden_act="banana"), ("banana",)),
    "an unknown dtype": Fault(config(dtype="float99"), ("float99",)),
    "no model_type": Fault(config(model_type=...), ("model_type",)),
    "an unknown model_type": Fault(config(model_type="banana"), ("banana",)),
    "an encoder-decoder model": Fault(config(model_type="t5"), ("encoder-decoder",)),
    "code of its own": Fault(
        both(config(model_type="mine", auto_map=CODE), file("own.py", "raise RuntimeError")),
        ("own.Model", "--trust-remote-code"),
    ),
    "no config.json": Fault(file("config.json", None), ("no config.json",), code=2),
    "config.json is not JSON": Fault(file("config.json", "{"), ("config.json is not a JSON object",)),
    "config.json is a list": Fault(file("config.json", "[]"), ("config.json is not a JSON object",)),
    "config.json is not text": Fault(file("config.json", b"\xff\xfe\x00"), ("config.json is not a JSON object",)),
    "generation_config.json is not JSON": Fault(file("generation_config.json", "{"), ("generation_config.json",)),
    "a text as the end of a text": Fault(
        file("generation_config.json", '{"eos_token_id": "</s>"}'), ("generation_config.json", "eos_token_id", "</s>")
    ),
    "no id among the ends of a text": Fault(
        file("generation_config.json", '{"eos_token_id": [2, null]}'), ("[2, null]",)
    ),
    "a number in the place of its code": Fault(
        config(model_type="banana", auto_map=5), ("code of its own", "--trust-remote-code")
    ),
    "generation_config.json is a link to nothing": Fault(
        link("generation_config.json", "gone"), ("generation_config.json is a link to nothing",)
    ),
    "tokenizer_config.json is a device": Fault(
        link("tokenizer_config.json", "/dev/null"), ("tokenizer_config.json is not a regular file",)
    ),
    # tokenizer
    "no tokenizer": Fault(without_tokenizer, ("no tokenizer.json",)),
    "tokenizer.json is not JSON": Fault(file("tokenizer.json", "{"), ("tokenizer.json is not a JSON object",)),
    "tokens of texts have no embedding": Fault(fewer_embeddings(lambda n: n // 8), ("rows", "beyond")),
    # files
    "an empty directory": Fault(emptied, ("no config.json (files: none)",), code=2),
    "no weights": Fault(file(WEIGHTS, None), ("no weights", "model.safetensors")),
    "an empty file": Fault(file(WEIGHTS, b""), (WEIGHTS, "not a complete safetensors file")),
    "half a file": Fault(cut(WEIGHTS, 0.5), (WEIGHTS, "bytes by its header")),
    "a file without its last bytes": Fault(cut(WEIGHTS, 0.999), (WEIGHTS, "bytes by its header")),
    "a part of a header": Fault(lambda folder: file(WEIGHTS, (folder / WEIGHTS).read_bytes()[:20])(folder), (WEIGHTS,)),
    "a page in the place of weights": Fault(file(WEIGHTS, "<html>not found</html>"), (WEIGHTS,)),
    "a pointer of Git LFS": Fault(
        file(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), (WEIGHTS, "git lfs pull")
    ),
    "a missing shard": Fault(
        both(sharded, file("model-00002-of-00002.safetensors", None)), ("model-00002-of-00002.safetensors", "missing")
    ),
    "half a shard": Fault(
        both(sharded, cut("model-00002-of-00002.safetensors", 0.5)), ("model-00002-of-00002.safetensors",)
    ),
    "an index that names a missing file": Fault(index(more="model-00003.safetensors"), ("model-00003.safetensors",)),
    "an index that names a file elsewhere": Fault(index(more="../model.safetensors"), ("../model.safetensors",)),
    "an index that is not JSON": Fault(both(sharded, file("model.safetensors.index.json", "{")), ("index.json",)),
    "an index without files": Fault(
        both(sharded, file("model.safetensors.index.json", '{"weight_map": {}}')), ("index.json", "weight_map")
    ),
    "half a .bin file": Fault(both(as_bin, cut("pytorch_model.bin", 0.5)), ("pytorch_model.bin",)),
    "a .bin file that executes code": Fault(executing_bin, ("pytorch_model.bin", "code")),
}


def stray_files(folder: Path) -> None:
    """Files beside the weights that are not loaded."""
    for name in ("consolidated.safetensors", "adapter_model.safetensors"):
        save_file({"stray": torch.zeros(100_000)}, folder / name)
    torch.save({"stray": torch.zeros(100_000)}, folder / "training_args.bin")


HEALTHY: dict[str, Change] = {
    "unchanged": lambda folder: None,
    "sharded": sharded,
    "a .bin file": as_bin,
    "stray files": stray_files,
    "an index beside a whole file": file("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'),
    "a head of its own": head(1.5),
    "a tensor of another head": tensors(lambda found: found.update({"score.weight": torch.zeros(1, len(found[NORM]))})),
    "a block that writes nothing": tensors(
        lambda found: found.update({k: t * 0 for k, t in found.items() if ".layers.1." in k and "norm" not in k})
    ),
    "large weights": element(DOWN, 1e3),
    "a small rms_norm_eps": config(rms_norm_eps=1e-12),
    "no generation_config.json": file("generation_config.json", None),
    "several ends of a text": file("generation_config.json", '{"eos_token_id": [2, 3, 10000000]}'),
    "code of its own for a model that transformers has": config(auto_map=CODE),
}


def write_contrast(path: Path) -> Path:
    """A contrast that is large enough for the default sizes of a plan."""
    rows = [{"prompt": f"Describe ship {i}.", "label": ("positive", "negative")[i % 2]} for i in range(600)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
