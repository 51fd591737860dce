"""The Hugging Face hub: the folder that shares a run or an edited checkpoint, its upload, and directions by name.

Only files with listed names are shared and only safetensors are downloaded. The one module that talks to the hub about
directions; models are loaded by transformers.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhumbline.edits.new_directory import check_target, new_directory
from rhumbline.edits.read_direction import LARGEST, PREFIX, read_directions
from rhumbline.errors import DirectionError, InputError, OutputError, RhumblineError, VerificationError
from rhumbline.inference.direction_files import read_safetensors, write_directions
from rhumbline.models.weight_files import INDEX, extra, weight_files
from rhumbline.records.claims import Claim
from rhumbline.records.edit_file import FILE as EDIT
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.results import Results, SeedResult
from rhumbline.records.shared import ORGANISM
from rhumbline.records.verdict_rule import is_number
from rhumbline.stages.finished_run import FinishedRun, open_run
from rhumbline.verification import verify

DIRECTION = "direction.safetensors"
CHECKPOINT_FILES = (
    INDEX,
    EDIT,
    "README.md",
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
"""Names of the files of an edited checkpoint that are shared beside its weights."""
RUN_FILES = ("results.json", "protocol.json")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}", re.ASCII)
_REVISION = re.compile(r"[\w./-]{1,100}", re.ASCII)


def is_repository(name: str) -> bool:
    """Whether a name has the form owner/name of the hub."""
    return bool(_NAME.fullmatch(name)) and ".." not in name and not name.endswith(".git")


@dataclass(frozen=True)
class PushOptions:
    """What is shared."""

    license: str = "other"
    """Identifier of a licence on the hub."""
    report: bool = True
    """Whether the report of a run is shared."""

    def __post_init__(self):
        if not _LICENSE.fullmatch(self.license):
            raise InputError(
                f"--license is {self.license!r}; pass an identifier of the hub in lower case, such as apache-2.0."
            )


# -- the folder -------------------------------------------------------------------------------------------------------


def shared_folder(
    source: str | Path, target: Path, options: PushOptions = PushOptions(), *, link: bool = False
) -> list[str]:
    """Write the files that share a run or an edited checkpoint to a new directory; returns lines for the user.

    `link` makes hard links of the files of a checkpoint, for a directory that is only read and then removed.
    """
    folder = Path(source)
    check_target(target)
    is_run, is_edit = ((folder / name).is_file() for name in ("protocol.json", EDIT))
    if is_run == is_edit:
        raise InputError(
            f"{source} is neither a run directory nor an edited checkpoint. Pass a RUN, or the directory that "
            "`rhumbline edit` wrote."
        )
    if is_edit and options != PushOptions():
        raise InputError(
            f"{source} is an edited checkpoint, and --license and --without-report are of runs. Omit them, and write "
            "the licence into its README.md."
        )
    with new_directory(target) as into:
        if is_edit:
            _share_checkpoint(folder, into, link)
            return []
        return _share_run(open_run(folder), into, options)


def _share_checkpoint(folder: Path, into: Path, link: bool) -> None:
    weights = weight_files(folder)
    if not weights or not all(name.endswith(".safetensors") for name in weights):
        raise OutputError(f"{folder} has no safetensors. Only these are shared; edit the checkpoint again.")
    for path in (folder / name for name in (*weights, *CHECKPOINT_FILES)):
        if path.is_file() and not path.is_symlink():
            _put(path, into / path.name, link)


def _put(path: Path, target: Path, link: bool) -> None:
    if link:
        with suppress(OSError):  # another file system, or one without hard links
            os.link(path, target)
            return
    shutil.copyfile(path, target)


def _share_run(run: FinishedRun, into: Path, options: PushOptions) -> list[str]:
    results, faults = run.results, verify(run.path)
    if faults:
        raise VerificationError(
            f"{run.path} does not verify, so it is not shared: {faults[0]}. `rhumbline verify RUN` lists all faults."
        )
    seeds = [seed for seed in run.seeds if run.direction(seed) is not None]
    for seed in seeds[:1]:
        imported = read_directions(run.path, seed=seed)
        write_directions(into / DIRECTION, imported.vectors, imported.layer, imported.position, imported.origin)
    has_texts = run.protocol.save_completions
    names = [*RUN_FILES, *(["report.html"] if options.report and not has_texts else [])]
    for name in names:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, into / name)
    (into / "README.md").write_text(_card(results, options, bool(seeds)), encoding="utf-8")
    name = results.model.name
    local = [] if is_repository(name) or name.startswith(ORGANISM) else [f"the files name the model {name!r}"]
    texts = ["report.html shows completions, so it is left out"] if options.report and has_texts else []
    return [*local, *texts, *([] if seeds else ["no candidate was selected, so there is no direction"])]


def _card(results: Results, options: PushOptions, has_direction: bool) -> str:
    """The model card of a run: verdict, rates, claims, side effects, base model and licence."""
    name = results.model.name
    base = f"base_model: {name}\n" if is_repository(name) else ""
    lines = [
        f"---\n{base}license: {options.license}\nlibrary_name: rhumbline\ntags: [rhumbline, direction]\n---",
        f"# A direction of `{_code(name)}` for {_plain(results.behaviour)}",
        f"**{results.verdict}**. {_plain(results.sentence)}",
        "The verdict states whether one direction was sufficient to move the behaviour on the test prompts, beyond "
        "null directions. It does not state that no other direction has the same effect.",
        *(_seed_lines(seed) for seed in results.seeds),
    ]
    if has_direction:
        lines.append(f"```\nrhumbline chat {_code(name)} --direction hf:OWNER/NAME\n```")
    lines.append(f"Made with rhumbline {results.environment.rhumbline}; every number is in `results.json`.")
    return "\n\n".join(lines) + "\n"


def _seed_lines(seed: SeedResult) -> str:
    claims = ["| claim | state | value | 95 % interval | n |", "| --- | --- | --- | --- | --- |"]
    claims += [_claim_line(claim) for claim in seed.claims]
    site = "no direction was selected"
    if seed.selected is not None:
        site = f"position {int(seed.selected.position)}, layer {seed.selected.layer}"
    table = ["| arm | set | n | rate | 95 % interval |", "| --- | --- | --- | --- | --- |"]
    table += [_arm_line(row) for row in seed.arms if not row.arm.is_null]
    effects = []
    if seed.side_effects is not None:
        effects = [
            f"- loss on {loss.text}, {loss.arm}: {_number(loss.ce)} nats per token, change {_number(loss.change)} "
            f"({_number(loss.low)} to {_number(loss.high)}), {loss.documents} documents"
            for loss in seed.side_effects.losses
        ]
    listed = "\n".join(["", "Side effects:", "", *effects]) if effects else "\nSide effects were not measured."
    head = f"## Seed {seed.seed}: {seed.verdict}\n\n{site}. {_plain(seed.sentence)}\n\n"
    return head + "\n".join([*claims, "", *table, listed])


def _claim_line(claim: Claim) -> str:
    interval = f"{_number(claim.low)} to {_number(claim.high)}"
    return f"| {claim.kind.text} | {claim.state} | {_number(claim.value)} | {interval} | {claim.n or 'not measured'} |"


def _arm_line(row: ArmRate) -> str:
    return f"| {row.arm} | {row.side} | {row.n} | {_number(row.rate)} | {_number(row.low)} to {_number(row.high)} |"


def _number(value: float | None) -> str:
    return f"{value:z.3f}" if is_number(value) else "not measured"


def _plain(text: str) -> str:
    """Text of a record without links, code and HTML, which could change the card."""
    return re.sub(r"([\[\]])", r"\\\1", re.sub(r"[<>`\r\n]", " ", text))


def _code(text: str) -> str:
    return re.sub(r"[`\r\n]", " ", text)


# -- the hub ----------------------------------------------------------------------------------------------------------


def push(
    source: str | Path, repository: str, options: PushOptions = PushOptions(), *, public: bool = False
) -> list[str]:
    """Upload what shares a run or an edited checkpoint; returns lines for the user. Raises OutputError."""
    check_repository(repository)
    hub = extra("hub", "huggingface_hub")
    with tempfile.TemporaryDirectory(prefix="rhumbline-push-") as scratch:
        folder = Path(scratch) / "upload"
        notes = shared_folder(source, folder, options, link=True)
        with _explained(OutputError, f"{repository} could not be uploaded", "Use hf auth login, or --dry-run DIR"):
            api = hub.HfApi()
            api.create_repo(repository, private=not public, exist_ok=True)
            message = "Upload with rhumbline"
            commit = api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message=message)
    return [*notes, f"pushed: {getattr(commit, 'commit_url', repository)}"]


def check_repository(name: str) -> None:
    """Raise InputError unless a name has the form owner/name."""
    if not is_repository(name):
        raise InputError(f"repository {name!r}: expected owner/name of the hub, of letters, digits, '-', '_' and '.'.")


@dataclass(frozen=True)
class HubFile:
    """The file of a direction on the hub, downloaded."""

    path: Path
    revision: str
    """The commit."""


def _is_revision(name: str) -> bool:
    return bool(_REVISION.fullmatch(name)) and ".." not in name


def hub_direction(name: str) -> HubFile:
    """The direction.safetensors of `hf:owner/name` or `hf:owner/name@REVISION`. Raises DirectionError."""
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if not is_repository(repository) or (revision and not _is_revision(revision)):
        raise DirectionError(f"{name!r}: expected hf:owner/name, or hf:owner/name@REVISION.")
    hub = extra("hub", "huggingface_hub")
    with _explained(DirectionError, f"{name} could not be downloaded", "Check the name, the network and the login"):
        info = hub.hf_hub_download(repository, DIRECTION, revision=revision or None, dry_run=True)
        if info.file_size > LARGEST:
            raise DirectionError(f"{name} has {info.file_size:,} bytes; at most {LARGEST:,} are read. Use another one.")
        path = Path(hub.hf_hub_download(repository, DIRECTION, revision=info.commit_hash))
    read_safetensors(path)
    return HubFile(path, path.parent.name)


@contextmanager
def _explained(kind: type[RhumblineError], what: str, advice: str) -> Iterator[None]:
    """Errors of the hub's client as errors of this library."""
    import httpx

    errors: tuple[Any, ...] = (OSError, ValueError, httpx.HTTPError)
    try:
        yield
    except RhumblineError:
        raise
    except errors as error:
        first = next(iter(str(error).splitlines()), "no message")
        raise kind(f"{what} ({type(error).__name__}: {first[:200]}). {advice}.") from error
