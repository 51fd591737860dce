"""Where the parts of a model are: a source in, the places of checkpoint, adapter and tokenizer out.

Independent of what the parts contain.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rhumbline.errors import ModelError, RhumblineError, SourceError
from rhumbline.models import adapters
from rhumbline.models.sources import Source, checkpoint
from rhumbline.models.weight_files import GGUF, extra, listed, one_line, weight_files

TOKENIZER = "tokenizer_config.json"
JSON_FILES = ("config.json", "generation_config.json", TOKENIZER, "tokenizer.json", "special_tokens_map.json")
TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = {"tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model"}
"""Files of which a tokenizer of transformers needs one, unless it is code."""


@dataclass(frozen=True)
class Places:
    """Directories, hub names or GGUF files of the parts of a model."""

    source: Source
    own: str
    """What `checkpoint` gives for the name of the model."""
    whole: str
    """The checkpoint with config and weights: `own`, or the base of an adapter."""
    revision: str | None
    """Revision of `whole`."""
    base: str | None = None
    """Name of the base, if `own` is an adapter."""
    own_tokenizer: bool = True
    """Whether the tokenizer is in `own`, not in `whole`."""

    @property
    def gguf(self) -> Path | None:
        """The GGUF file of config, tokenizer and weights; None for other formats."""
        return Path(self.whole) if self.whole.endswith(GGUF) else None

    @property
    def weights(self) -> Path | None:
        """Directory or GGUF file of the weights on this machine; None if they are not here."""
        if Path(self.whole).exists():
            return Path(self.whole)
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            snapshot = Path(snapshot_download(self.whole, revision=self.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            return None
        return snapshot if weight_files(snapshot) else None

    def arguments(self, *, tokenizer: bool = False) -> dict[str, Any]:
        """Arguments of `from_pretrained` for config and weights, or for the tokenizer."""
        own = tokenizer and self.own_tokenizer
        where, revision = (self.own, self.source.revision) if own else (self.whole, self.revision)
        found: dict[str, Any] = {"pretrained_model_name_or_path": where, "revision": revision}
        if where.endswith(GGUF):
            extra("gguf", "gguf")
            path = Path(where)
            found |= {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        return {**found, "trust_remote_code": self.source.trust_remote_code}


@contextmanager
def places_of(source: Source) -> Iterator[Places]:
    """The places of a model while the context is active; SourceError where there is no such model."""
    with ExitStack() as stack:
        own = stack.enter_context(checkpoint(source.model))
        _check_entries(source.model, own)
        plain = Places(source, own, own, source.revision)
        with readable(plain):
            config = file_of(own, adapters.CONFIG, source.revision)
            own_tokenizer = file_of(own, TOKENIZER, source.revision) is not None
        if config is None:
            yield plain
            return
        base = adapters.base_of(source.model, config)
        if Path(own).is_dir() and weight_files(Path(own)):
            # A checkpoint with an adapter in the same directory: transformers takes the checkpoint as the base.
            yield Places(source, own, own, source.revision, source.model, own_tokenizer)
            return
        yield _with_base(Places(source, own, base.name, base.revision, base.name, own_tokenizer), stack)


def _with_base(places: Places, stack: ExitStack) -> Places:
    """The places of an adapter, with the checkpoint of its base; ModelError if there is none."""
    try:
        found = replace(places, whole=stack.enter_context(checkpoint(places.whole)))
    except RhumblineError as error:
        raise ModelError(f"{places.source.model} is an adapter, and its base model cannot be found: {error}") from error
    _check_entries(places.source.model, found.whole)
    with readable(found):
        config = file_of(found.whole, adapters.CONFIG, found.revision)
    if config is not None and not (Path(found.whole).is_dir() and weight_files(Path(found.whole))):
        raise ModelError(
            f"{places.source.model} is an adapter, and its base model {places.base} is an adapter too. Merge that one "
            "into its own base first, with `rhumbline edit` or peft."
        )
    return found


def _check_entries(name: str, where: str) -> None:
    """ModelError if a file of a directory is something else: transformers would read the model without it."""
    folder = Path(where)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        is_read = path.name in (*JSON_FILES, *TOKENIZER_FILES, TEMPLATE, adapters.CONFIG)
        if is_read and not path.is_file():
            kind = "a link to nothing" if path.is_symlink() and not path.exists() else "not a regular file"
            raise ModelError(f"{name}: {path.name} is {kind}. Restore the file, or remove the entry.")


def file_of(where: str, name: str, revision: str | None, *, offline: bool = False) -> Path | None:
    """One file of a checkpoint, on this machine; None where the checkpoint has none of this name.

    `offline`: the hub is not asked, and OSError is raised if its cache does not have the file.
    """
    from transformers.utils.hub import cached_file

    if where.endswith(GGUF):
        return None
    found = cached_file(
        where, name, revision=revision, local_files_only=offline, _raise_exceptions_for_missing_entries=False
    )
    return None if found is None else Path(found)


@contextmanager
def readable(places: Places, where: str | None = None) -> Iterator[None]:
    """Turn whatever transformers raises into a ModelError: the errors of the hub have no common base.

    `where` is the directory or hub name that is read; default: that of the weights.
    """
    where = places.whole if where is None else where
    subject = places.source.model
    if places.base is not None and where == places.whole:
        subject = f"{subject}: its base model {places.base}"
    try:
        yield
    except RhumblineError:
        raise
    except Exception as error:
        if not places.source.trust_remote_code and (code := _own_code(where, places.revision)):
            raise ModelError(
                f"{subject} comes with code of its own ({', '.join(code)}), which is not executed unless you allow it, "
                f"and transformers cannot load it without ({one_line(error)}). Inspect the code, then pass "
                "--trust-remote-code (in Python: trust_remote_code=True)."
            ) from error
        why = _faulty_files(where, is_whole=where == places.whole) or one_line(error)
        is_source = where == places.own == places.whole  # not the base of an adapter
        wrong = SourceError if is_source and is_absent(where, places.revision) else ModelError
        raise wrong(
            f"{subject} is not a loadable Hugging Face model: {why}. Give a hub name or a directory with config, "
            "tokenizer and weights."
        ) from error


def is_absent(where: str, revision: str | None) -> bool:
    """Whether a directory or a hub name has no config: there is no model on this machine, or on the hub."""
    try:
        return not where.endswith(GGUF) and file_of(where, "config.json", revision) is None
    except (OSError, ValueError):  # of transformers, for a name that the hub does not have, or offline
        return True


def _own_code(where: str, revision: str | None) -> list[str]:
    """The classes that a checkpoint defines in its own code."""
    found: list[str] = []
    for name in ("config.json", TOKENIZER):
        content = json_of(where, name, revision)
        classes = content.get("auto_map") if isinstance(content, dict) else None
        values = list(classes.values()) if isinstance(classes, dict) else [classes]
        found += [str(v) for value in values for v in (value if isinstance(value, list) else [value]) if v]
    return found


def _faulty_files(where: str, *, is_whole: bool) -> str:
    """What is wrong with the files of a directory that transformers cannot load; empty if that is not known."""
    if not Path(where).is_dir():
        return ""
    names = {path.name for path in Path(where).iterdir() if path.is_file()}
    if is_whole and "config.json" not in names:
        return f"it has no config.json (files: {listed(sorted(names)) or 'none'})"
    if faulty := [n for n in JSON_FILES if n in names and not isinstance(json_of(where, n, None), dict)]:
        return f"{', '.join(faulty)} is not a JSON object"
    if not names & TOKENIZER_FILES:
        return "it has no tokenizer.json, tokenizer.model or other vocabulary"
    return ""


def json_of(where: str, name: str, revision: str | None) -> Any:
    """The content of a JSON file of a checkpoint; None if it is missing or faulty."""
    try:
        path = file_of(where, name, revision)
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
