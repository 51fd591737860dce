"""A run directory in, an opened run out: the directions of each seed, and the run with its model and its prompts.

A run directory holds neither prompts nor weights. `FinishedRun.with_model` takes both and proves by fingerprint and
hash that they are the run's. Independent of what the run is opened for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rhumbline.errors import InputError, ProtocolError, RhumblineError
from rhumbline.inference.interventions import Direction
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint, load_source
from rhumbline.models.sources import ORGANISM, Source, contrast_for
from rhumbline.models.templates import own_template, template_sha256
from rhumbline.presets.published_models import published_models
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import ContrastSet, Prompt, Sizes, Splits, split_contrast
from rhumbline.records.codec import to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import read_json
from rhumbline.records.selection_files import SplitIds
from rhumbline.stages.arms import AdditionParameters, SeedArms
from rhumbline.stages.seed_artefacts import Null, SeedArtefacts


@dataclass(frozen=True)
class RunInputs:
    """What a run directory does not hold: the weights and the prompts of the run."""

    model: ChatModel | str | None = None
    """The run's model, loaded or by its name; None: by the name in the protocol."""
    contrast: ContrastSet | str | Path | None = None
    """The run's contrast, read or by its name; None: the organism's own, where the run is of an organism."""
    data_dir: str | Path | None = None
    """Local files of named data sets."""
    device: str | None = None
    dtype: str | None = None
    """None: the dtype that the run used."""
    template: str | None = None
    """Jinja text of the run's chat template, where it is neither the tokenizer's nor a preset's."""
    trust_remote_code: bool = False


@dataclass(frozen=True)
class OpenedSeed:
    """One seed of a finished run with the model, the chat and the prompts of the run."""

    run: "FinishedRun"
    artefacts: SeedArtefacts
    model: ChatModel
    chat: Chat
    splits: Splits


