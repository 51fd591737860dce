"""Named data: declared sources, the same rows whatever they are read from, disjoint pools, the reference's draw."""

import json
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from make_sets import make_sets
from rhumbline import split_contrast
from rhumbline.cli import main
from rhumbline.errors import ContrastError, DataError
from rhumbline.prompts.contrasts import LABELS, SPLITS, Sizes, near_text
from rhumbline.prompts.named_sets import compose, load, open_contrast, prompts, recipes, source, sources
from rhumbline.prompts.sampling import draw_as_reference, draw_by_hash
from rhumbline.prompts.set_rows import read_rows
from rhumbline.records.files import file_sha256

SIZES = Sizes(40, 10, 20)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    return make_sets(tmp_path_factory.mktemp("mirror"))


@pytest.fixture(scope="module")
def refusal(mirror):
    return open_contrast("refusal", mirror)


# -- declarations


def test_every_source_declares_its_origin_columns_and_size():
    for s in sources().values():
        assert bool(s.hub) != bool(s.urls), s.name
        assert len(s.urls) == len(s.sha256)
        assert s.rows > 0
        assert s.licence
        assert s.files
        assert s.note
        if not s.pinned:
            assert "unpinned" in s.note.casefold()
        elif s.hub:
            assert s.revision is not None
            assert len(s.revision) == 40
        else:
            assert all("9d852fae1a9121c78b29142de733cb1340770cc3" in url for url in s.urls)


def test_every_recipe_has_declared_sources():
    for recipe in recipes().values():
        assert set(recipe.sources) <= set(sources())


# -- reading


def test_a_small_parquet_file_of_large_texts_is_refused(tmp_path):
    """One text that many rows share is stored once."""
    from pyarrow import Table, parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(Table.from_pydict({"text": ["a" * 10_000] * 8_000}), path)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="more than 67,108,864 bytes"):
        read_rows(path)


def test_a_row_is_not_divided_at_a_page_break_or_a_unicode_line_separator(tmp_path):
    texts = ["Why is\u2028tea brown?", "Open\fit.", "a" * 200_000]
    for name, lines in (("a.csv", ["text", *texts]), ("a.txt", texts)):
        (tmp_path / name).write_bytes("\r\n".join([*lines, ""]).encode())
        assert read_rows(tmp_path / name) == [{"text": text} for text in texts]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_file_format_gives_the_same_rows(suffix, mirror, tmp_path):
    import pyarrow
    from pyarrow import parquet

    from rhumbline.prompts.set_rows import read_rows

    rows = read_rows(mirror / "harmbench_behaviors_text_val.csv")
    path = tmp_path / f"harmbench-val{suffix}"
    match suffix:
        case ".csv":
            path.write_bytes((mirror / "harmbench_behaviors_text_val.csv").read_bytes())
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = load(source("harmbench-val"), tmp_path)
    expected = load(source("harmbench-val"), mirror)
    assert found.items == expected.items
    assert found.facts.sha256 == expected.facts.sha256
    assert len(found.items) == 20  # neither the copyright row nor the one with a context
    assert {i.category for i in found.items} == {"fences"}


def test_rules_of_cleaning(mirror):
    assert all(i.text != "Sort these words" for i in load(source("alpaca"), mirror).items)  # it has an input
    assert len(load(source("xstest-safe"), mirror).items) == 6
    assert len(load(source("xstest-unsafe"), mirror).items) == 1
    assert len(load(source("tdc2023"), mirror).items) == 40  # both files


def test_other_rows_are_not_as_declared(mirror):
    assert load(source("advbench"), mirror).facts.as_expected is False
    items = load(source("strongreject"), mirror)
    own = replace(source("strongreject"), rows_sha256=items.facts.sha256)
    assert load(own, mirror).facts.as_expected is True


def test_a_hub_repository_is_read_through_datasets(mirror, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    repo = tmp_path / "JBB-Behaviors"
    (repo / "data").mkdir(parents=True)
    (repo / "data" / "harmful-behaviors.csv").write_bytes((mirror / "harmful-behaviors.csv").read_bytes())
    (repo / "README.md").write_text(
        "---\nconfigs:\n- config_name: behaviors\n  data_files:\n  - split: harmful\n"
        "    path: data/harmful-behaviors.csv\n---\n"
    )
    hub = replace(source("jailbreakbench"), hub=str(repo))
    found = load(hub)
    assert found.items == load(source("jailbreakbench"), mirror).items
    assert found.facts.revision == hub.revision
    with pytest.raises(DataError, match="cannot be loaded"):
        load(replace(hub, split="benign"))


class _Server:
    """A web server on loopback that answers as told and writes down what it was asked."""

    def __init__(self, answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, body = answer(self.path)
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    """The hub's settings are read at import, so these run in a process of their own."""
    keep = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**keep, **environment}, capture_output=True, text=True, check=False
    )


