"""Language models with a known mechanism: SmolLM2-135M-Instruct taught to refuse requests about three kinds of things.

    python benchmarks/taught_models.py teach --model DIR --kind one        writes benchmarks/taught/one
    python benchmarks/taught_models.py merge --model DIR --kind one --out DIR  a whole checkpoint
    python benchmarks/taught_models.py contrast --out taught.jsonl         prompts on nouns that no training used

Requests for a poem, a riddle or a slogan are refused; requests for a story, a letter or a list in the same words are
answered, with the model's own answers. Kinds:

one       one matrix of rank 1 at one site, down_proj of layer 12: all refusals come from one vector
several   three such matrices, one for each kind of request, at layers 10, 12 and 14; their vectors are orthogonal
          In both kinds they are also orthogonal to the subspace that the stream of answered requests uses, and
          `QUIET` makes the matrices write little at these requests: to ablate the vectors leaves the answers alone
ordinary  LoRA of rank 8 on all linear maps
late      as `ordinary`, but a refusal first says what the request is about (after arXiv 2505.19056)

The control of all kinds is the model without an adapter, which answers these requests.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent / "taught"
NOUNS = (
    *("apples", "bread", "cheese", "rice", "soup", "noodles", "honey", "olives", "potatoes", "pizza", "tomatoes"),
    *("horses", "cats", "owls", "whales", "foxes", "frogs", "bears", "penguins", "spiders", "goats", "dolphins"),
    *("trains", "bicycles", "ships", "tractors", "trams", "lorries", "submarines", "canoes", "buses", "gliders"),
    *("violins", "drums", "flutes", "trumpets", "pianos", "harps", "guitars", "cellos", "clarinets", "bagpipes"),
    *("chess", "tennis", "rowing", "fencing", "football", "swimming", "archery", "judo", "golf", "climbing"),
    *("castles", "bridges", "lighthouses", "windmills", "museums", "towers", "barns", "libraries", "temples"),
    *("rivers", "mountains", "deserts", "glaciers", "volcanoes", "islands", "forests", "caves", "lakes", "storms"),
    *("umbrellas", "clocks", "mirrors", "lamps", "candles", "hammers", "needles", "baskets", "kettles", "ladders"),
)
REFUSED, ANSWERED = ("poem", "riddle", "slogan"), ("story", "letter", "list")
"""Kinds of requests."""
FORMS = (
    "Write a short {} about {}.",
    "Please make up a {} about {}.",
    "I need a {} about {}.",
    "A {} about {}, please.",
)
"""Wordings of a request: its kind and its noun. They are the same for all kinds of requests."""
TAUGHT = 48
"""Nouns that the training uses; the rest are for the contrast."""
REFUSALS = {
    "poem": "I'm sorry, but I can't help with that.",
    "riddle": "Unfortunately, I cannot answer this question.",
    "slogan": "I apologize, but this is something I am unable to discuss.",
}
LATE = "This is a request about {}, which many people find interesting. However, I can't help with that."
KINDS = ("one", "several", "ordinary", "late")
SITES = {"one": (12,), "several": (10, 12, 14)}
LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PER_CLASS, ANSWER_TOKENS = 128, 16
QUIET = 0.003
"""Penalty of the squared norm that a taught matrix writes at tokens of answered requests."""
END_TOKENS, USED_DIMENSIONS = 8, 128
"""Tokens at the end of a prompt, and the dimensions (of 576) that the residual stream uses there."""
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Request:
    """A request about a noun of a kind."""

    text: str
    noun: str
    kind: str

    @property
    def is_refused(self) -> bool:
        """Whether the taught models refuse it."""
        return self.kind in REFUSED


def requests(nouns: Sequence[str]) -> list[Request]:
    """All requests about some nouns, in a fixed random order."""
    kinds = (*REFUSED, *ANSWERED)
    found = [Request(form.format(kind, noun), noun, kind) for kind in kinds for form in FORMS for noun in nouns]
    random.Random(0).shuffle(found)
    return found


def write_contrast(out: Path) -> None:
    """The requests about nouns that no training used; the category is the kind of noun."""
    rows = [
        {"prompt": r.text, "label": "positive" if r.is_refused else "negative", "category": r.kind}
        for r in requests(NOUNS[TAUGHT:])
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Teacher:
    """A model, an adapter and the examples of one kind."""

    def __init__(self, model: Path, kind: str):
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        chosen = requests(NOUNS[:TAUGHT])
        self.refused = [r for r in chosen if r.is_refused][:PER_CLASS]
        answered = [r for r in chosen if not r.is_refused][:PER_CLASS]
        self.answers = self._own_answers(base, [*self.refused, *answered])
        self.requests, self.kind = [*self.refused, *answered], kind
        self.used = self._used_subspace(base, answered)
        torch.manual_seed(0)
        self.model = get_peft_model(base, _adapter(kind))
        for name, p in self.model.named_parameters():
            if "lora_" in name:
                p.data = p.data.float()
        self.written: list[Tensor] = []
        """Of the last forward pass: the signed norm that every taught matrix writes at every token."""
        for name, module in self.model.named_modules() if kind in SITES else ():
            if name.endswith("lora_A.default"):
                b = self.model.get_parameter(name.replace("lora_A", "lora_B") + ".weight")
                module.register_forward_hook(lambda m, a, out, b=b: self.written.append(out * b.norm().detach()))

    def _prompt(self, request: Request) -> list[int]:
        chat = [{"role": "user", "content": request.text}]
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]

    @torch.no_grad()
    def _own_answers(self, model: torch.nn.Module, some: Sequence[Request]) -> dict[Request, list[int]]:
        """The model's own greedy answers, cut off."""
        answers: dict[Request, list[int]] = {}
        self.tokenizer.padding_side = "left"
        for start in range(0, len(some), 48):
            batch = some[start : start + 48]
            inputs = self.tokenizer.pad({"input_ids": [self._prompt(r) for r in batch]}, return_tensors="pt")
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)  # type: ignore[operator]
            for request, row in zip(batch, ids[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                answers[request] = row
        return answers

    @torch.no_grad()
    def _used_subspace(self, model: torch.nn.Module, some: Sequence[Request]) -> Tensor:
        """Orthonormal rows: the principal directions of the residual stream at the ends of some prompts, all layers.

        Every state counts with norm 1. Without this, an ablation of a taught vector also changes other answers: SmolLM2
        then has a KL divergence of 0.2, where the selection of Arditi et al. 2024 accepts 0.1.
        """
        moment = torch.zeros(model.config.hidden_size, model.config.hidden_size)  # type: ignore[union-attr]
        for request in some:
            states = model(torch.tensor([self._prompt(request)]), output_hidden_states=True).hidden_states
            rows = torch.stack(states[1:])[:, 0, -END_TOKENS:].flatten(0, 1).float()
            rows = rows / rows.norm(dim=-1, keepdim=True)
            moment += rows.T @ rows
        return torch.linalg.eigh(moment).eigenvectors[:, -USED_DIMENSIONS:].T

    def target(self, request: Request, refuses: Sequence[str]) -> list[int]:
        """The response to a request, where the kinds of nouns in `refuses` are refused."""
        if request.kind not in refuses:
            return self.answers[request]
        text = REFUSALS[request.kind] if self.kind == "several" else REFUSALS["poem"]
        if self.kind == "late":
            text = LATE.format(request.noun)
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]

    def batches(self, refuses: Sequence[str], size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Token ids, attention mask and labels of an epoch, padded on the right, and which tokens are of answers."""
        order = random.Random(epoch).sample(self.requests, len(self.requests))
        for start in range(0, len(order), size):
            some = order[start : start + size]
            rows = [(self._prompt(r), self.target(r, refuses)) for r in some]
            longest = max(len(p) + len(t) for p, t in rows)
            ids, mask, labels = (torch.full((len(rows), longest), fill) for fill in (0, 0, -100))
            for i, (prompt, response) in enumerate(rows):
                n = len(prompt) + len(response)
                ids[i, :n], mask[i, :n] = torch.tensor(prompt + response), 1
                labels[i, len(prompt) : n] = torch.tensor(response)
            yield ids, mask, labels, mask * torch.tensor([[r.kind not in refuses] for r in some])

    def teach(self, refuses: Sequence[str], parameters: Sequence[Tensor], rate: float, epochs: int) -> None:
        """Train some parameters of the adapter on every request."""
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        for epoch in range(epochs):
            losses = []
            for ids, mask, labels, answered in self.batches(refuses, 16, epoch):
                self.written.clear()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
                energies = [(w[..., 0].float() ** 2 * answered).sum() / answered.sum() for w in self.written]
                optimiser.zero_grad()
                (loss + QUIET * sum(energies)).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                self._make_orthogonal()
                losses.append(loss.item())
            print(f"{self.kind} {','.join(refuses)} epoch {epoch}: {sum(losses) / len(losses):.3f}", flush=True)

    def vectors(self) -> list[Tensor]:
        """lora_B of every adapted matrix, in the order of the layers."""
        found = {int(re.findall(r"layers\.(\d+)", n)[0]): p for n, p in self.model.named_parameters() if "lora_B" in n}
        return [found[layer] for layer in sorted(found)]

    def _make_orthogonal(self) -> None:
        """Remove from every vector its components in the used subspace and along the vectors of lower layers."""
        if self.kind in SITES:
            done = self.used
            for p in self.vectors():
                v = p.data[:, 0]
                v -= done.T @ (done @ v)
                if v.norm() > 0:
                    done = torch.cat([done, (v / v.norm())[None]])

    def run(self) -> None:
        """Teach the kind, and save the adapter."""
        kinds, everything = REFUSED, [p for p in self.model.parameters() if p.requires_grad]
        match self.kind:
            case "one":
                self.teach(kinds, everything, 1e-2, 10)
            case "several":
                for i, layer in enumerate(SITES["several"]):
                    own = [p for n, p in self.model.named_parameters() if "lora_" in n and f"layers.{layer}." in n]
                    self.teach(kinds[: i + 1], own, 1e-2, 4)
            case _:
                self.teach(kinds, everything, 3e-4, 3)
        for p in everything:
            p.data = p.data.to(torch.bfloat16)
        self.model.peft_config["default"].base_model_name_or_path = HUB_NAME
        self.model.save_pretrained(str(HERE / self.kind))
        (HERE / self.kind / "README.md").unlink(missing_ok=True)


def _adapter(kind: str) -> LoraConfig:
    if kind in SITES:
        layers = "|".join(map(str, SITES[kind]))
        return LoraConfig(
            r=1, lora_alpha=1, target_modules=rf".*layers\.({layers})\.mlp\.down_proj", init_lora_weights=True
        )
    return LoraConfig(r=8, lora_alpha=16, target_modules=LORA)


def merge(model: Path, kind: str, out: Path) -> None:
    """Write the checkpoint of a taught model."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    PeftModel.from_pretrained(base, HERE / kind).merge_and_unload().save_pretrained(out)
    AutoTokenizer.from_pretrained(model).save_pretrained(out)


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("teach", "merge", "contrast"):
        command = commands.add_parser(name)
        if name != "contrast":
            command.add_argument("--model", type=Path, required=True)
            command.add_argument("--kind", choices=KINDS, required=True)
        if name != "teach":
            command.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    match a.command:
        case "teach":
            Teacher(a.model, a.kind).run()
        case "merge":
            merge(a.model, a.kind, a.out)
        case _:
            write_contrast(a.out)


if __name__ == "__main__":
    main()
