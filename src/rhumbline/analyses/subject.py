"""A finished run with its model and prompts again in hand: what every analysis begins from.

Promises that model, template and prompts are those of the run (by fingerprint and hash), or refuses. A run directory
holds no prompts, so the contrast file is given anew; organisms bring their own.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rhumbline.axes import Candidates
from rhumbline.errors import InputError, ProtocolError
from rhumbline.evidence.statistics import bootstrap_mean
from rhumbline.inference.interventions import Direction
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.scorer import Scorer
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint, load
from rhumbline.organisms import materialise
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import ContrastSet, Label, Sizes, Split, Splits, split_contrast
from rhumbline.prompts.named_sets import open_contrast
from rhumbline.records.analysis_values import LayerMean, Mean
from rhumbline.records.artefacts import AnalysisRecord
from rhumbline.records.codec import to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.positions import Position
from rhumbline.records.shared import Site
from rhumbline.report import build as report

Analysis = TypeVar("Analysis", bound=AnalysisRecord)

ORGANISM = "organism:"
"""What the name of an organism's model and contrast begins with."""


@dataclass(frozen=True)
class Subject:
    """One seed of a finished run, ready to be asked further questions."""

    directory: RunDirectory
    model: ChatModel
    chat: Chat
    seed: int
    splits: Splits
    positions: tuple[Position, ...]
    """Where candidates were read."""
    candidates: Candidates
    """Un-normalised differences in means, as the run wrote them."""
    direction: Direction | None
    """The selected one; None where no candidate passed."""
    tokens: tuple[int, ...]
    """Of the fast metric; empty where the run found none."""
    kept: Mapping[str, Mapping[str, list[bool]]]
    """Which train and val prompts the metric's sign kept."""
    tick: Callable[[int], None] = field(default=lambda rows: None, repr=False)
    """Told the number of rows that were finished."""
    page: bool = True
    """Draw the report anew when a record is written."""

    @property
    def runner(self) -> Runner:
        """A runner of the model."""
        return Runner(self.model, tick=self.tick)

    @property
    def scorer(self) -> Scorer:
        """The fast metric of the run. Raises ProtocolError where the run found no tokens for it."""
        if not self.tokens:
            raise ProtocolError(
                f"{self.directory.path}: the run's fast metric has no tokens (none were found, or it compares the two "
                "responses to each prompt), and this analysis reads a metric of tokens."
            )
        return Scorer(self.runner, partial(refusal_metric, tokens=list(self.tokens)))

    def selected(self) -> Direction:
        """The selected direction. Raises ProtocolError where no candidate passed."""
        if self.direction is None:
            raise ProtocolError(
                f"{self.directory.path}: no candidate passed the selection of seed {self.seed}, so there is no "
                "direction to analyse. `rhumbline analyze geometry` needs none."
            )
        return self.direction

    def sequences(self, split: Split, label: Label) -> list[list[int]]:
        """Token ids of the prompts of one class: those kept by the filter in train and val, all of them in test."""
        prompts = self.splits.get(split, label)
        kept = self.kept[split][label] if split in self.kept else [True] * len(prompts)
        return [self.chat.encode(p) for p, k in zip(prompts, kept, strict=True) if k]

    def ids(self, split: Split, label: Label) -> list[str]:
        """The prompts' ids, in the order of `sequences`."""
        prompts = self.splits.get(split, label)
        kept = self.kept[split][label] if split in self.kept else [True] * len(prompts)
        return [p.id for p, k in zip(prompts, kept, strict=True) if k]

    @property
    def site(self) -> Site | None:
        """The selected site; None if no candidate passed."""
        return None if self.direction is None else self.selected_site()

    def selected_site(self) -> Site:
        """The selected site. Raises ProtocolError if no candidate passed."""
        direction = self.selected()
        return Site(direction.position, direction.layer)

    def save(self, record: Analysis) -> Analysis:
        """Write the record of an analysis (and the report, if `page`); returns the record as it will be read."""
        saved = self.directory.write_record(record)
        if self.page:
            report.build(self.directory.path)
        return saved