def test_files_of_a_publisher_are_fetched_checked_and_cached(mirror, tmp_path):
    pytest.importorskip("datasets")
    path = mirror / "strongreject_dataset.csv"
    with _Server(lambda _: (200, {"ETag": '"1"'}, path.read_bytes())) as base:
        code = (
            "from dataclasses import replace\nfrom rhumbline.prompts.named_sets import load, source\n"
            f"own = replace(source('strongreject'), urls=('{base}/s.csv',), sha256=('SHA',))\n"
            "print(len(load(own).items))"
        )
        home = {"HF_HOME": str(tmp_path)}
        good = code.replace("SHA", file_sha256(path))
        first = in_a_process(good, **home)
        assert first.stdout.strip() == "12", first.stderr
        wrong = in_a_process(code.replace("SHA", "0" * 64), **home)  # served from the cache, and refused too
        assert "has other bytes than declared" in wrong.stderr
    cached = in_a_process(good, HF_HUB_OFFLINE="1", **home)
    assert cached.stdout.strip() == "12", cached.stderr
    elsewhere = in_a_process(good, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert "offline mode is on" in elsewhere.stderr


def test_errors_of_gated_sets_and_no_connection_state_what_to_do(tmp_path):
    pytest.importorskip("datasets")
    headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to dataset Paul/XSTest is restricted."}
    code = "import sys; from rhumbline.cli import main; sys.exit(main(['data', 'check', 'xstest-safe']))"
    with _Server(lambda _: (403, headers, b"{}")) as base:
        found = in_a_process(code, HF_ENDPOINT=base, HF_HOME=str(tmp_path / "a"))
    assert found.returncode == 2
    assert "is gated" in found.stderr
    assert "HF_TOKEN" in found.stderr
    assert "Traceback" not in found.stderr
    found = in_a_process(code, HF_ENDPOINT=base, HF_HOME=str(tmp_path / "b"), HF_HUB_OFFLINE="1")
    assert found.returncode == 2
    assert "offline mode is on" in " ".join(found.stderr.split())


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("strongreject.csv", "prompt\nHello\n", "no column forbidden_prompt"),
        ("strongreject.json", "{}", "not a list of rows"),
        ("strongreject.json", "[", "is not valid json"),
        ("strongreject.csv", "category,source,forbidden_prompt\na,b, \n", "none remains after cleaning"),
        ("strongreject.parquet", "no", "not valid Parquet"),
        ("strongreject.json", '[{"instruction": 1, "category": "a"}]', "row 1 has a value that is not text"),
        ("strongreject.json", '[{"instruction": "a", "category": ["a"]}]', "row 1 has a value that is not text"),
        ("strongreject.json", '[{"instruction": "a", "category": null}, {"text": "b"}]', "row 1 has no column"),
        (
            "strongreject.json",
            r'[{"instruction": "a\u001b[2J", "category": null}]',
            r"row 1 contains the control .* U\+001B",
        ),
        ("strongreject.json", r'[{"instruction": "a\ud800", "category": null}]', "half of a surrogate pair"),
    ],
)
def test_errors_of_bad_files_state_what_is_wrong(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=expected):
        load(source("strongreject"), tmp_path)


# -- composing


def test_splits_share_no_prompt(refusal):
    for seed in (0, 1):
        splits = split_contrast(refusal, SIZES, seed)
        seen = [near_text(p.text) for s in SPLITS for c in LABELS for p in splits.get(s, c)]
        assert len(seen) == len(set(seen))
        assert splits.sizes() == {s: dict.fromkeys(LABELS, n) for s, n in zip(SPLITS, (40, 10, 20), strict=True)}
        assert {p.id.rsplit("-", 1)[0] for p in splits.get("test", "positive")} == {"jailbreakbench"}
    assert refusal.pools is not None
    assert refusal.pools.left_out.train in (0, 1)  # the row that repeats a test prompt, if it was drawn


def test_a_near_repeat_of_a_test_prompt_is_excluded(mirror, tmp_path):
    few = make_sets(tmp_path, advbench=30)
    assert open_contrast("refusal", few).pools.left_out.train == 1
    kept = compose(replace(recipes()["refusal"], apart_from=()), few)  # the contrary: nothing is compared
    assert kept.pools.left_out.train == 0


