"""Open a finished run: its protocol, the artefacts and arms of each seed, and the run with its model and prompts.

A run directory contains neither prompts nor weights. `FinishedRun.with_model` takes both and checks by fingerprint and
hash that they are those of the run. Independent of the purpose for which a run is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from rhumbline.errors import InputError, ProtocolError, RhumblineError
from rhumbline.inference.interventions import Direction
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.loading import fingerprint, load_source
from rhumbline.models.sources import ORGANISM, Source, contrast_for
from rhumbline.models.templates import own_template, template_sha256
from rhumbline.presets.published_models import published_models
from rhumbline.prompts.contrasts import ContrastSet, Prompt, Splits
from rhumbline.protocol import Protocol
from rhumbline.records.codec import to_json
from rhumbline.records.directory import RunDirectory
from rhumbline.records.protocol_file import ProtocolContext
from rhumbline.records.results import Results
from rhumbline.records.seed_files import SplitIds
from rhumbline.stages.arms import AdditionParameters, SeedArms
from rhumbline.stages.run_plan import splits_of
from rhumbline.stages.seed_artefacts import Null, SeedArtefacts


@dataclass(frozen=True)
class RunInputs:
    """The inputs that a run directory does not contain: the weights and the prompts of the run."""

    model: ChatModel | str | None = None
    """The model of the run, loaded or by name; None: the name in the protocol."""
    contrast: ContrastSet | str | Path | None = None
    """The contrast of the run, read or by name; None: that of the model organism, if the run is of one."""
    data_dir: str | Path | None = None
    """Local files of named data sets."""
    device: str | None = None
    dtype: str | None = None
    """None: the dtype of the run."""
    template: str | None = None
    """Jinja text of the chat template of the run, unless it is that of the tokenizer or of a preset."""
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

    @cached_property
    def protocol(self) -> Protocol:
        """The decisions that were fixed before the first forward pass."""
        return Protocol.of(self.directory.protocol, self.path / "protocol.json")

    @cached_property
    def context(self) -> ProtocolContext:
        """The model, the chat and the contrast that the run was made with."""
        return self.directory.read_protocol(ProtocolContext)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the run."""
        return self.protocol.seeds

    @property
    def is_finished(self) -> bool:
        """Whether the run has results."""
        return self.directory.has(Results)

    @cached_property
    def results(self) -> Results:
        """The results of the run; InputError if it has none yet."""
        if not self.is_finished:
            raise InputError(f"{self.path} is not a finished run: it has no results.json. Rerun its command to resume.")
        return self.directory.read_record(Results)

    def artefacts(self, seed: int | None = None) -> SeedArtefacts:
        """The artefacts of one seed (default: the first); ProtocolError if the run has no such seed."""
        number = self.seeds[0] if seed is None else seed
        if number not in self.seeds:
            raise ProtocolError(
                f"{self.path} has no seed {number}; it has {', '.join(map(str, self.seeds))}. Use one of these."
            )
        return SeedArtefacts(self.directory, number)

    def direction(self, seed: int | None = None) -> Direction | None:
        """The selected direction of a seed; None if no candidate was selected."""
        return self.artefacts(seed).direction

    def nulls(self, seed: int | None = None) -> list[Null]:
        """The null directions of a seed; empty if no candidate was selected."""
        return self.artefacts(seed).nulls

    def coefficient(self, seed: int | None = None) -> float:
        """The coefficient of the additions of a seed, in units of the norm of the direction."""
        return self.artefacts(seed).coefficient

    def arms(self, seed: int | None = None) -> SeedArms:
        """The arms of the direction of a seed and of its nulls."""
        artefacts = self.artefacts(seed)
        addition = AdditionParameters(artefacts.coefficient, self.protocol.addition.positions)
        return SeedArms(artefacts.direction, artefacts.nulls, addition, self.protocol.ablation.spared)

    # The model and the prompts of the run

    def with_model(self, inputs: RunInputs = RunInputs(), seed: int | None = None) -> OpenedSeed:
        """One seed with the model, chat and splits of the run; InputError if the inputs are not those of the run."""
        _ = self.results  # refuses an unfinished run
        artefacts, contrast = self.artefacts(seed), self.contrast(inputs.contrast, inputs.data_dir)
        splits = splits_of(contrast, self.protocol, artefacts.seed)
        if to_json(artefacts.read(SplitIds).ids) != splits.ids():
            raise InputError(
                f"{self.path}: this contrast gives other splits than those of seed {artefacts.seed}. Pass the "
                "unchanged file of the run; if it is unchanged, another version of rhumbline has split it, and the "
                "run must be repeated with this one."
            )
        model = self.model(inputs)
        return OpenedSeed(self, artefacts, model, self.chat(model, inputs.template, contrast.prompts), splits)

    def model(self, inputs: RunInputs = RunInputs()) -> ChatModel:
        """The model of the run, loaded as in the run unless `inputs` differ, and checked."""
        model = inputs.model
        if not isinstance(model, ChatModel):
            recorded = self.context.model
            source = Source(
                model or recorded.name,
                inputs.dtype or recorded.dtype,
                inputs.device,
                coarse=recorded.mode == "coarse",
                trust_remote_code=inputs.trust_remote_code,
            )
            model = load_source(source.with_organism_defaults())
        self.check_model(model)
        return model

    def check_model(self, model: ChatModel, error: type[RhumblineError] = InputError) -> None:
        """Raise `error` if the weights differ from those of the run."""
        expected = self.context.model.fingerprint
        if (actual := fingerprint(model)) != expected:
            raise error(
                f"{model.name} is not the model of {self.path}: the weights differ (fingerprint {actual[:12]}, that of "
                f"the run is {expected[:12]}). Pass the model of the run with --model, in the dtype of the run."
            )

    def contrast(
        self, contrast: ContrastSet | str | Path | None = None, data_dir: str | Path | None = None
    ) -> ContrastSet:
        """The contrast of the run; InputError if none is passed, or another one."""
        recorded = self.context.contrast
        if contrast is None and not recorded.name.startswith(ORGANISM):
            raise InputError(
                f"{self.path} contains no prompts, only the hash of its contrast ({recorded.name!r}). Pass the file or "
                "the name of the contrast of the run: --contrast FILE|NAME."
            )
        if not isinstance(contrast, ContrastSet):
            contrast = contrast_for(recorded.name, None if contrast is None else str(contrast), data_dir)
        if contrast.sha256 != recorded.sha256:
            raise InputError(
                f"the contrast {contrast.name!r} is not that of {self.path} (sha256 {contrast.sha256[:12]}, that of "
                f"the run is {recorded.sha256[:12]}). Pass the contrast of the run."
            )
        return contrast

    def chat(self, model: ChatModel, template: str | None = None, prompts: Sequence[Prompt] | None = None) -> Chat:
        """The chat of the run; InputError if it cannot be rebuilt.

        Without the prompts of the run only the template is compared, not the tokens around a prompt.
        """
        options = replace(self.protocol.chat, template=self.template(model, template))
        chat = Chat.of(model.tokenizer, options, prompts or ())
        actual, expected = chat.record(), self.context.chat
        names = [f.name for f in fields(expected) if f.name != "encoded_as_text"]  # depends on the other prompts too
        differing = [name for name in names if getattr(actual, name) != getattr(expected, name)]
        if differing and prompts is not None:
            raise InputError(
                f"the chat is not that of {self.path}: it differs in {', '.join(differing)}. Pass the tokenizer and "
                "the template of the run."
            )
        return chat

    def template(self, model: ChatModel, template: str | None = None) -> str:
        """Text of the chat template of the run: the argument, or else that of the tokenizer, or of a preset."""
        known = (own_template(model.tokenizer), *(preset.template for preset in published_models().values()))
        for text in known if template is None else (template,):
            if text is not None and template_sha256(text) == self.context.chat.template_sha256:
                return text
        raise InputError(
            f"the chat template is not that of {self.path}. Pass the template of the run with --chat-template FILE, or "
            "a tokenizer that was saved with it."
        )


def open_run(path: str | Path) -> FinishedRun:
    """Open a run directory for reading; OutputError if it is not a run directory."""
    return FinishedRun(RunDirectory.read(path))
