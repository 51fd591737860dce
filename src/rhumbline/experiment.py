"""START HERE. `run`: a chat model and a contrast in, a run directory with a verdict out; one stage after the other.

    contrast -> chat tokens -> refusal tokens -> means -> candidates -> selection on validation -> nulls
             -> arms on test -> separation -> side effects -> conditions -> results -> report

The protocol is on disk before the first forward pass. A run with the same protocol and directory resumes.

Read on: stages.py (the order), finding.py (tokens, candidates, the choice), controls.py (what the direction is held
against), testing.py (held-out prompts), verification.py (results and verdict).
"""

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from rhumbline.engines.jobs import Pool
from rhumbline.errors import ProtocolError
from rhumbline.evidence.detectable_effects import detectable
from rhumbline.inference.interventions import Direction
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner, measured_tokens
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint
from rhumbline.prompts.contrasts import ContrastSet, Prompt, Splits, split_contrast
from rhumbline.prompts.loss_texts import NO_TEXTS, LossTexts
from rhumbline.protocol import Protocol
from rhumbline.records.codec import convert, to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import write_json
from rhumbline.records.results import Environment, TimingSummary
from rhumbline.records.shared import ByLabel
from rhumbline.report import build as report
from rhumbline.stages.directions import difference_in_means
from rhumbline.stages.held_out import separation
from rhumbline.stages.order import run_stages
from rhumbline.stages.seed_run import SeedRun, encoded
from rhumbline.stages.system_prompts import chats_of
from rhumbline.stages.timings import Timings
from rhumbline.verification import assemble, sealed


@dataclass(frozen=True)
class Result:
    """A finished run."""

    path: Path
    results: Mapping[str, Any]
    """The content of results.json."""

    @property
    def verdict(self) -> str:
        """The verdict of the run."""
        return self.results["verdict"]

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, with its numbers."""
        return self.results["sentence"]

    def direction(self, seed: int | None = None) -> Direction | None:
        """The selected direction of a seed (default: the first), or None where no candidate passed."""
        return selected_direction(self.path, seed)


def run(
    model: ChatModel,
    contrast: ContrastSet,
    out: str | Path,
    protocol: Protocol,
    *,
    texts: LossTexts = NO_TEXTS,
    progress: Callable[[str, int | None], None] | None = None,
    page: bool = True,
    pool: Pool | None = None,
    engine: str = "local",
) -> Result:
    """Find a direction, select it, intervene with it and with its nulls, decide, and write it all to `out`.

    `texts` is what losses are measured on, beside the model's own completions and the responses of the contrast.
    `progress(stage, rows)` is told of every stage that begins (rows None) and of every batch that ends. Without `page`
    no report is drawn; `rhumbline report` draws it later. The blocks of the stages run on the workers of `pool`
    (replicas.py says how they are made), else here; `engine` is the name that the results give it.
    """
    protocol = resolved(protocol, contrast)
    splits = {seed: split_contrast(contrast, protocol.sizes, seed, protocol.sampling) for seed in protocol.seeds}
    prompts = (*prompts_of(contrast, splits.values()), *contrast.neutral)
    chat = Chat.of(model.tokenizer, protocol.chat, prompts)
    chats = chats_of(model.tokenizer, protocol.chat, protocol.conditions, prompts)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    record = describe(model, chat, contrast, splits, protocol) | {"texts": texts.record()}
    with RunDirectory.open(out, record) as directory:
        timings = Timings(directory.path / "timings.json", model.device, progress)
        tokens = measured_tokens(model, chat.encode(contrast.prompts[0]))
        for seed in protocol.seeds:
            given = (directory, timings, model, chat, splits[seed], protocol, seed, tokens)
            run_stages(SeedRun(*given, texts, chats, contrast.neutral), pool)
        compare_seeds(directory)
        taken = convert(timings.read(), TimingSummary)
        results = to_json(sealed(assemble(directory), environment(model, started, engine), taken, directory.manifest()))
        write_json(directory.path / "results.json", results)
        if page:
            with timings.stage("report", None):
                report.build(directory.path)
    return Result(directory.path, results)


def resolved(protocol: Protocol, contrast: ContrastSet) -> Protocol:
    """The protocol with the positions that `auto` stands for with this contrast."""
    if protocol.extraction.positions != "auto":
        return protocol
    positions = "response-mean" if contrast.is_of_texts else "post-instruction"
    return replace(protocol, extraction=replace(protocol.extraction, positions=positions))


def compare_seeds(directory: RunDirectory) -> None:
    """Write, for every two seeds that chose a direction, whether it is the same one."""
    found = {s: d for s in directory.protocol["seeds"] if (d := selected_direction(directory.path, s)) is not None}
    pairs = [
        {
            "seeds": [a, b],
            "cosine": float(found[a].vector @ found[b].vector),
            "same_site": (found[a].position, found[a].layer) == (found[b].position, found[b].layer),
        }
        for a, b in combinations(found, 2)
    ]
    directory.save(directory.path / "agreement.json", {"pairs": pairs})


# -- before the first forward pass ------------------------------------------------------------------------------------


def describe(
    model: ChatModel, chat: Chat, contrast: ContrastSet, splits: Mapping[int, Splits], protocol: Protocol
) -> dict[str, Any]:
    """The protocol record: what was decided, and the hashes of what it depends on."""
    return {
        **protocol.record(),
        "model": {**model.record(), "fingerprint": fingerprint(model)},
        "chat": chat.record(),
        "contrast": contrast.record(),
        "splits": {
            str(seed): {
                "sizes": s.sizes(),
                "near_duplicates": {"found": s.near_duplicates, "dropped": s.dropped},
                "fixed": sorted(s.fixed),
                "detectable": to_json(
                    detectable(ByLabel(**s.sizes()["test"]), protocol.rule.min_drop, protocol.nulls.wide)
                ),
            }
            for seed, s in splits.items()
        },
        "versions": {name: version(name) for name in ("rhumbline", "torch", "transformers")} | {"code": code_sha256()},
    }


def prompts_of(contrast: ContrastSet, splits: Iterable[Splits]) -> tuple[Prompt, ...]:
    """The prompts of the run: the whole file, or what was drawn from the pools of a named contrast."""
    if contrast.pools is None:
        return contrast.prompts
    return tuple(dict.fromkeys(p for s in splits for part in s.parts.values() for side in part.values() for p in side))


def code_sha256() -> str:
    """Hash of the package's own source files, but for those that only show results."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    # What only draws a finished run, or only reads the command line, changes no number.
    shown = {"report", "run_record", "page", "cli"}
    for path in sorted(root.rglob("*.py")):
        top = path.relative_to(root).with_suffix("").parts[0]
        if top in shown or top.endswith(("_report", "figures")) or top.startswith("report_"):
            continue
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def environment(model: ChatModel, started: str, engine: str) -> Environment:
    """Where the run took place; not part of the protocol."""
    device = model.device
    return Environment(
        python=platform.python_version(),
        rhumbline=version("rhumbline"),
        torch=version("torch"),
        transformers=version("transformers"),
        platform=f"{platform.system()} {platform.machine()}",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        started=started,
        engine=engine,
    )


