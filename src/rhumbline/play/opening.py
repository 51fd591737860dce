"""Open a session: a loaded model and the name of a run or a file give the chat and the directions.

A direction of another model or chat template is refused, unless forced. Independent of where a session is shown.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from rhumbline.edits.read_direction import ImportedDirections, check_origin, check_sizes, read_directions
from rhumbline.edits.save import fingerprints
from rhumbline.errors import InputError
from rhumbline.models.chat import Chat
from rhumbline.models.chat_model import ChatModel
from rhumbline.models.sources import Source
from rhumbline.play.directions import OWN, Choices, check_name, random_names
from rhumbline.play.session import Session
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.stages.finished_run import open_run


@dataclass(frozen=True)
class DirectionOptions:
    """Which direction of a run or file is used."""

    direction: str | None = None
    """Run directory or file; None: random directions only."""
    seed: int | None = None
    layer: int | None = None
    """Of a file; a session of a run can choose any layer."""
    position: int | None = None
    force: bool = False
    """Use a direction that was made for another model or chat template."""

    def read(self, name: str | None = None) -> ImportedDirections | None:
        """The directions. InputError if they are faulty, or lack the direction `name` or the layer; needs no model."""
        if self.layer is not None and self.layer < 0:
            raise InputError(f"--layer is {self.layer}; use 0 or more.")
        if self.direction is None:
            given = {"--seed": self.seed, "--position": self.position, "--force": self.force or None}
            if unused := [option for option, value in given.items() if value is not None]:
                raise InputError(f"{unused[0]} applies to --direction, which is missing. Omit it.")
            check_name(name, random_names())
            return None
        is_run = Path(self.direction).is_dir()
        layer = None if is_run else self.layer
        imported = read_directions(self.direction, seed=self.seed, layer=layer, position=self.position)
        if is_run:
            choices = Choices.of_run(open_run(self.direction), self.seed)
            choices.direction(name or OWN, choices.layer if self.layer is None else self.layer)
        else:
            imported.direction()
            check_name(name, (OWN, *random_names()))
        return imported


def open_session(
    model: ChatModel,
    source: Source,
    options: DirectionOptions,
    imported: ImportedDirections | None,
    system: str | None = None,
    template: str | None = None,
) -> Session:
    """A session of a model with the directions that `options.read` returned.

    Prompts are rendered with the chat options of the run, or with the defaults of the template. Raises InputError.
    """
    chat_options = ChatOptions()
    run = open_run(options.direction) if options.direction and Path(options.direction).is_dir() else None
    if run is not None:
        own = template if template is not None or options.force else run.template(model)
        chat_options = replace(run.protocol.chat, template=own)
    elif template is not None:
        chat_options = replace(chat_options, template=template)
    if system is not None:
        chat_options = replace(chat_options, system=system)
    chat = Chat.of(model.tokenizer, chat_options)
    if imported is None:
        return Session(model, chat, Choices.random(model, chat))
    check_sizes(imported, model.model.config, model.name, options.layer)
    if not options.force:
        used = chat.record().template_sha256
        check_origin(imported, fingerprints(model, imported, source), used)
    if run is None:
        return Session(model, chat, Choices.of_file(imported, model.n_layers))
    choices = Choices.of_run(run, options.seed)
    if options.layer is not None:
        choices.direction(choices.names[0], options.layer)
        choices = replace(choices, layer=options.layer)
    return Session(model, chat, choices, run.protocol.ablation.spared)
