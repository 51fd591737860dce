"""The examples and the site: notebooks are their scripts, which run; every page has a place; the README is short."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = runpy.run_path(str(ROOT / "examples" / "make_notebooks.py"))
SCRIPTS = EXAMPLES["scripts"]()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script(script):
    expected = EXAMPLES["notebook"](script.read_text(encoding="utf-8"))
    assert script.with_suffix(".ipynb").read_text(encoding="utf-8") == expected, "run examples/make_notebooks.py"


def test_there_are_three_examples():
    assert [path.stem for path in SCRIPTS] == ["find_a_direction", "is_it_real", "use_it"]


def test_every_page_has_a_place_in_the_site():
    config = (ROOT / "mkdocs.yml").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    listed = set(re.findall(r"[\w/-]+\.md", config))
    assert pages == listed


def test_the_readme_begins_with_the_installation_and_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert next(line for line in lines if line.startswith(("pip", "make", "rhumbline"))).startswith("pip install")


def python_blocks(path: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.slow
def test_examples_and_the_guide_run(tmp_path):
    (tmp_path / "guide.py").write_text(
        python_blocks(ROOT / "docs" / "guide" / "python.md").replace(
            'rhumbline.preset("rhumbline", seeds=(0,))', 'rhumbline.quick(rhumbline.preset("rhumbline", seeds=(0,)))'
        )
    )
    organism = {
        '"Qwen/Qwen2.5-1.5B-Instruct"': '"organism:refusal"',
        'rhumbline.read_contrast("my.jsonl")': 'rhumbline.own_contrast("organism:refusal")',
        'rhumbline.preset("rhumbline", seeds=(0, 1))': 'rhumbline.quick(rhumbline.preset("rhumbline", seeds=(0,)))',
    }
    readme = python_blocks(ROOT / "README.md")
    for printed, here in organism.items():
        assert printed in readme
        readme = readme.replace(printed, here)
    (tmp_path / "readme.py").write_text(readme)
    surroundings = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for script in (*SCRIPTS, tmp_path / "guide.py", tmp_path / "readme.py"):
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=surroundings, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script.name}: {done.stderr}"
        assert done.stdout