@dataclass(frozen=True)
class FinishedRun:
    """A run directory, opened for reading."""

    directory: RunDirectory

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.directory.path

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What was fixed beforehand."""
        return self.directory.protocol

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the run."""
        return tuple(self.protocol["seeds"])

    @cached_property
    def results(self) -> Mapping[str, Any]:
        """The content of results.json; InputError where the run has none yet."""
        path = self.path / "results.json"
        if not path.is_file():
            raise InputError(f"{self.path} is not a finished run: it has no results.json. Rerun its command to resume.")
        return read_json(path)

    def artefacts(self, seed: int | None = None) -> SeedArtefacts:
        """What one seed (default: the first) has on disk; ProtocolError where the run has no such seed."""
        number = self.seeds[0] if seed is None else seed
        if number not in self.seeds:
            raise ProtocolError(f"{self.path} has no seed {number}; it has {', '.join(map(str, self.seeds))}.")
        return SeedArtefacts(self.directory, number)

    def direction(self, seed: int | None = None) -> Direction | None:
        """The selected direction of a seed; None where no candidate passed."""
        return self.artefacts(seed).direction

    def nulls(self, seed: int | None = None) -> list[Null]:
        """The null directions of a seed; none where nothing was selected."""
        return self.artefacts(seed).nulls

    def coefficient(self, seed: int | None = None) -> float:
        """The coefficient of the additions of a seed, in units of the norm of the direction."""
        return self.artefacts(seed).coefficient

    def arms(self, seed: int | None = None) -> SeedArms:
        """The arms of a seed: of its direction and of its nulls."""
        artefacts = self.artefacts(seed)
        addition = AdditionParameters(artefacts.coefficient, self.protocol["addition"]["positions"])
        return SeedArms(artefacts.direction, artefacts.nulls, addition)

    # The model and the prompts of the run

    def with_model(self, inputs: RunInputs = RunInputs(), seed: int | None = None) -> OpenedSeed:
        """One seed with the model, chat and splits of the run; InputError where the inputs are not the run's."""
        _ = self.results  # only a run that ended is opened
        artefacts, contrast = self.artefacts(seed), self.contrast(inputs.contrast, inputs.data_dir)
        sizes, sampling = Sizes(**self.protocol["sizes"]), self.protocol.get("sampling", "lots")
        splits = split_contrast(contrast, sizes, artefacts.seed, sampling)
        if to_json(artefacts.read(SplitIds).ids) != splits.ids():
            raise InputError(
                f"{self.path}: this contrast gives other splits than seed {artefacts.seed} used. Give the file that "
                "the run was made with, unchanged."
            )
        model = self.model(inputs)
        return OpenedSeed(self, artefacts, model, self.chat(model, inputs.template, contrast.prompts), splits)

    def model(self, inputs: RunInputs = RunInputs()) -> ChatModel:
        """The model of the run, loaded as the run loaded it unless `inputs` differ, and checked."""
        model = inputs.model
        if not isinstance(model, ChatModel):
            recorded = self.protocol["model"]
            source = Source(
                model or recorded["name"],
                inputs.dtype or recorded["dtype"],
                inputs.device,
                coarse=recorded["mode"] == "coarse",
                trust_remote_code=inputs.trust_remote_code,
            )
            model = load_source(source.with_organism_defaults())
        self.check_model(model)
        return model

    def check_model(self, model: ChatModel, error: type[RhumblineError] = InputError) -> None:
        """`error` where the weights differ from those of the run."""
        expected = self.protocol["model"]["fingerprint"]
        if (actual := fingerprint(model)) != expected:
            raise error(
                f"{model.name} is not the model of {self.path}: the weights differ (fingerprint {actual[:12]}, the "
                f"run's is {expected[:12]}). Give the model of the run with --model, in the dtype of the run."
            )

    def contrast(
        self, contrast: ContrastSet | str | Path | None = None, data_dir: str | Path | None = None
    ) -> ContrastSet:
        """The contrast of the run; InputError where it is not given, or is another one."""
        recorded = self.protocol["contrast"]
        if contrast is None and not recorded["name"].startswith(ORGANISM):
            raise InputError(
                f"{self.path} holds no prompts, only the hash of its contrast ({recorded['name']!r}). Give the file "
                "or the name that the run was made with: --contrast FILE|NAME."
            )
        if not isinstance(contrast, ContrastSet):
            contrast = contrast_for(recorded["name"], None if contrast is None else str(contrast), data_dir)
        if contrast.sha256 != recorded["sha256"]:
            raise InputError(
                f"the contrast {contrast.name!r} is not that of {self.path} (sha256 {contrast.sha256[:12]}, the "
                f"run's is {recorded['sha256'][:12]}). Give the file that the run was made with."
            )
        return contrast

    def chat(self, model: ChatModel, template: str | None = None, prompts: Sequence[Prompt] | None = None) -> Chat:
        """The chat of the run; InputError where it cannot be rebuilt.

        Without the prompts of the run only the template is compared with the run's, not the tokens around a prompt.
        """
        recorded = self.protocol["chat"]
        fields = ("system", "enable_thinking", "date", "template_kwargs")
        options = ChatOptions(**{name: recorded[name] for name in fields}, template=self.template(model, template))
        chat = Chat.of(model.tokenizer, options, prompts or ())
        found = to_json(chat.record())
        differing = sorted(name for name in recorded if found.get(name) != recorded[name])
        if differing and prompts is not None:
            raise InputError(
                f"the chat is not that of {self.path}: it differs in {', '.join(differing)}. Give the tokenizer and "
                "the template of the run."
            )
        return chat

    def template(self, model: ChatModel, template: str | None = None) -> str:
        """Text of the chat template of the run: the argument, or else the tokenizer's own, or else a preset's."""
        known = (own_template(model.tokenizer), *(preset.template for preset in published_models().values()))
        for text in known if template is None else (template,):
            if text is not None and template_sha256(text) == self.protocol["chat"]["template_sha256"]:
                return text
        raise InputError(
            f"the chat template is not that of {self.path}. Give the run's template: --chat-template FILE, or a "
            "tokenizer that was saved with it."
        )


def open_run(path: str | Path) -> FinishedRun:
    """Open a run directory for reading; OutputError where it is none."""
    return FinishedRun(RunDirectory.read(path))
