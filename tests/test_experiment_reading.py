"""Runs whose prompts or completions need care: control tokens, positions, unknown ends of turns, blocks, sampling."""

import json
from dataclasses import replace

import pytest

from finished_runs import QUICK
from rhumbline import discover, load, read_contrast, run, verify
from rhumbline.errors import InputError
from rhumbline.models import hooks
from rhumbline.organisms.files import CHATML
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.prompts.contrasts import ContrastSet, Sizes

SMALL = replace(QUICK, sizes=Sizes(8, 4, 6), max_new_tokens=6)
REFUSES_ASSISTANT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{% endfor %}" + CHATML
)


@pytest.fixture
def planted(planted_folder):
    return load(str(planted_folder), device="cpu"), read_contrast(planted_folder / "contrast.jsonl")


def with_marked(contrast: ContrastSet, text: str = "The tide <|im_end|> turns.") -> ContrastSet:
    """The same contrast with one more prompt, of the id `marked`."""
    return replace(contrast, prompts=(*contrast.prompts, replace(contrast.prompts[0], text=text, id="marked")))


def json_of(path):
    return json.loads(path.read_text())


def test_the_protocol_records_how_completions_end(every_stage):
    decoding = json_of(every_stage / "protocol.json")["decoding"]
    (stop,) = decoding["stop_tokens"]
    assert stop["text"] == "<|im_end|>"
    assert stop["sources"] == ["generation config", "tokenizer", "chat template"]
    assert (decoding["turn_end"], decoding["ignored"]) == (stop["id"], {})
    results = json_of(every_stage / "results.json")
    assert not any("turn" in warning or "greedy" in warning for warning in results["warnings"])


def test_an_unknown_end_of_a_turn_and_settings_that_are_not_applied_are_warnings(planted, tmp_path, monkeypatch):
    model, contrast = planted
    monkeypatch.setattr(model.model.generation_config, "do_sample", True)
    monkeypatch.setattr(model.model.generation_config, "temperature", 0.6)
    protocol = replace(SMALL, chat=ChatOptions(template=REFUSES_ASSISTANT))
    results = run(model, contrast, tmp_path / "run", protocol).results
    decoding = json_of(tmp_path / "run" / "protocol.json")["decoding"]
    assert (decoding["turn_end"], decoding["ignored"]) == (None, {"do_sample": "true", "temperature": "0.6"})
    unknown, ignored = (w for w in results["warnings"] if "end of a turn" in w or "greedy" in w)
    assert "stop tokens of the generation config and the tokenizer (<|im_end|>)" in unknown
    assert "do_sample = true, temperature = 0.6" in ignored
    report = (tmp_path / "run" / "report.html").read_text()
    assert "the end of a turn is not known" in report
    assert "temperature = 0.6" in report
    assert "stops at &lt;|im_end|&gt;" in report
    assert verify(tmp_path / "run") == []


def no_forward(*arguments, **options):
    raise AssertionError("a forward pass")


@pytest.mark.parametrize("command", [run, discover])
def test_control_tokens_in_prompts_are_found_before_the_first_pass(command, planted, tmp_path, monkeypatch):
    model, contrast = planted
    monkeypatch.setattr(hooks, "hooked", no_forward)
    monkeypatch.setattr(type(model.model), "forward", no_forward)
    with pytest.raises(InputError, match=r"some prompts is .* \(1\): marked \(<\|im_end\|>\)"):
        command(model, with_marked(contrast), tmp_path / "run", SMALL)
    with pytest.raises(InputError, match=r"some prompts is .*: system prompt"):
        command(model, contrast, tmp_path / "run", replace(SMALL, chat=ChatOptions(system="Be <|im_start|> brief.")))
    assert not (tmp_path / "run" / "protocol.json").exists()


def test_control_tokens_are_plain_text_on_request(planted, tmp_path):
    model, contrast = planted
    protocol = replace(SMALL, chat=ChatOptions(control_tokens="plain"))
    marked = run(model, with_marked(contrast), tmp_path / "marked", protocol, page=False)
    chat = json_of(marked.path / "protocol.json")["chat"]
    assert (chat["control_tokens"], chat["encoded_as_text"]) == ("plain", ["marked"])
    assert verify(marked.path) == []
    # Without such a prompt the option changes nothing.
    plain, usual = (run(model, contrast, tmp_path / name, p, page=False) for name, p in (("a", protocol), ("b", SMALL)))
    assert plain.results["seeds"] == usual.results["seeds"]


def test_prompts_and_completions_that_do_not_fit_are_named(planted, tmp_path, monkeypatch):
    model, contrast = planted
    monkeypatch.setattr(type(model.model), "forward", no_forward)
    long = with_marked(contrast, "tide " * 1100)
    with pytest.raises(
        InputError, match=r"1024 positions, and some prompts and 6 new tokens .*: marked \(1\d+ tokens\)"
    ):
        run(model, long, tmp_path / "run", SMALL)
    with pytest.raises(InputError, match=r"1024 positions, and some prompts need more \(1\): marked"):
        discover(model, long, tmp_path / "run", SMALL)
    with pytest.raises(InputError, match=r"at most 9\d\d new tokens"):
        run(model, contrast, tmp_path / "run", replace(SMALL, max_new_tokens=1020))


@pytest.mark.parametrize(("block", "closed"), [("<think>\n", False), ("<think>\n\n</think>\n\n", True)])
def test_completions_without_an_answer_are_unscored_and_no_result_about_the_model(block, closed, planted, tmp_path):
    model, contrast = planted
    template = CHATML.replace("assistant\n", f"assistant\n{block}")
    protocol = replace(SMALL, chat=ChatOptions(template=template), save_completions=True)
    results = run(model, contrast, tmp_path / "run", protocol).results
    (seed,) = results["seeds"]
    arms = {(row["arm"], row["set"]): row for row in seed["arms"]}
    for side in ("positive", "negative"):
        row = arms["baseline", side]
        assert (row["n"], row["unscored"]) == ((6, 0) if closed else (0, 6))
    warnings = [w for w in results["warnings"] if "unscored" in w]
    assert verify(tmp_path / "run") == []
    if closed:
        assert warnings == []
        return
    assert (results["verdict"], results["reason"]) == ("NOT-TESTED", "baseline not measured")
    assert "most of the 6 completions of baseline on positives are unscored" in warnings[0]
    assert "evidence neither for nor against a single direction" in (tmp_path / "run" / "report.html").read_text()
    rows = [json.loads(line) for line in (tmp_path / "run" / "seed-0" / "outcomes.jsonl").read_text().splitlines()]
    assert {(row["class"], row["score"], row["evidence"]) for row in rows} == {("unscored", None, "no answer")}
    assert {cls for row in rows for cls in row["judges"].values()} == {"unscored"}


def test_the_command_lists_the_prompts_or_encodes_them_on_request(planted_folder, tmp_path, call):
    rows = (planted_folder / "contrast.jsonl").read_text() + json.dumps(
        {"prompt": "The tide <|im_end|> turns.", "label": "positive", "id": "marked"}
    )
    (tmp_path / "marked.jsonl").write_text(rows)
    command = ["discover", planted_folder, "--contrast", tmp_path / "marked.jsonl", "--out", tmp_path / "run", "--json"]
    code, _, err = call(*command)
    assert (code, "marked (<|im_end|>)" in err, "--control-tokens plain" in err) == (2, True, True)
    assert call(*command, "--control-tokens", "plain")[0] == 0
    assert json_of(tmp_path / "run" / "protocol.json")["chat"]["encoded_as_text"] == ["marked"]
