"""Changes of the files of a run directory."""

import json
from pathlib import Path

from rhumbline.records.files import file_sha256, sha256


def edit(path: Path, change) -> None:
    """Change the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_row(path: Path, number: int, change) -> None:
    """Change one row of a JSON Lines file."""
    lines = path.read_text().splitlines()
    row = json.loads(lines[number])
    change(row)
    path.write_text("\n".join([*lines[:number], json.dumps(row), *lines[number + 1 :]]) + "\n")


def seal(path: Path) -> None:
    """Make the hashes of results.json fit whatever the directory contains."""

    def renew(results):
        results["files"] = {name: file_sha256(path / name) for name in results["files"] if (path / name).exists()}
        results["sha256"] = sha256({key: value for key, value in results.items() if key != "sha256"})

    edit(path / "results.json", renew)
