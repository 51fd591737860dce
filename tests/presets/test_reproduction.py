"""Published models: templates, token ids and positions, the comparison, and the guide's commands in miniature."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from labelled_runs import fill
from make_sets import make_sets
from make_tokenizer import make_tokenizer
from paths import DATA, GUIDE
from rhumbline.cli import main
from rhumbline.errors import ProtocolError, TemplateError
from rhumbline.models.chat import Chat
from rhumbline.presets.figure_comparison import RunFigures
from rhumbline.presets.published_models import Published, published_model, published_models
from rhumbline.presets.reproduction import compare
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.arms import ArmId
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.positions import Position
from rhumbline.records.results import Results
from rhumbline.records.shared import Survivor

SPECIALS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIALS += ["<start_of_turn>", "<end_of_turn>"]


# -- the table


def test_the_papers_thirteen_and_the_blogs_two():
    table = published_models()
    assert sum(m.preset == "arditi2024" for m in table.values()) == 13
    assert sum(m.preset == "blog2026" for m in table.values()) == 2
    for m in table.values():
        assert m.protocol().preset == m.preset
        for site in m.sites():
            assert m.positions is not None
            assert -m.positions <= int(site.position) < 0
            assert 0 <= site.layer < int(0.8 * m.layers)  # published selections pass the layer cut of the rule
        assert all(0 <= rate <= 1 for rate in m.rates.values())
        assert m.hardware().disk_gib > 0
    with pytest.raises(ProtocolError, match="llama-3-8b"):
        published_model("llama-3")


def test_golden_tables_agree_with_the_published_models():
    for name, file in (("gemma-2b", "gemma-2b-it"), ("yi-6b", "yi-6b-chat")):
        golden = json.loads((DATA / "golden" / f"{file}.json").read_text())
        m = published_model(name)
        chosen = golden["selected"]["position"], golden["selected"]["layer"]
        assert m.run_selected == chosen
        assert m.layers == golden["n_layers"]
        assert m.positions == len({c["position"] for c in golden["candidates"]})


RENDERED = {
    "llama-3-8b": "<|start_header_id|>user<|end_header_id|>\n\nGo<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama-2-7b": "[INST] Go [/INST] ",
    "gemma-2b": "<start_of_turn>user\nGo<end_of_turn>\n<start_of_turn>model\n",
    "qwen-1.8b": "<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n",
    "yi-6b": "<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.mark.parametrize("name", RENDERED)
def test_templates_are_those_of_the_papers_code(name):
    """pipeline/model_utils at 9d852fa; the beginning token, which the tokenizer adds there, is written out here."""
    tokenizer = make_tokenizer("{{ messages }}", SPECIALS)
    tokenizer.bos_token = "<s>"
    begins = name.startswith(("llama", "gemma"))
    template = published_model(name).template

    def rendered(messages: list[dict]) -> str:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)

    assert rendered([{"role": "user", "content": "Go"}]) == ("<s>" if begins else "") + RENDERED[name]


def test_positions_of_a_preset_are_counted_by_its_template():
    tokenizer = make_tokenizer("{{ messages }}", SPECIALS)
    chat = Chat.of(tokenizer, published_model("llama-3-8b").protocol().chat)
    assert chat.positions[-1] == Position(-1)
    with pytest.raises(TemplateError):
        Chat.of(tokenizer, published_model("gemma-2b").protocol(chat=_with_system("gemma-2b")).chat)


def _with_system(name: str):
    from rhumbline.prompts.chat_options import ChatOptions

    return ChatOptions(system="Be kind", template=published_model(name).template)


# -- a miniature of the whole


@pytest.fixture(scope="module")
def mirror(planted_folder, tmp_path_factory):
    rows = [json.loads(line) for line in (planted_folder / "contrast.jsonl").read_text().splitlines()]
    both = tuple(list(dict.fromkeys(r["prompt"] for r in rows if r["label"] == c)) for c in ("positive", "negative"))
    return make_sets(tmp_path_factory.mktemp("sets"), advbench=30, tdc=10, jbb=12, alpaca=60, prompts=both, splits=True)


MINIATURE = ["--sizes", "16,8,12", "--max-new-tokens", "12", "--device", "cpu", "--dtype", "float32"]


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (GUIDE / page).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def in_miniature(command: str, organism: Path, mirror: Path, runs: Path) -> list[str]:
    """The command of the guide, with a tiny model, miniature data and another directory for runs.

    The organism uses ChatML, so it replaces a published model with this template.
    """
    program, *words = shlex.split(command, comments=True)
    assert program == "rhumbline"
    words = ["yi-6b" if w == "llama-3-8b" else w for w in words]
    words = [str(runs / w.removeprefix("runs/")) if w.startswith("runs/") else w for w in words]
    files = {"FILE": "refusal", "RUN": str(runs / "run"), "phrases.toml": str(runs / "phrases.toml")}
    words = [files.get(w, w) for w in words]
    match words:
        case ["data", "check", *_]:
            words += ["--data-dir", str(mirror)]
        case ["reproduce", name, "--dry-run"] if not name.startswith("-"):
            words += ["--model", str(organism), "--data-dir", str(mirror)]
        case ["reproduce", name, *_] if not name.startswith("-"):
            words += ["--model", str(organism), "--data-dir", str(mirror), *MINIATURE]
        case ["run", _, *rest]:
            short = ["--preset", "blog2026", "--nulls", "1", "--seeds", "0"]
            words = ["run", str(organism), *rest, "--data-dir", str(mirror), *short, *MINIATURE]
        case ["judge", run, *_] if not run.startswith("-") and "--human" not in words:
            words += ["--model", str(organism), "--device", "cpu"]
    return words


def test_every_command_of_the_reproduction_guide_works_in_miniature(planted_folder, mirror, tmp_path, capsys):
    listed = commands("reproduce.md")
    assert len(listed) >= 12
    for command in listed:
        code = main(in_miniature(command, planted_folder, mirror, tmp_path))
        captured = capsys.readouterr()
        # The miniature rows and the tiny model are not the declared ones, so that the checks must fail.
        expected = 1 if "--dry-run" in command or "data check" in command else 0
        assert code == expected, f"{command}: {code}\n{captured.out}\n{captured.err}"
    rows = json.loads((tmp_path / "llama-3-8b" / "reproduction.json").read_text())["rows"]
    by = {r["what"]: r for r in rows}
    for figure in ("harmful baseline refusal", "harmful ablation refusal", "harmful ablation safety"):
        assert by[figure]["agrees"] is not None, figure  # the safety score too, since the run was judged
    assert by["cross-entropy: completions, ablation"]["low"] is not None
    assert "evaluate RUN --tasks mmlu" in by["benchmark: mmlu, ablation"]["needs"]
    assert all((row["found"] is None) == bool(row["needs"]) for row in rows)
    protocol = json.loads((tmp_path / "llama-3-8b" / "protocol.json").read_text())
    assert protocol["sampling"] == "reference"
    read = {s["source"]: s for s in protocol["contrast"]["pools"]["sources"]}
    assert read["jailbreakbench"]["rows"] == 12
    assert len(read["jailbreakbench"]["sha256"]) == 64


def test_every_command_of_the_data_guide_works_in_miniature(planted_folder, mirror, tmp_path, capsys):
    base = ["run", str(planted_folder), "--contrast", "refusal", "--data-dir", str(mirror), "--nulls", "1"]
    base += ["--seeds", "0", "--preset", "arditi2024", "--save-completions", "--out", str(tmp_path / "mine")]
    base += MINIATURE
    assert main(base) == 0
    (phrases,) = re.findall(r"```toml\n(# phrases\.toml.*?)```", (GUIDE / "data-and-judges.md").read_text(), re.DOTALL)
    (tmp_path / "phrases.toml").write_text(phrases, encoding="utf-8")
    for command in commands("data-and-judges.md"):
        if "--human" in command:
            fill(tmp_path / "mine-labels.csv", tmp_path / "mine-labels.csv")
        code = main(in_miniature(command, planted_folder, mirror, tmp_path))
        captured = capsys.readouterr()
        assert code == (1 if "data check" in command else 0), f"{command}\n{captured.err}"
    rows = [json.loads(line) for line in (tmp_path / "mine" / "seed-0" / "outcomes.jsonl").read_text().splitlines()]
    arms = {(r["arm"], r["set"]) for r in rows}
    expected = {
        place: sum(r["class"] == "refused" for r in rows if (r["arm"], r["set"]) == place) / 12 for place in arms
    }
    blocks = re.findall(r"```python\n(.*?)```", (GUIDE / "data-and-judges.md").read_text(), re.DOTALL)
    for block, tool in zip(blocks, ("rhumbline", "pandas", "polars", "duckdb"), strict=True):
        pytest.importorskip(tool)
        scope: dict = {}
        code = block.replace("runs/mine", str(tmp_path / "mine")).replace('"sets"', repr(str(mirror)))
        exec(compile(code, tool, "exec"), scope)
        match tool:
            case "rhumbline":
                assert scope["contrast"].name == "refusal"
                assert len(scope["over_refusal"]) == 6
            case "pandas":
                assert scope["rates"].to_dict() == pytest.approx(expected)
            case "polars":
                assert {(a, s): v for a, s, v in scope["rates"].rows()} == pytest.approx(expected)
            case "duckdb":
                assert {(a, s): v for a, s, v in scope["rates"]} == pytest.approx(expected)


def test_a_figure_that_differs_does_not_agree(texts_run):
    results = RunDirectory.read(texts_run).read_record(Results)
    measured = {ArmId.parse("baseline"): 0.84, ArmId.parse("ablation"): 0.03, ArmId.parse("subtraction"): 0.25}
    arms = tuple(
        structs.replace(row, rate=measured[row.arm], n=100)
        for row in results.seeds[0].arms
        if row.arm in measured and row.side == "positive"
    )

    def cell(position: int, layer: int) -> Survivor:
        return Survivor(Position(position), layer, norm=1.0, bypass=0.0)

    def agreement(
        selected: Survivor | None, tied: tuple[Survivor, ...] = (), arms: tuple[ArmRate, ...] = arms
    ) -> dict[str, bool | None]:
        seed = replace(results.seeds[0], arms=arms, selected=selected, tied=tied)
        rows = compare(published_model("llama-3-8b"), RunFigures(replace(results, seeds=(seed,))))
        return {row.what: row.agrees for row in rows}

    far = agreement(cell(-5, 15))
    assert far["selected (position, layer)"] is False  # three layers away
    assert far["harmful baseline refusal"] is False  # 0.84, published 0.95
    assert far["harmful ablation refusal"] is True  # 0.03, published 0
    assert far["harmful subtraction refusal"] is False  # 0.25, published 0.01
    # 20 prompts do not show that 0.84 differs from 0.95; at n = 100 a difference of 0.11 is outside the interval.
    few = tuple(structs.replace(row, n=20) for row in arms)
    assert agreement(cell(-5, 15), arms=few)["harmful baseline refusal"] is True
    # The tolerance of 0.10 for every n accepted 0.06 of 100 beside 0.00 of 100.
    six = tuple(structs.replace(row, rate=0.06) for row in arms)
    assert agreement(cell(-5, 15), arms=six)["harmful ablation refusal"] is False
    assert far["harmless addition refusal"] is None  # not measured
    assert far["harmful ablation safety"] is None
    assert agreement(cell(-5, 14))["selected (position, layer)"] is True
    assert agreement(cell(-4, 12))["selected (position, layer)"] is False
    assert agreement(cell(-5, 15), (cell(-5, 12),))["selected (position, layer)"] is True
    assert agreement(None)["selected (position, layer)"] is False


def test_the_control_of_the_blog_is_the_ablation_on_positives(texts_run):
    results = RunDirectory.read(texts_run).read_record(Results)
    (row,) = (r for r in results.seeds[0].arms if (str(r.arm), r.side) == ("ablation", "positive"))
    rates = {"null:isotropic:0:ablation": 1.0, "null:isotropic:0:addition": 0.1}
    nulls = tuple(structs.replace(row, arm=ArmId.parse(arm), rate=rate, n=32) for arm, rate in rates.items())
    seed = replace(results.seeds[0], arms=nulls)
    rows = compare(published_model("qwen2.5-1.5b"), RunFigures(replace(results, seeds=(seed,))))
    assert next(r.measured for r in rows if r.what == "harmful control refusal") == 1.0


def test_the_subtraction_of_the_papers_five_runs():
    rates = {m.name: m.rates for m in published_models().values() if "harmful_subtraction_refusal" in m.rates}
    recorded = {"qwen-1.8b": 0.03, "yi-6b": 0.02, "gemma-2b": 0.02, "llama-2-7b": 0.03, "llama-3-8b": 0.01}
    assert {name: some["harmful_subtraction_refusal"] for name, some in rates.items()} == recorded
    assert all(some["harmful_subtraction_safety"] < some["harmful_baseline_safety"] for some in rates.values())


def test_sizes_of_a_model_that_was_run_on_fewer_prompts():
    blog = published_model("qwen2.5-1.5b")
    assert isinstance(blog, Published)
    assert blog.protocol().sizes == Sizes(test=32)


def test_remote_code_requires_its_option(capsys, tmp_path):
    assert main(["reproduce", "qwen-1.8b", "--out", str(tmp_path)]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert main(["reproduce", "--list", "--json"]) == 0
    assert "llama-3-70b" in json.loads(capsys.readouterr().out)
