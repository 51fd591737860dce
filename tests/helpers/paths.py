"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
DATA = ROOT / "tests" / "data"
GUIDE = ROOT / "docs" / "guide"