def open_subject(
    run: str | Path,
    model: ChatModel | str | None = None,
    contrast: ContrastSet | str | Path | None = None,
    *,
    seed: int | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    template: str | None = None,
    trust_remote_code: bool = False,
    tick: Callable[[int], None] = lambda rows: None,
) -> Subject:
    """Open one seed of a finished run (default: its first).

    `model` and `contrast` may be left out where the run names an organism; the model's name is the run's otherwise.
    `contrast` is a file or a named contrast, whose sources `data_dir` may have.
    Raises InputError for a model, template or contrast that is not the run's.
    """
    directory = RunDirectory.read(run)
    protocol = directory.protocol
    if not (directory.path / "results.json").is_file():
        raise InputError(f"{run} is not a finished run: it has no results.json. Run it to its end first.")
    known = protocol["seeds"]
    wanted = known[0] if seed is None else seed
    if wanted not in known:
        raise InputError(f"{run} has no seed {wanted}; it has {', '.join(map(str, known))}.")
    prompts = _contrast(directory, contrast, data_dir)
    splits = split_contrast(prompts, Sizes(**protocol["sizes"]), wanted, protocol.get("sampling", "lots"))
    folder = directory.seed(wanted)
    if directory.load(folder / "splits.json")["ids"] != splits.ids():
        raise InputError(f"{run}: the splits of seed {wanted} are not those that this contrast gives. Was it changed?")
    if not isinstance(model, ChatModel):
        model = _model(protocol, model, device, dtype, trust_remote_code)
    if fingerprint(model) != protocol["model"]["fingerprint"]:
        raise InputError(
            f"{model.name} is not the model of {run}: the weights differ (fingerprint). Give the model of the run with "
            "--model, in the dtype of the run."
        )
    chat = chat_of(directory, model, prompts, template)
    extraction = directory.load(folder / "extraction.json")
    positions = tuple(Position(p) for p in extraction["positions"])
    tensors, _ = directory.load_tensors(folder / "directions.safetensors")
    cell = directory.load(folder / "selection.json")["selected"]
    direction = None
    if cell is not None:
        vector = tensors["candidates"][positions.index(Position(cell["position"])), cell["layer"]]
        direction = Direction.from_vector(vector, cell["position"], cell["layer"])
    tokens = tuple(t["id"] for t in directory.load(folder / "metric.json")["tokens"])
    return Subject(
        directory, model, chat, wanted, splits, positions, tensors["candidates"], direction, tokens,
        extraction["kept"], tick,
    )  # fmt: skip


def chat_of(directory: RunDirectory, model: ChatModel, contrast: ContrastSet, template: str | None) -> Chat:
    """The chat of a run, proved to be the same one; InputError where it is not."""
    recorded = directory.protocol["chat"]
    fields = ("system", "enable_thinking", "date", "template_kwargs")
    options = replace(ChatOptions(**{k: recorded[k] for k in fields}), template=template)
    chat = Chat.of(model.tokenizer, options, contrast.prompts)
    found = to_json(chat.record())
    if found != recorded:
        differing = ", ".join(sorted(k for k in recorded if found.get(k) != recorded[k]))
        raise InputError(
            f"the chat template is not that of {directory.path} (it differs in {differing}). A run with a template of "
            "its own needs it here too: --chat-template FILE."
        )
    return chat


def _contrast(
    directory: RunDirectory, given: ContrastSet | str | Path | None, data_dir: str | Path | None
) -> ContrastSet:
    recorded = directory.protocol["contrast"]
    if isinstance(given, ContrastSet):
        contrast = given
    elif given is not None:
        contrast = open_contrast(str(given), data_dir)
    elif recorded["name"].startswith(ORGANISM):
        with tempfile.TemporaryDirectory() as scratch:
            folder = materialise(recorded["name"].removeprefix(ORGANISM), Path(scratch))
            contrast = read_contrast(folder / "contrast.jsonl")
    else:
        raise InputError(
            f"{directory.path} holds no prompts, only the hash of its contrast ({recorded['name']!r}): give the file "
            "or the name that the run was made with, --contrast FILE|NAME."
        )
    if contrast.sha256 != recorded["sha256"]:
        raise InputError(
            f"the contrast {contrast.name!r} is not that of {directory.path} (sha256 {contrast.sha256[:12]} and "
            f"{recorded['sha256'][:12]}): give the file that the run was made with."
        )
    return contrast


def _model(
    protocol: Mapping[str, Any], name: str | None, device: str | None, dtype: str | None, remote: bool
) -> ChatModel:
    recorded = protocol["model"]
    coarse = recorded["mode"] == "coarse"
    if name is None and recorded["name"].startswith(ORGANISM):
        return load_named(recorded["name"], dtype=recorded["dtype"], device=device)
    return load_named(
        name or recorded["name"], dtype=dtype or recorded["dtype"], device=device, coarse=coarse, remote=remote
    )


def load_named(
    name: str, *, dtype: str = "auto", device: str | None = None, coarse: bool = False, remote: bool = False
) -> ChatModel:
    """A model by hub name, directory, or `organism:NAME`."""
    if not name.startswith(ORGANISM):
        return load(name, dtype=dtype, device=device, coarse=coarse, trust_remote_code=remote)
    with tempfile.TemporaryDirectory() as scratch:
        folder = materialise(name.removeprefix(ORGANISM), Path(scratch))
        found = load(str(folder), device=device or "cpu", dtype=dtype)
    return replace(found, name=name)


# -- what analyses write ----------------------------------------------------------------------------------------------


def mean_interval(values: Tensor | np.ndarray) -> Mean:
    """The mean over prompts with its bootstrap interval."""
    return Mean(*bootstrap_mean(np.asarray(values, float), np.random.default_rng(0), draws=1000))


def layer_means(values: Iterable[Tensor]) -> tuple[LayerMean, ...]:
    """The mean over prompts in every layer, from the values of each layer."""
    means = (mean_interval(v) for v in values)
    return tuple(LayerMean(layer, m.mean, m.low, m.high, m.n) for layer, m in enumerate(means))


def residuals_at(
    runner: Runner, sequences: list[list[int]], position: Position
) -> Float[Tensor, "prompt layer d_model"]:
    """Every block input of every prompt at one position, float32 on the CPU."""
    found = torch.zeros(len(sequences), runner.model.n_layers, runner.model.d_model)
    for prompt, h, _ in runner.residuals(sequences, [position]):
        found[prompt] = h[:, 0].float().cpu()
    return found
