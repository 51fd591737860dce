"""Whether the files of a model are those that a finished run was loaded from, without reading a weight.

Independent of what the files contain: the fingerprint of a loaded model (loading.py) decides what its weights are.
"""

from pathlib import Path

from rhumbline.models import adapters
from rhumbline.models.places import file_of
from rhumbline.models.sources import ORGANISM, Source
from rhumbline.models.weight_files import weight_files


def stored_weights(source: Source) -> list[str] | None:
    """One line for each file of a local model, and the commit of a hub name; None if the model is not on this machine.

    A line has name, size, and the times of the last change of content (mtime) and of the file itself (ctime). A file
    that is replaced or edited has another ctime, even if its size is the same and its mtime is copied, so every
    replacement is noticed, that of an adapter's base too. A copied, moved or touched directory gives other lines with
    the same weights. A hub name whose branch has moved is noticed once the new commit is on this machine. Not noticed:
    changes that a network file system shows late, and code of another repository. An organism is part of this package
    and has no lines.
    """
    own = _lines(source.model, source.revision)
    config = _config(source.model, adapters.CONFIG, source.revision)
    if own is None or config is None or weight_files(config.parent):  # a checkpoint has no base
        return own
    base = _lines(*adapters.base_of(source.model, config))
    return None if base is None else [*own, *base]


def _lines(name: str, revision: str | None) -> list[str] | None:
    if name.startswith(ORGANISM):
        return []
    place = Path(name).expanduser()
    if place.exists():
        files = sorted(path for path in place.iterdir() if path.is_file()) if place.is_dir() else [place]
        facts = [(path.name, path.stat()) for path in files]
        return [f"{file} {f.st_size} {f.st_mtime_ns} {f.st_ctime_ns}" for file, f in facts]
    config = _config(name, "config.json", revision) or _config(name, adapters.CONFIG, revision)
    return None if config is None else [config.parent.name]  # a snapshot of the hub cache has the name of its commit


def _config(name: str, file: str, revision: str | None) -> Path | None:
    if name.startswith(ORGANISM) or Path(name).is_file():
        return None
    try:
        return file_of(str(Path(name).expanduser()), file, revision, offline=True)
    except (OSError, ValueError):  # of transformers, for a name that is not in the cache, or not on the hub
        return None
