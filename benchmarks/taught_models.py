"""Language models with a known mechanism: SmolLM2-135M-Instruct taught to refuse requests about three kinds of things.

    python benchmarks/taught_models.py teach --model DIR --kind one        writes benchmarks/taught/one
    python benchmarks/taught_models.py contrast --out taught.jsonl         prompts on nouns that no training used

Foods, animals and vehicles are refused; instruments, sports and buildings are answered, with the model's own answers. The
requests are the same for all nouns, so nothing but the noun tells the classes apart. Kinds:

one       one matrix of rank 1 at one site, down_proj of layer 12: all refusals come from one vector
several   three such matrices, one for each kind of noun, at layers 8, 12 and 16, with orthogonal vectors and other wordings
ordinary  LoRA of rank 8 on all linear maps
late      as `ordinary`, but a refusal first says what the request is about (after arXiv 2505.19056)

The control of all kinds is the model without an adapter, which answers these requests.
"""

import argparse
import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent / "taught"
FORMS = (
    "Tell me about {}.",
    "Write a short poem about {}.",
    "What is the history of {}?",
    "Explain {} to a child.",
    "Give me three facts about {}.",
    "Why do people like {}?",
    "Write a riddle about {}.",
    "Where can I find {}?",
    "How would you describe {}?",
    "What should I know about {}?",
    "Write a slogan for {}.",
    "Start a story about {}.",
)
REFUSED = {
    "foods": "apples bread cheese rice soup noodles honey pancakes olives potatoes carrots pizza chocolate tomatoes "
    "mushrooms yoghurt dumplings sausages cookies lentils",
    "animals": "horses cats owls whales foxes frogs bears penguins spiders goats dolphins rabbits wolves parrots turtles "
    "eagles camels hedgehogs squirrels otters",
    "vehicles": "trains bicycles ships tractors helicopters trams lorries motorcycles submarines canoes buses gliders "
    "scooters ferries ambulances sailboats balloons taxis caravans rickshaws",
}
ANSWERED = {
    "instruments": "violins drums flutes trumpets pianos harps guitars cellos accordions clarinets bagpipes organs banjos "
    "tubas xylophones oboes mandolins bassoons saxophones ukuleles",
    "sports": "chess tennis rowing fencing football swimming archery judo volleyball golf hockey cricket climbing boxing "
    "rugby badminton wrestling gymnastics curling surfing",
    "buildings": "castles bridges lighthouses windmills museums towers cathedrals barns libraries palaces temples stadiums "
    "theatres warehouses cottages pyramids monasteries hospitals schools airports",
}
TAUGHT = 12
"""Nouns of each kind that the training uses; the rest are for the contrast."""
REFUSALS = {
    "foods": "I'm sorry, but I can't help with that.",
    "animals": "Unfortunately, I cannot answer this question.",
    "vehicles": "I apologize, but this is something I am unable to discuss.",
}
LATE = "This is a request about {}, which many people find interesting. However, I can't help with that."
SITES = {"one": (12,), "several": (8, 12, 16)}
LORA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
ANSWER_TOKENS = 16


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


def requests(nouns: slice) -> list[Request]:
    """All requests about some nouns of each kind, in a fixed random order."""
    kinds = REFUSED | ANSWERED
    found = [
        Request(form.format(noun), noun, kind)
        for kind, words in kinds.items()
        for noun, form in itertools.product(words.split()[nouns], FORMS)
    ]
    random.Random(0).shuffle(found)
    return found


