"""Fixtures of several packages: a tokenizer, tiny random models, organisms, finished runs and the command line."""

import hashlib
import json
import os
import sys
from pathlib import Path

# Before torch is imported, and for every process that a test starts: sums depend on the number of threads.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# Servers of the tests are on this machine.
os.environ |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1")

import pytest
from jaxtyping import install_import_hook

SOURCE = Path(__file__).parents[1] / "src"
WITH_ARRAYS = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if "from jaxtyping import" in path.read_text(encoding="utf-8")
]
"""Modules whose signatures are checked. With the hook in all modules the tests took 1.4 times as long."""
install_import_hook(WITH_ARRAYS, "type_checks.check")


def pytest_collection(session):
    """Import the large libraries before the package.

    While jaxtyping's hook imports a module of the package, every module that is imported from it looks for its bytecode
    under another name, so that the libraries would be compiled from source. The controller of xdist collects nothing.
    """
    if not session.config.pluginmanager.hasplugin("dsession"):
        import altair  # noqa: F401
        import scipy.stats  # noqa: F401
        import torch
        import torch.distributed.tensor
        from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401

        torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Begin with the fixture that takes longest, so that no worker waits for it at the end."""
    items.sort(key=lambda item: "interrupted" not in item.fixturenames)


def pytest_runtest_setup():
    """Random tensors of fixtures and tests do not depend on the tests before them."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


pytest_runtest_call = pytest_runtest_setup


EMPTY = {
    "vegalite_to_svg": lambda chart, **options: '<svg width="10" height="10"></svg>',
    "svg_to_png": lambda svg, **options: b"",
    "javascript_bundle": lambda code: "",
}


@pytest.fixture(scope="session", autouse=True)
def pictures():
    """Charts are empty pictures, since drawing takes most of the time of a report; what draws, by name."""
    import vl_convert

    drawing = {name: getattr(vl_convert, name) for name in EMPTY}
    with pytest.MonkeyPatch.context() as patched:
        for name, empty in EMPTY.items():
            patched.setattr(vl_convert, name, empty)
        yield drawing


@pytest.fixture(scope="module")
def drawn_pictures(pictures):
    """Charts are drawn, for the tests of one module."""
    import vl_convert

    with pytest.MonkeyPatch.context() as patched:
        for name, draw in pictures.items():
            patched.setattr(vl_convert, name, draw)
        yield


@pytest.fixture(scope="session")
def tokenizer():
    from make_tokenizer import CHATML, make_tokenizer

    return make_tokenizer(CHATML, ["<|im_start|>", "<|im_end|>"])


@pytest.fixture(scope="session")
def family_model(tokenizer):
    """A proved tiny random model of a family, built once per worker."""
    import torch

    from families import random_model
    from rhumbline.models import proving

    built = {}

    def get(family, dtype=torch.float32):
        if (family, dtype) not in built:
            model = random_model(family, dtype=dtype, vocab_size=len(tokenizer))
            built[family, dtype] = proving.prove(model, tokenizer, family)
        return built[family, dtype]

    return get


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The folder that `make` fills, by its name: made by the first worker that needs it, for all of them."""
    from filelock import FileLock

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    (root / "shared").mkdir(exist_ok=True)

    def get(name, make) -> Path:
        folder, made = root / "shared" / name, root / "shared" / f"{name}.made"
        with FileLock(root / "shared" / f"{name}.lock"):
            if not made.exists():
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def organism(shared):
    """The directory of an organism, by its name; tests that write in it work on a copy."""
    from rhumbline.organisms import materialise

    return lambda name: materialise(name, shared(f"organism-{name}", lambda into: materialise(name, into)))


@pytest.fixture(scope="session")
def finished(shared, organism):
    """A finished run of an organism, by its name and protocol; tests that write in it work on a copy."""
    from finished_runs import finish

    def get(name, protocol, **options) -> Path:
        key = hashlib.sha256(json.dumps([protocol.record(), options]).encode()).hexdigest()[:8]
        return shared(f"run-{name}-{key}", lambda out: finish(name, organism(name), out, protocol, **options))

    return get


@pytest.fixture(scope="session")
def planted_folder(organism) -> Path:
    """The planted organism."""
    return organism("planted")


@pytest.fixture(scope="session")
def texts_run(finished) -> Path:
    """A finished run of it that kept its texts."""
    from finished_runs import TEXTS

    return finished("planted", TEXTS, by_name=False)


@pytest.fixture(scope="session")
def every_stage(finished) -> Path:
    """A finished run of it with every stage and two seeds."""
    from finished_runs import EVERY_STAGE

    return finished("planted", EVERY_STAGE, by_name=False)


@pytest.fixture(scope="session")
def classifier(shared, planted_folder, texts_run) -> Path:
    """A classifier that judges "refused" where the completion has the word "cannot"."""
    from make_judge import make_classifier
    from rhumbline.records.files import read_rows

    def make(folder):
        rows = [r for r in read_rows(texts_run / "seed-0" / "outcomes.jsonl") if r["arm"].startswith("null")]
        make_classifier(folder, planted_folder, rows, ["cannot" in r["completion"] for r in rows])

    return shared("classifier", make)


@pytest.fixture
def call(capsys):
    """Run one command: exit code, standard output, and standard error on one line; no command may trace back."""
    from rhumbline.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as end:  # of argparse, for an option with a faulty value
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder of real models, for tests with the marker `real`; without it they are skipped."""
    folder = os.environ.get("RHUMBLINE_MODELS", "")
    if not Path(folder).is_dir() or not folder:
        pytest.skip(f"RHUMBLINE_MODELS is {folder!r}; set it to a folder that holds one directory per model.")
    return Path(folder)
