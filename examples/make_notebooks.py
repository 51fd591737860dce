"""Write every script of this folder as a notebook: cells begin with `# %%`."""

import json
from pathlib import Path

HERE = Path(__file__).parent
OWN = Path(__file__).name


def notebook(script: str) -> str:
    """The text of the notebook of a script."""
    cells = []
    for number, part in enumerate(script.split("# %%")[1:]):
        head, _, body = part.partition("\n")
        is_text = "[markdown]" in head
        lines = [line.removeprefix("#").removeprefix(" ") if is_text else line for line in body.strip().split("\n")]
        source = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
        cell = {
            "cell_type": "markdown" if is_text else "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": source,
        }
        cells.append(cell if is_text else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    value = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def scripts() -> list[Path]:
    """The scripts of this folder."""
    return sorted(path for path in HERE.glob("*.py") if path.name != OWN)


if __name__ == "__main__":
    for path in scripts():
        path.with_suffix(".ipynb").write_text(notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
