"""Benchmarks on the arms of a run: two tiny tasks in the world of the organism, resumed, compared and verified."""

import builtins
import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from msgspec import UNSET

from families import random_model
from finished_runs import COMPLETIONS
from make_tokenizer import CHATML_MARKS, make_tokenizer
from rhumbline import load, verify
from rhumbline.cli import main
from rhumbline.errors import InputError, ModelError
from rhumbline.evals.evaluate import evaluate
from rhumbline.evals.evaluation import Evaluation, planned, task_manager
from rhumbline.evals.task_chats import TaskChat
from rhumbline.inference.interventions import BASELINE, Arm
from rhumbline.models.chat import Chat
from rhumbline.models.templates import messages_of
from rhumbline.organisms import materialise, organism_dir
from rhumbline.organisms.files import CHATML
from rhumbline.prompts.chat_options import ChatOptions
from rhumbline.records.arms import ABLATION
from rhumbline.records.codec import to_json
from rhumbline.records.files import read_json, sha256
from rhumbline.report import build as report
from rhumbline.stages.finished_run import open_run
from tiny_tasks import write_tasks

pytest.importorskip("lm_eval")
# The notes of the harness on models in memory, and warnings of its dependencies at import.
pytestmark = pytest.mark.filterwarnings("ignore")

N = 12


@pytest.fixture(scope="module")
def refusal():
    return load(str(organism_dir("refusal")), device="cpu", dtype="float32")


@pytest.fixture
def refusal_run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished("refusal", COMPLETIONS), tmp_path / "run"))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"), N)


ARMS = ("ablation", "addition", "null:isotropic:0:ablation")


def test_ablation_changes_the_behavioural_task_and_not_the_other(refusal_run, refusal, tasks):
    comparison = evaluate(refusal_run, refusal, Evaluation(("answers", "help"), tasks, chat=True), ARMS)
    rows = {(r.task, str(r.arm)): r for r in comparison.rows}
    assert {arm for _, arm in rows} == {"baseline", *ARMS}
    assert all(r.n == N for r in rows.values())
    assert rows["help", "baseline"].score == 0.0
    assert rows["help", "ablation"].change >= 0.6
    assert rows["help", "ablation"].low > 0.2
    assert rows["help", "ablation"].p < 0.02
    assert rows["help", "null:isotropic:0:ablation"].change == 0.0
    assert rows["answers", "baseline"].score == 1.0
    assert rows["answers", "ablation"].change == 0.0
    assert verify(refusal_run) == []
    for path in (refusal_run / "evaluations").rglob("*"):
        if path.is_file():
            assert path.suffix == ".json"  # the caches of responses are removed
            text = path.read_text()
            assert "Could" not in text  # neither documents nor completions are kept
            assert str(tasks) not in text
    (comparison_file,) = (refusal_run / "evaluations").rglob("comparison.json")
    record = read_json(comparison_file)
    record["rows"][1]["score"] = 0.123
    comparison_file.write_text(json.dumps(record))
    assert any("comparison.json" in fault and "0.123" in fault for fault in verify(refusal_run))


