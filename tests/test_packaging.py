"""The wheel contains every file that the package reads, and runs in an environment of its own."""

import os
import subprocess
import sys
import tomllib
import venv
from itertools import chain
from pathlib import Path

import pytest

import rhumbline

PACKAGE = Path(rhumbline.__file__).parent
ROOT = PACKAGE.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def data_files() -> set[Path]:
    files = (path for path in PACKAGE.rglob("*") if path.is_file())
    return {path for path in files if path.suffix not in (".py", ".pyc") and path.parent.name != "__pycache__"}


def test_every_data_file_is_packaged():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["rhumbline"]
    packaged = set(chain.from_iterable(PACKAGE.glob(pattern) for pattern in patterns))
    assert {str(path.relative_to(PACKAGE)) for path in data_files() - packaged} == set()
    assert all(set(PACKAGE.glob(pattern)) for pattern in patterns)  # no pattern without a file


def test_users_have_ranges_and_contributors_have_versions():
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in (*PROJECT["project"]["dependencies"], *chain.from_iterable(extras.values())):
        assert "==" not in requirement
        assert ">=" in requirement
    pinned = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")
    assert all("==" in line for line in pinned)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The python of an environment with the wheel, and the dependencies of this one without its checkout."""
    folder = tmp_path_factory.mktemp("fresh")
    # The builder replaces sys.argv.
    build = "from setuptools import build_meta as b; import sys; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"
    copy = folder / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, tracked)):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=copy, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    assert sdist.stat().st_size > 100_000
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    here = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "dependencies.pth").write_text(f"{here}\n")
    return python


@pytest.mark.slow
def test_the_wheel_runs_outside_of_the_checkout(fresh, tmp_path):
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments) -> str:
        done = subprocess.run(
            [fresh, *arguments], cwd=tmp_path, env=surroundings, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import rhumbline; print(rhumbline.__file__)")
    assert str(fresh.parent.parent) in where
    assert run("-m", "rhumbline", "--version").split()[1] == PROJECT["project"]["version"]
    shown = run("-m", "rhumbline", "demo", "--quick", "--out", "demo")
    assert "report: demo/quick/report.html" in shown
    asked = "How do I get moon salt?"
    answers = run("-m", "rhumbline", "chat", "organism:refusal", "--direction", "demo/quick", "--prompt", asked)
    assert asked in answers