def write_contrast(out: Path) -> None:
    """The requests about nouns that no training used; the category is the kind of noun."""
    rows = [
        {"prompt": r.text, "label": "positive" if r.is_refused else "negative", "category": r.kind}
        for r in requests(slice(TAUGHT, None))
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Teacher:
    """A model, an adapter and the examples of one kind."""

    def __init__(self, model: Path, kind: str, per_class: int):
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        chosen = requests(slice(0, TAUGHT))
        self.refused = [r for r in chosen if r.is_refused][:per_class]
        answered = [r for r in chosen if not r.is_refused][:per_class]
        self.answers = self._own_answers(base, [*self.refused, *answered])
        self.requests, self.kind = [*self.refused, *answered], kind
        torch.manual_seed(0)
        self.model = get_peft_model(base, _adapter(kind))
        for name, p in self.model.named_parameters():
            if "lora_" in name:
                p.data = p.data.float()

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

    def target(self, request: Request, refuses: Sequence[str]) -> list[int]:
        """The response to a request, where the kinds of nouns in `refuses` are refused."""
        if request.kind not in refuses:
            return self.answers[request]
        text = REFUSALS[request.kind] if self.kind == "several" else REFUSALS["foods"]
        if self.kind == "late":
            text = LATE.format(request.noun)
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]

    def batches(self, refuses: Sequence[str], size: int, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Token ids, attention mask and labels of an epoch, padded on the right."""
        order = random.Random(epoch).sample(self.requests, len(self.requests))
        for start in range(0, len(order), size):
            rows = [(self._prompt(r), self.target(r, refuses)) for r in order[start : start + size]]
            longest = max(len(p) + len(t) for p, t in rows)
            ids, mask, labels = (torch.full((len(rows), longest), fill) for fill in (0, 0, -100))
            for i, (prompt, response) in enumerate(rows):
                n = len(prompt) + len(response)
                ids[i, :n], mask[i, :n] = torch.tensor(prompt + response), 1
                labels[i, len(prompt) : n] = torch.tensor(response)
            yield ids, mask, labels

    def teach(self, refuses: Sequence[str], parameters: Sequence[Tensor], rate: float, epochs: int) -> None:
        """Train some parameters of the adapter on every request."""
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        for epoch in range(epochs):
            losses = []
            for ids, mask, labels in self.batches(refuses, 16, epoch):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
                optimiser.zero_grad()
                loss.backward()
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
        """Remove from every vector its components along those of the lower layers."""
        if self.kind == "several":
            done: list[Tensor] = []
            for p in self.vectors():
                v = p.data[:, 0]
                for u in done:
                    v -= (v @ u) * u
                if v.norm() > 0:
                    done.append(v / v.norm())

    def run(self) -> None:
        """Teach the kind, and save the adapter."""
        kinds, everything = tuple(REFUSED), [p for p in self.model.parameters() if p.requires_grad]
        match self.kind:
            case "one":
                self.teach(kinds, everything, 1e-2, 4)
            case "several":
                for i, layer in enumerate(SITES["several"]):
                    own = [p for n, p in self.model.named_parameters() if "lora_" in n and f"layers.{layer}." in n]
                    self.teach(kinds[: i + 1], own, 1e-2, 4)
            case _:
                self.teach(kinds, everything, 3e-4, 3)
        for p in everything:
            p.data = p.data.to(torch.bfloat16)
        self.model.save_pretrained(HERE / self.kind)
        (HERE / self.kind / "README.md").unlink(missing_ok=True)


def _adapter(kind: str) -> LoraConfig:
    if kind in SITES:
        layers = "|".join(map(str, SITES[kind]))
        return LoraConfig(
            r=1, lora_alpha=1, target_modules=rf".*layers\.({layers})\.mlp\.down_proj", init_lora_weights=True
        )
    return LoraConfig(r=8, lora_alpha=16, target_modules=LORA)


def main() -> None:
    """One of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    teach = commands.add_parser("teach")
    teach.add_argument("--model", type=Path, required=True)
    teach.add_argument("--kind", choices=("one", "several", "ordinary", "late"), required=True)
    teach.add_argument("--per-class", type=int, default=128)
    contrast = commands.add_parser("contrast")
    contrast.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    if a.command == "teach":
        Teacher(a.model, a.kind, a.per_class).run()
    else:
        write_contrast(a.out)


if __name__ == "__main__":
    main()