# -- beside the main job ----------------------------------------------------------------------------------------------


def discover(
    model: ChatModel,
    contrast: ContrastSet,
    out: str | Path,
    protocol: Protocol,
    *,
    progress: Callable[[str, int | None], None] | None = None,
) -> dict[str, Any]:
    """Extraction only: where the classes separate on validation prompts. Generates nothing, opens no test prompt."""
    protocol = resolved(protocol, contrast)
    seed = protocol.seeds[0]
    splits = split_contrast(contrast, protocol.sizes, seed, protocol.sampling)
    chat = Chat.of(model.tokenizer, protocol.chat, prompts_of(contrast, [splits]))
    record = describe(model, chat, contrast, {seed: splits}, protocol) | {"mode": "discover"}
    with RunDirectory.open(out, record) as directory:
        timings = Timings(directory.path / "timings.json", model.device, progress)
        with timings.stage("discover", seed):
            runner = Runner(model, tick=lambda rows: timings.tick("discover", rows))
            in_response = protocol.extraction.response_position
            positions = (chat.instruction_position, *chat.positions) if in_response is None else (in_response,)
            rows = splits.get if in_response is None else splits.texts
            means = [
                extract(runner, encoded(chat, rows("train", c), positions), positions).stats.mean()
                for c in ("positive", "negative")
            ]
            candidates, negative = difference_in_means(*means), means[1].float()
            directory.save_tensors(
                directory.seed(seed) / "directions.safetensors",
                {"candidates": candidates, "negative_mean": negative},
                {"positions": str([int(p) for p in positions]), "seed": str(seed), "form": "difference in means"},
            )
            grid = separation(runner, chat, splits, "val", positions, candidates, negative, selected=None)
            found = directory.save(
                directory.path / "discover.json",
                {"seed": seed, "model": directory.protocol["model"], "train": splits.sizes()["train"], **grid},
            )
        report.build_discover(directory.path)
    return found


def selected_direction(path: str | Path, seed: int | None = None) -> Direction | None:
    """The selected direction of a run directory (of its first seed unless another is named)."""
    directory = RunDirectory.read(path)
    seeds = directory.protocol["seeds"]
    wanted = seeds[0] if seed is None else seed
    if wanted not in seeds:
        raise ProtocolError(f"{path} has no seed {wanted}; it has {', '.join(map(str, seeds))}.")
    cell = directory.load(directory.seed(wanted) / "selection.json")["selected"]
    if cell is None:
        return None
    positions = directory.load(directory.seed(wanted) / "extraction.json")["positions"]
    tensors, _ = directory.load_tensors(directory.seed(wanted) / "directions.safetensors")
    vector = tensors["candidates"][positions.index(cell["position"]), cell["layer"]]
    return Direction.from_vector(vector, cell["position"], cell["layer"])
