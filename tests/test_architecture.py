"""The layout is the data flow: a module imports only from those above it, and some never see torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rhumbline

ROOT = Path(rhumbline.__file__).parent


def words(text: str) -> list[str]:
    """Names set apart by white space."""
    return text.split()


ORDER = words("""
    axes errors records measuring engines ranks
    sampling contrasts contrast_files data texts chat
    models batching packing attending proving loading
    interventions answered decoding running documents residuals directions nulls
    judging style markers log_odds statistics levels classifying planning evidence judges costs pairing
    opening choosing selection scoring refitting rules verdict
    side_effects conditions
    protocol presets probes styling verification
    figures arm_figures site_figures run_record evidence_figures side_effects_figures analyses_figures
    page evidence_report judges_report side_effects_report style_report
    reading_report span_report analyses_report report_sections report_protocol report
    seed_run blocks finding controls testing stages experiment reproducing inspecting
    projecting editing additive weights
    importing saving applying recipes tensorfiles sharded adapters export
    harness evaluating
    monitoring
    organisms sources replicas sizing comparing comparison_page sweeping forecasting
    analyses
    cli
""")
WITHOUT_TORCH = words("""
    errors records engines sizing comparing comparison_page
    sampling contrasts contrast_files data texts statistics levels planning evidence costs pairing
    choosing rules verdict
    figures arm_figures site_figures run_record evidence_figures side_effects_figures analyses_figures
    page evidence_report judges_report side_effects_report style_report
    reading_report span_report analyses_report report_sections report_protocol report
""")
HOOKS = "models"


def module_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix().split("/")[0]


def imported(source: str, package: str = "rhumbline") -> set[str]:
    """Top modules of this package that a source imports, function-level imports included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == package:
                names = [f"{package}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith(f"{package}.")}
    return found


SOURCES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_upward(path):
    own = module_of(path)
    assert own in ORDER, f"{own} has no place in the order yet"
    above = set(ORDER[: ORDER.index(own)])
    assert imported(path.read_text()) - {own} <= above


def test_the_check_can_fail():
    assert imported("from rhumbline.cli import main\nimport rhumbline.models") == {"cli", "models"}
    assert imported("from rhumbline import report") == {"report"}


def test_only_one_file_registers_hooks():
    for path in SOURCES:
        if module_of(path) != HOOKS:
            assert "register_forward" not in path.read_text(), path


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_no_torch_is_imported(module):
    code = f"import sys, rhumbline.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_torch_would_be_noticed():
    code = "import sys, rhumbline.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def test_public_names_exist():
    assert set(rhumbline.__all__) == set(rhumbline._HOME)
    for name in rhumbline.__all__:
        assert getattr(rhumbline, name) is not None
    assert not hasattr(rhumbline, "nothing_of_this_name")