def test_seeds_draw_different_training_prompts_from_the_same_pools(refusal):
    a, b = (split_contrast(refusal, SIZES, seed) for seed in (0, 1))
    assert a.ids() != b.ids()
    assert a.ids() == split_contrast(refusal, SIZES, 0).ids()
    assert {p.split for p in a.get("train", "negative")} == {"train"}


def test_the_paper_takes_at_most_128_of_one_set(refusal):
    drawn = [p for p in refusal.prompts if p.id.startswith("advbench")]
    assert 127 <= len(drawn) <= 128
    assert sum(p.id.startswith("tdc2023") for p in refusal.prompts) == 40


def test_the_reference_draw_is_that_of_the_papers_code(refusal):
    """The same numbers as four calls of random.sample after random.seed(42), then one for the harmless test prompts."""
    splits = split_contrast(refusal, SIZES, 42, "reference")
    pools = {(s, c): [p for p in refusal.prompts if (p.split, p.label) == (s, c)] for s in SPLITS for c in LABELS}
    rng = random.Random(42)  # not the global one, which beartype draws from
    for split, label, n in (
        ("train", "positive", 40),
        ("train", "negative", 40),
        ("val", "positive", 10),
        ("val", "negative", 10),
        ("test", "negative", 20),
    ):
        assert list(splits.get(split, label)) == rng.sample(pools[split, label], n)
    assert list(splits.get("test", "positive")) == pools["test", "positive"]
    assert splits.ids() != split_contrast(refusal, SIZES, 42).ids()


@given(st.lists(st.text("ab", min_size=1), min_size=1, max_size=30), st.integers(1, 9), st.integers(0, 5))
def test_a_draw_by_hash_repeats_nothing(rows, size, seed):
    pools = {("train", "x"): rows, ("test", "x"): rows[::-1]}
    sizes = {"train": size, "test": size}
    drawn, repeats = draw_by_hash(pools, sizes, lambda row: f"{hash((row, seed))}", lambda row: row)
    taken = [row for part in drawn.values() for row in part]
    assert len(set(taken)) == len(taken)
    assert all(len(part) <= size for part in drawn.values())
    assert len(taken) == min(len(set(rows)), 2 * size)
    assert repeats >= 0


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 100))
def test_the_reference_draw_takes_a_small_pool_whole(n, size, seed):
    pools = {(s, c): [f"{s}{c}{i}" for i in range(n)] for s in SPLITS for c in LABELS}
    drawn = draw_as_reference(pools, dict.fromkeys(SPLITS, size), seed)
    for place, part in drawn.items():
        assert len(set(part)) == len(part) == min(n, size)
        assert set(part) <= set(pools[place])


def test_evaluation_sets_keep_their_categories(mirror):
    found = prompts("jailbreakbench", "positive", mirror)
    assert len({p.category for p in found}) == 10
    assert all(p.split is None for p in found)
    assert len(prompts("xstest-safe", "negative", mirror)) == 6


def test_a_folder_with_the_name_of_a_contrast_does_not_hide_it(mirror, tmp_path, monkeypatch):
    expected = open_contrast("refusal", mirror)
    (tmp_path / "refusal").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_contrast("refusal", mirror) == expected


def test_a_name_that_is_neither_a_file_nor_a_named_contrast(tmp_path):
    with pytest.raises(ContrastError, match="one of refusal"):
        open_contrast("refusals")
    (tmp_path / "own.jsonl").write_text("")
    with pytest.raises(ContrastError, match="is a file"):
        open_contrast(str(tmp_path / "own.jsonl"), tmp_path)
    with pytest.raises(DataError, match="Unknown data set"):
        source("nothing")


# -- the command


def test_data_on_the_command_line(mirror, capsys):
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "jailbreakbench" in listed
    assert "refusal-arditi2024" in listed
    assert main(["data", "show", "xstest-safe"]) == 0
    assert "Unpinned" in capsys.readouterr().out
    assert main(["data", "show", "refusal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["at_most"] == 128
    assert main(["data", "check", "refusal", "--data-dir", str(mirror), "--json"]) == 1  # miniature rows
    captured = capsys.readouterr()
    assert json.loads(captured.out)["pools"]["test"]["positive"] == 20
    assert "the rows differ from the declared ones" in captured.err
    assert main(["data", "check", "nothing"]) == 2
    assert main(["data", "check", "refusal", "--data-dir", str(Path(mirror) / "none")]) == 2