def test_the_baseline_gives_the_numbers_of_the_harness(refusal_run, refusal, tasks):
    """Every score of every document is equal to that of the plain HFLM."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(pretrained=refusal.model, tokenizer=refusal.tokenizer, backend="causal", batch_size=16, device="cpu")
    evaluate(refusal_run, refusal, Evaluation(("answers", "help"), tasks), [])
    for task in ("answers", "help"):
        theirs = simple_evaluate(
            model=plain,
            tasks=[task],
            task_manager=task_manager(Evaluation((task,), tasks)),
            bootstrap_iters=0,
            log_samples=True,
        )
        (path,) = (refusal_run / "evaluations").rglob(f"{task}/baseline.json")
        ours = read_json(path)
        metric = "acc" if task == "answers" else "exact_match"
        assert [s["scores"][metric] for s in ours["samples"][task]] == [s[metric] for s in theirs["samples"][task]]
        assert ours["results"][task][f"{metric},none"] == theirs["results"][task][f"{metric},none"]


def test_only_an_arm_with_interventions_changes_responses(refusal_run, refusal, tasks, tmp_path):
    from lm_eval.models.huggingface import HFLM

    from rhumbline.evals.lm_eval_harness import ArmModel, ResponseCache

    class Request:
        def __init__(self, *args):
            self.args = args
            self.arguments = args

    requests = [
        Request("Hello. Describe goblin salt.", " I can't help."),
        Request("What is one plus two?", " The sum."),
    ]
    plain = HFLM(pretrained=refusal.model, tokenizer=refusal.tokenizer, backend="causal", batch_size=2, device="cpu")
    ablation = open_run(refusal_run).arms().arm(ABLATION)
    under = {
        name: ArmModel(refusal, arm, ResponseCache(tmp_path / name.replace(":", "-")), batch_size=2).loglikelihood(
            requests, disable_tqdm=True
        )
        for name, arm in (("baseline", BASELINE), ("nothing", Arm("nothing")), ("ablation", ablation))
    }
    assert under["baseline"] == under["nothing"] == plain.loglikelihood(requests, disable_tqdm=True)
    assert under["ablation"] != under["baseline"]


def test_prompts_are_chats_of_the_run(finished, refusal, tasks, tmp_path, monkeypatch):
    """With its system prompt before the description of a task; examples are turns, gen_prefix begins a completion."""
    from rhumbline.evals import lm_eval_harness as harness

    protocol = replace(COMPLETIONS, chat=ChatOptions(system="Be brief."))
    run = Path(shutil.copytree(finished("refusal", protocol), tmp_path / "run"))
    folder = Path(shutil.copytree(tasks, tmp_path / "tasks"))
    with open(folder / "help.yaml", "a") as file:
        file.write("description: Answer.\ngen_prefix: 'Well:'\nfewshot_split: test\n")
    prompts, real = [], harness.ResponseCache.add_partial

    def seen(self, kind, request, response):
        prompts.append(request[0])
        real(self, kind, request, response)

    monkeypatch.setattr(harness.ResponseCache, "add_partial", seen)
    evaluate(run, refusal, Evaluation(("help",), folder, limit=1, fewshot=1, chat=True), [])
    rows = {row["q"]: row["a"] for row in map(json.loads, (folder / "help.jsonl").read_text().splitlines())}
    question, *others = rows
    (example,) = (q for q in others if f"user\n{q}<" in prompts[0])
    chat = open_run(run).chat(refusal)
    expected = messages_of("Be brief.\n\nAnswer.", example, f"Well: {rows[example]}", question)
    assert chat.controls.ids_of(prompts[0]) == chat.encode_messages(expected, "n", "Well:")


def test_the_tokenizer_adds_no_token_before_a_chat(refusal, tmp_path):
    """The run encodes chats without it; text without a chat has it, as in the harness."""
    from rhumbline.evals.lm_eval_harness import ArmModel, ResponseCache

    tokenizer = make_tokenizer(CHATML, CHATML_MARKS, adds_bos=True)  # the template has no BOS
    model = replace(refusal, tokenizer=tokenizer)
    chat = Chat.of(tokenizer)
    harness_model = ArmModel(model, BASELINE, ResponseCache(tmp_path / "answers"), chat=TaskChat(chat))
    text = harness_model.apply_chat_template([{"role": "user", "content": "What is salt?"}])
    expected = chat.encode("What is salt?")
    assert harness_model.tok_encode(text) == harness_model.tok_batch_encode([text])[0][0].tolist() == expected
    plain = ArmModel(model, BASELINE, ResponseCache(tmp_path / "plain"))
    assert plain.tok_encode("salt")[0] == tokenizer.bos_token_id


def test_chats_of_an_earlier_version_are_another_evaluation(refusal_run, refusal, tasks):
    """They have the template of the tokenizer with its defaults. They are kept and named, and stay verifiable."""
    evaluation, notes = Evaluation(("answers",), tasks, limit=4, chat=True), []
    evaluate(refusal_run, refusal, evaluation, [], progress=notes.append)
    assert notes == ["answers, baseline"]
    (new,) = (refusal_run / "evaluations").iterdir()
    old = new.with_name(sha256(to_json(replace(evaluation.record(0), chat_of=UNSET)))[:10])
    shutil.move(new, old)
    for path in (old / "settings.json", old / "comparison.json"):
        record = read_json(path)
        del record.get("settings", record)["chat_of"]
        path.write_text(json.dumps(record))
    before = {path: path.read_bytes() for path in old.rglob("*.json")}
    notes.clear()
    evaluate(refusal_run, refusal, evaluation, [], progress=notes.append)
    assert f"{old.name} was written by an earlier version" in notes[0]
    assert new.name in notes[0]
    assert notes[1:] == ["answers, baseline"]  # not taken from the old evaluation
    assert {path: path.read_bytes() for path in old.rglob("*.json")} == before
    assert verify(refusal_run) == []
    page = report.build(refusal_run).read_text()
    assert "with the chat of the run" in page
    assert "with the template of the tokenizer" in page


def test_evaluations_without_chats_keep_their_key(tasks):
    assert b"chat_of" not in msgspec.json.encode(to_json(Evaluation(("answers",), tasks).record(0)))


def test_a_template_is_that_of_the_run_and_needs_chats(refusal_run, refusal, tasks, tmp_path, call):
    chats = Evaluation(("answers",), tasks, limit=2, chat=True)
    evaluate(refusal_run, refusal, replace(chats, template=refusal.tokenizer.chat_template), [])
    with pytest.raises(InputError, match="the chat template is not that of"):
        evaluate(refusal_run, refusal, replace(chats, template="{{- messages[0].content + 'x' }}"), [])
    file = tmp_path / "template.jinja"
    file.write_text(refusal.tokenizer.chat_template)
    code, _, messages = call("evaluate", refusal_run, "--tasks", "answers", "--chat-template", file)
    assert code == 2
    assert "read with --chat only" in " ".join(messages.split())


FIXED = "num_fewshot: 0\nfewshot_split: test\n"
ROLLING = "output_type: loglikelihood_rolling\nmetric_list: [{metric: word_perplexity}]\n"


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        (FIXED, {"fewshot": 2}, "--fewshot 2: the harness adds no examples to help, whose .* fixed to 0"),
        (ROLLING, {"fewshot": 2}, "--fewshot: help scores whole texts.* without --fewshot"),
        (ROLLING, {"chat": True}, "--chat: help scores whole texts.* without --chat"),
        (ROLLING, {"fewshot": 2, "chat": True}, "--fewshot and --chat: help scores"),
    ],
    ids=["examples of a fixed number", "examples of whole texts", "chats of whole texts", "both of whole texts"],
)
def test_an_option_that_the_harness_would_ignore_is_refused(
    line, options, message, refusal_run, refusal, tasks, tmp_path
):
    folder = Path(shutil.copytree(tasks, tmp_path / "tasks"))
    task = (folder / "help.yaml").read_text()
    if line == ROLLING:
        task = task.partition("metric_list")[0].replace("output_type: generate_until\n", "")
    (folder / "help.yaml").write_text(task + line)
    evaluation = Evaluation(("answers", "help"), folder, limit=2, **options)
    for refused in (lambda: evaluate(refusal_run, refusal, evaluation, []), lambda: planned(evaluation)):
        with pytest.raises(InputError, match=message):
            refused()
    assert not (refusal_run / "evaluations").exists()  # nor is the first task evaluated


@pytest.mark.parametrize("own", ["", "num_fewshot: 1\n"], ids=["no number", "another number"])
def test_examples_are_added_to_other_tasks(own, refusal_run, refusal, tasks, tmp_path):
    folder = Path(shutil.copytree(tasks, tmp_path / "tasks"))
    with open(folder / "help.yaml", "a") as file:
        file.write(f"{own}fewshot_split: test\n")
    evaluate(refusal_run, refusal, Evaluation(("help",), folder, limit=2, fewshot=2), [])
    (path,) = (refusal_run / "evaluations").rglob("help/baseline.json")
    assert read_json(path)["n-shot"] == {"help": 2}


def test_an_interrupted_evaluation_resumes_after_its_last_document(refusal_run, refusal, tasks, monkeypatch):
    """Stopped after three responses: they are kept and not computed again, and the result is the same."""
    from rhumbline.evals import lm_eval_harness as harness

    def run():
        return evaluate(refusal_run, refusal, Evaluation(("help",), tasks, chat=True), ["ablation"])

    whole = run()
    shutil.rmtree(refusal_run / "evaluations")
    real = harness.ResponseCache.add_partial

    def interrupted(self, kind, request, response):
        if len(self.responses) == 3:
            raise KeyboardInterrupt
        real(self, kind, request, response)

    monkeypatch.setattr(harness.ResponseCache, "add_partial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    (left,) = (refusal_run / "evaluations").rglob("*.answers")
    assert len(left.read_text().splitlines()) == 3
    with open(left, "a") as file:
        file.write('["torn')
    assert verify(refusal_run) == []
    stray = left.parents[1] / "stray.answers"
    stray.write_text("")
    assert [fault for fault in verify(refusal_run) if stray.name in fault and "was added" in fault]
    stray.unlink()
    computed = []

    def counted(self, kind, request, response):
        computed.append(request)
        real(self, kind, request, response)

    monkeypatch.setattr(harness.ResponseCache, "add_partial", counted)
    assert run() == whole
    # N requests of the ablation, among them the N - 3 of the baseline.
    assert len({json.dumps(request, default=str) for request in computed}) == N
    computed.clear()
    assert run() == whole
    assert computed == []


def test_other_settings_are_another_evaluation(refusal_run, refusal, tasks):
    comparisons = [evaluate(refusal_run, refusal, Evaluation(("answers",), tasks, limit=n), []) for n in (4, 5)]
    assert [row.n for comparison in comparisons for row in comparison.rows] == [4, 5]
    assert len(list((refusal_run / "evaluations").iterdir())) == 2


def test_bad_requests_are_refused(refusal_run, refusal, tasks, tmp_path):
    answers = Evaluation(("answers",), tasks)
    with pytest.raises(InputError, match=r"unknown arms baselines. Pass some of baseline, ablation"):
        evaluate(refusal_run, refusal, answers, ["baselines"])
    with pytest.raises(InputError, match=r"unknown tasks nonsense"):
        task_manager(Evaluation(("nonsense",)))
    with pytest.raises(InputError, match="not a directory"):
        task_manager(Evaluation(("answers",), tmp_path / "nowhere"))
    with pytest.raises(InputError, match="--limit is 0"):
        Evaluation(("answers",), tasks, limit=0)
    other = load(str(materialise("planted", tmp_path)), device="cpu")
    with pytest.raises(ModelError, match="not the model"):
        evaluate(refusal_run, other, answers, [])


def test_tasks_of_the_harness_are_known_and_missing_data_is_reported(refusal_run, refusal):
    names = ["mmlu", "arc_challenge", "gsm8k", "truthfulqa_mc2", "winogrande", "tinyHellaswag"]
    manager = task_manager(Evaluation(tuple(names)))
    assert set(names) <= set(manager.all_tasks)
    with pytest.raises(InputError, match=r"data of task arc_challenge could not be loaded.*Offline"):
        evaluate(refusal_run, refusal, Evaluation(("arc_challenge",)), [])


def test_without_the_harness_the_extra_is_named(monkeypatch, refusal_run, capsys):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("lm_eval"):
            raise ImportError("No module named 'lm_eval'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["evaluate", str(refusal_run), "--tasks", "answers"]) == 2
    assert "rhumbline[eval]" in capsys.readouterr().err


def test_the_command_prints_a_table_and_the_report_has_it(refusal_run, tasks, capsys):
    command = ["evaluate", str(refusal_run), "--tasks", "answers", "--arms", "ablation", "--limit", "3", "--chat"]
    assert main([*command, "--include-path", str(tasks)]) == 0
    assert "answers" in capsys.readouterr().out
    page = (refusal_run / "report.html").read_text()
    assert "Benchmarks" in page
    assert "the first 3 documents, with the chat of the run" in page
    assert main([*command, "--include-path", str(tasks), "--json"]) == 0
    assert [r["n"] for r in json.loads(capsys.readouterr().out)["rows"]] == [3, 3]


def test_a_plan_is_printed_as_text_or_json(refusal_run, tasks, capsys):
    command = [
        "evaluate",
        str(refusal_run),
        "--tasks",
        "answers",
        "--limit",
        "3",
        "--include-path",
        str(tasks),
        "--plan",
    ]
    assert main(command) == 0
    assert "answers: 3 documents, 6 requests x 3 arms" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["arms"] == 3
    assert [(t["task"], t["documents"], t["requests"]) for t in plan["tasks"]] == [("answers", 3, 6)]
    for refused in (["--edited", "./gone"], ["--device", "cuda:999"], ["--dtype", "int8"]):
        assert main([*command, *refused]) == 2  # as without --plan


def test_an_edited_checkpoint_is_an_arm(refusal_run, refusal, tasks):
    """The same weights as a further arm change nothing."""
    comparison = evaluate(refusal_run, refusal, Evaluation(("answers",), tasks, limit=4), [], edited=refusal)
    assert [(str(r.arm), r.change) for r in comparison.rows] == [("baseline", None), ("edited", 0.0)]


def test_another_edited_checkpoint_has_its_own_scores(refusal_run, refusal, tasks, tmp_path, monkeypatch):
    """Results and responses of the first checkpoint are not reported as those of the second; the baseline is kept."""
    from rhumbline.evals import evaluate as evaluating

    other = load(str(materialise("planted", tmp_path)), device="cpu")

    def rows(edited, *names):
        comparison = evaluate(refusal_run, refusal, Evaluation(names, tasks, limit=4), [], edited=edited)
        return {(r.task, str(r.arm)): r.score for r in comparison.rows}

    first = rows(refusal, "answers", "help")
    for path in (refusal_run / "evaluations").rglob("help/edited.json"):
        path.with_name("edited.answers").write_text("[]")  # of an earlier version, or of the first checkpoint
    evaluated, real = [], evaluating._run_task

    def counted(manager, evaluation, task, model, arm, cache, chat):
        evaluated.append((task, model, cache.path.name))
        return real(manager, evaluation, task, model, arm, cache, chat)

    monkeypatch.setattr(evaluating, "_run_task", counted)
    second = rows(other, "answers")
    assert [(task, model) for task, model, _ in evaluated] == [("answers", other)]
    assert second["answers", "edited"] < first["answers", "edited"] == 1.0
    assert second.keys() == first.keys() - {("help", "edited")}
    assert not list((refusal_run / "evaluations").rglob("*.answers"))
    assert rows(other, "answers") == second
    assert len(evaluated) == 1
    assert rows(refusal, "answers")["answers", "edited"] == 1.0
    assert len({name for _, _, name in evaluated}) == 2  # an interrupted evaluation resumes with its own responses


def test_changed_data_of_a_task_is_another_evaluation(tmp_path):
    """Byte code and hidden folders change without the tasks."""
    folder = write_tasks(tmp_path / "tasks", N)

    def hashes():
        return Evaluation(("answers",), folder).record(0).tasks

    before = hashes()
    assert set(before) == {"answers.jsonl", "answers.yaml", "help.jsonl", "help.yaml"}
    for name in ("__pycache__", ".git"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("")
    assert hashes() == before
    (folder / "answers.jsonl").write_text("{}")
    assert {name for name, value in hashes().items() if value != before[name]} == {"answers.jsonl"}


@pytest.mark.parametrize("keeps_texts", [False, True])
def test_generated_texts_are_on_disk_only_where_the_run_keeps_texts(keeps_texts, tmp_path):
    from rhumbline.evals.lm_eval_harness import ResponseCache

    cache = ResponseCache(tmp_path / "baseline.answers", keeps_texts=keeps_texts)
    cache.add_partial("generate_until", ("question", {"until": []}), "a generated text")
    cache.add_partial("loglikelihood", ("question", " answer"), (-1.5, True))
    written = (tmp_path / "baseline.answers").read_text()
    assert ("a generated text" in written) == keeps_texts
    again = ResponseCache(tmp_path / "baseline.answers", keeps_texts=keeps_texts)
    assert len(again.responses) == 1 + keeps_texts  # an interrupted evaluation computes the others again


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, {"target_modules": ["lm_head"]}],
    ids=["trained embedding", "adapter on the head"],
)
def test_an_adapter_on_a_tied_model_is_not_changed(options, tmp_path):
    """The constructor of the harness ties the weights of its model, which replaces those of such an adapter."""
    peft = pytest.importorskip("peft")
    from rhumbline.evals.lm_eval_harness import ArmModel, ResponseCache

    base = load(str(materialise("planted", tmp_path)), device="cpu")
    model = random_model("llama", tie_word_embeddings=True, vocab_size=len(base.tokenizer))
    config = peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = adapted(input_ids=ids).logits
        ArmModel(replace(base, model=adapted), BASELINE, ResponseCache(tmp_path / "answers"))
        after = adapted(input_ids=ids).logits
    assert torch.equal(before, after)
    assert "tie_weights" not in vars(adapted)


def test_a_metric_of_the_whole_corpus_leaves_no_texts(refusal_run, refusal, tasks, tmp_path):
    """The score of a document in such a metric is its reference and its completion."""
    folder = Path(shutil.copytree(tasks, tmp_path / "tasks"))
    task = (folder / "help.yaml").read_text()
    (folder / "help.yaml").write_text(task.partition("metric_list")[0] + "metric_list: [{metric: bleu}]\n")
    evaluate(refusal_run, refusal, Evaluation(("help",), folder, limit=2), [])
    (path,) = (refusal_run / "evaluations").rglob("help/baseline.json")
    stored = read_json(path)
    assert [document["scores"] for document in stored["samples"]["help"]] == [{"bleu": None}] * 2
    assert isinstance(stored["results"]["help"]["bleu,none"], float)
    assert verify(refusal_run) == []


@pytest.mark.parametrize(
    ("score", "stored"),
    [
        (["reference", "completion"], None),
        (("reference", 1), None),
        ({"text": "completion"}, None),
        ("completion", None),
        (np.str_("completion"), None),
        (1, 1),
        (True, True),
        (np.bool_(True), np.bool_(True)),
        (np.float32(0.5), np.float32(0.5)),
        ((-1.5, 3), (-1.5, 3)),
    ],
)
def test_scores_with_text_are_not_stored(score, stored):
    from rhumbline.evals.evaluate import _without_text

    assert _without_text(score) == stored


TASK_ERRORS = {
    "unsafe code": ("unsafe_code: true\n", "executes code"),
    "an error of the task": ("process_docs: !function broken.docs\n", "Dataset scripts are no longer supported"),
    "an invalid value": ("process_docs: !function broken.value\n", "could not be loaded: bad value. Tasks"),
    "an error without text": ("process_docs: !function broken.silent\n", "could not be loaded: RuntimeError. Tasks"),
    "a missing package": ("process_docs: !function broken.package\n", "needs a package.*no_such_package.*Install"),
}


@pytest.mark.parametrize("fault", TASK_ERRORS)
def test_a_task_that_cannot_be_loaded_is_named(fault, refusal_run, refusal, tasks, tmp_path):
    line, message = TASK_ERRORS[fault]
    folder = Path(shutil.copytree(tasks, tmp_path / "tasks"))
    (folder / "broken.py").write_text(
        "def docs(data):\n    raise RuntimeError('Dataset scripts are no longer supported')\n\n\n"
        "def value(data):\n    raise ValueError('bad value.')\n\n\n"
        "def silent(data):\n    raise RuntimeError\n\n\n"
        "def package(data):\n    import no_such_package\n"
    )
    with open(folder / "help.yaml", "a") as file:
        file.write(line)
    evaluation = Evaluation(("help",), folder, limit=2)
    for refused in (lambda: evaluate(refusal_run, refusal, evaluation, []), lambda: planned(evaluation)):
        with pytest.raises(InputError, match=f"task help .*{message}"):
            refused()


def test_a_later_start_reports_missing_data_too(refusal_run, refusal, tmp_path):
    """The baseline is finished, so the first pass would be that of another arm."""
    data, folder = write_tasks(tmp_path / "data", N), tmp_path / "tasks"
    folder.mkdir()
    shutil.copy(data / "answers.yaml", folder)
    evaluation = Evaluation(("answers",), folder, limit=2)
    evaluate(refusal_run, refusal, evaluation, [])
    (data / "answers.jsonl").unlink()
    with pytest.raises(InputError, match="data of task answers could not be loaded"):
        evaluate(refusal_run, refusal, evaluation, ["ablation"])
