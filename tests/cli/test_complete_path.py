"""A researcher's first day, offline and in miniature: the commands of the guide, one after another.

A user's folder holds a model, a contrast, texts, system prompts and task files; every command of
docs/guide/side-effects.md runs in it as it is printed there. Data sets in the hub's layout and further judges join
here: `workplace` writes the files, and `NAMES` says what a word of a command stands for.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

import paths
from rhumbline.cli import main
from rhumbline.organisms import organism_dir
from rhumbline.organisms.measured_texts import loss_texts
from rhumbline.records.files import read_json
from tiny_tasks import write_tasks

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

GUIDE = paths.GUIDE / "side-effects.md"
SMALL = [
    *("--seeds", "0", "--sizes", "64,20,16", "--nulls", "1", "--wide-nulls", "19", "--max-new-tokens", "24"),
    *("--device", "cpu", "--dtype", "float32"),
]
NAMES = {
    "mmlu,arc_challenge,gsm8k,truthfulqa_mc2,winogrande,tinyHellaswag": "answers,help",
    "my_task": "answers",
    "200": "4",
}
"""What stands in a command for what cannot be had offline."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> dict[str, str]:
    """The files that the commands name."""
    folder = tmp_path_factory.mktemp("researcher")
    texts = loss_texts("refusal")
    rows = [{"text": t} for t in texts.documents] + [
        {"prompt": e.prompt, "response": e.response} for e in texts.exchanges
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "clerk.txt").write_text("You are a careful clerk.\n")
    contrast = (organism_dir("refusal") / "contrast.jsonl").read_text().splitlines()
    pool = [json.loads(line) for line in contrast]
    (folder / "contrast.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pool if "split" not in r))
    return {
        "MODEL": str(organism_dir("refusal")),
        "CONTRAST": str(folder / "contrast.jsonl"),
        "TEXTS": str(folder / "texts.jsonl"),
        "TASKS": str(write_tasks(folder / "tasks", 6)),
        "SYSTEM": str(folder / "clerk.txt"),
        "RUN": str(folder / "runs" / "first"),
        "RUN-systems": str(folder / "runs" / "systems"),
    }


def commands() -> list[str]:
    """Every `rhumbline` command of the guide, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("rhumbline ")]


def as_here(command: str, workplace: dict[str, str]) -> list[str]:
    """The command with this workplace's files in the place of the words in capitals."""
    known = {**workplace, **NAMES}
    words = [known.get(w, w) for w in shlex.split(command)[1:]]
    words = [w.replace("none,SYSTEM", f"none,{workplace['SYSTEM']}") for w in words]
    if words[0] == "evaluate" and "--include-path" not in words:
        words += ["--include-path", workplace["TASKS"]]
    return words + (SMALL if words[0] == "run" else [])


def test_every_command_of_the_guide_runs(workplace, capsys):
    ran = commands()
    assert len(ran) >= 8
    for command in ran:
        assert main(as_here(command, workplace)) == 0, command
    capsys.readouterr()

    path = Path(workplace["RUN"])
    results = read_json(path / "results.json")
    seed = results["seeds"][0]
    losses = {(r["text"], r["arm"]): r for r in seed["side_effects"]["losses"]}
    assert {text for text, _ in losses} == {"text", "responses", "completions"}
    assert all(r["tokens"] > 100 for r in losses.values())
    assert losses["completions", "ablation"]["change"] < losses["completions", "addition"]["change"]
    assert {r["arm"] for r in seed["side_effects"]["kl"]} >= {"ablation", "addition", "null:covariance:0:ablation"}
    assert seed["categories"]

    found = [read_json(p) for p in sorted(path.glob("evaluations/*/comparison.json"))]
    rows = {(r["task"], r["arm"], r["n"]): r for f in found for r in f["rows"]}
    assert {task for task, _, _ in rows} == {"answers", "help"}
    assert ("answers", "null:covariance:0:ablation", 6) in rows

    systems = read_json(Path(workplace["RUN-systems"]) / "results.json")["seeds"][0]["conditions"]
    assert {r["condition"] for r in systems} == {"none", "clerk"}

    page = (path / "report.html").read_text()
    for title in ("Side effects", "Benchmarks", "Which prompts"):
        assert f"<h2>{title}</h2>" in page
    assert "<h2>System prompts</h2>" in (Path(workplace["RUN-systems"]) / "report.html").read_text()
