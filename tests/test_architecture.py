"""The layout is the data flow: a package imports only from those above it, and some never import torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rhumbline

ROOT = Path(rhumbline.__file__).parent
ORDER = [
    *("errors", "arguments", "axes"),
    *("records", "settings", "prompts", "organisms", "models", "inference", "evidence", "judging"),
    *("protocol", "presets", "engines", "verification", "report", "stages", "experiment", "edits", "evals", "jobs"),
    *("analyses", "play", "cli", "__main__"),
]
"""Packages and top modules; each may import those before it."""
WITHOUT_TORCH = ("errors", "arguments", "records", "settings", "prompts", "evidence", "protocol", "engines", "report")
HOOKS = ROOT / "models" / "hooks.py"
MOST_MODULES = 8
"""Modules directly under the package."""

SOURCES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("rhumbline", *(p for p in parts if p != "__init__")))


def imported(source: str, package: str = "rhumbline") -> set[str]:
    """Top packages of this library that a source imports, function-level imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith(f"{package}.")}


def test_a_package_imports_only_from_those_above_it():
    wrong = []
    for path in SOURCES:
        own = package_of(path)
        assert own in ORDER, f"{own} has no place in the order yet"
        below = imported(path.read_text()) - {own} - set(ORDER[: ORDER.index(own)])
        wrong += [f"{module_of(path)} imports {name}" for name in sorted(below)]
    assert not wrong


def test_the_import_check_can_fail():
    assert imported("from rhumbline.cli import main\nimport rhumbline.models.chat") == {"cli", "models"}
    assert imported("from rhumbline import report") == {"report"}


def test_few_modules_stand_at_the_top():
    top = [p for p in ROOT.glob("*.py") if p.stem not in ("__init__", "__main__")]
    assert len(top) <= MOST_MODULES
    for package in {p.parent for p in SOURCES} - {ROOT}:
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text())), package


def test_only_one_file_registers_hooks():
    registers = [p for p in SOURCES if "register_forward" in p.read_text()]
    assert registers == [HOOKS]


def imports_torch(modules: list[str]) -> list[str]:
    """Those of the modules, imported one after another in a fresh interpreter, after which torch is loaded."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], check=False, capture_output=True, text=True)
    return done.stderr.split()[-1:] if done.returncode else []


def test_packages_without_torch_do_not_import_it():
    assert imports_torch([module_of(p) for p in SOURCES if package_of(p) in WITHOUT_TORCH]) == []


def test_torch_would_be_noticed():
    assert imports_torch(["rhumbline.errors", "rhumbline.models.chat_model"]) == ["rhumbline.models.chat_model"]


def test_public_names_exist():
    assert set(rhumbline.__all__) == set(rhumbline._HOME)
    for name in rhumbline.__all__:
        assert getattr(rhumbline, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = rhumbline.nothing_of_this_name


def test_the_readme_shows_every_package_in_a_short_tree():
    (tree,) = [b for b in (ROOT.parents[1] / "README.md").read_text().split("```") if "\nerrors.py " in b]
    lines = [line for line in tree.splitlines() if line]
    assert len(lines) <= 20
    shown = {word.strip("/").removesuffix(".py") for line in lines for word in line.split("  ")[0].split()}
    assert shown == set(ORDER) - {"__main__"}
