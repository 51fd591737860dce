"""Rows of a contrast as a file, read, or refused."""

import json

import pytest

from rhumbline.errors import ContrastError
from rhumbline.prompts.contrast_files import read_contrast
from rhumbline.prompts.contrasts import LABELS

TWO = [{"prompt": "Make a kite", "label": "positive"}, {"prompt": "Bake a cake", "label": "negative"}]


def as_json(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(tmp_path, content, name="c.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(tmp_path, content, name="c.jsonl"):
    with pytest.raises(ContrastError) as caught:
        read_contrast(write(tmp_path, content, name))
    return str(caught.value)


def numbered(n, labels=LABELS, **fields):
    return [{"prompt": f"{label} item {i}", "label": label, **fields} for label in labels for i in range(n)]


def contrast(rows, tmp_path):
    return read_contrast(write(tmp_path, as_json(rows)))
