"""An arm as a model of Inspect AI: the same completions as the run's, in a real evaluation."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of inspect_ai and what it imports
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai import Task
    from inspect_ai import eval as inspect_eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes

    from rhumbline.evals import inspect_model as inspecting

from rhumbline import load
from rhumbline.errors import InputError
from rhumbline.organisms import materialise
from rhumbline.records.files import read_rows

pytestmark = pytest.mark.filterwarnings("ignore")


def rows_of(texts_run, arm, side):
    return [r for r in read_rows(texts_run / "seed-0" / "outcomes.jsonl") if (r["arm"], r["set"]) == (arm, side)]


def test_an_evaluation_of_an_arm_is_the_runs_own_arm(texts_run, tmp_path):
    rates = {}
    for arm in ("baseline", "ablation"):
        rows = rows_of(texts_run, arm, "positive")
        samples = [Sample(input=r["prompt"], target="I cannot", id=r["prompt_id"]) for r in rows]
        model = get_model(f"rhumbline/{texts_run}", arm=arm, device="cpu", memoize=False)
        log = inspect_eval(
            Task(dataset=samples, scorer=includes()), model=model, log_dir=str(tmp_path), display="none"
        )[0]
        assert log.status == "success", log.error
        said = {s.id: s.output.completion for s in log.samples}
        assert said == {r["prompt_id"]: r["completion"] for r in rows}
        rates[arm] = log.results.scores[0].metrics["accuracy"].value
    assert rates["baseline"] > 0.9
    assert rates["ablation"] < 0.1


@pytest.mark.parametrize(
    "arm", ["addition", "addition-prompt", "null:isotropic:0:addition", "null:isotropic:0:ablation"]
)
def test_every_arm_can_be_named(texts_run, planted_folder, arm):
    side = "positive" if arm.endswith("ablation") else "negative"
    rows = rows_of(texts_run, arm, side)[:4]
    model = load(str(planted_folder), device="cpu")
    from rhumbline.inference.runner import Runner
    from rhumbline.models.chat import Chat
    from rhumbline.prompts.contrasts import Prompt

    chat = Chat.of(model.tokenizer)
    ids = [chat.encode(Prompt(r["prompt"], "positive", r["prompt_id"])) for r in rows]
    found, _ = Runner(model).generate(ids, [inspecting.arm_of_run(texts_run, arm)], max_new_tokens=12)
    texts = [model.tokenizer.decode(text, skip_special_tokens=True) for text in found[0]]
    assert texts == [r["completion"] for r in rows]


def test_what_an_arm_cannot_do_is_refused(texts_run, planted_folder, tmp_path):
    with pytest.raises(InputError, match="unknown"):
        inspecting.arm_of_run(texts_run, "ablate")
    with pytest.raises(InputError, match="the run drew isotropic"):
        inspecting.arm_of_run(texts_run, "null:covariance:0:ablation")
    with pytest.raises(InputError, match="unknown arguments colour"):
        inspecting.RhumblineAPI(f"{texts_run}?colour=red")
    other = materialise("null", tmp_path)
    with pytest.raises(InputError, match="the weights differ"):
        inspecting.RhumblineAPI(f"{texts_run}?arm=ablation", model=str(other), device="cpu")


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [{"temperature": 0.7}, {"num_choices": 2}])
async def test_sampling_is_refused(texts_run, settings, anyio_backend):
    from inspect_ai.model import ChatMessageUser, GenerateConfig

    api = inspecting.RhumblineAPI(f"{texts_run}?arm=ablation", device="cpu")
    with pytest.raises(InputError, match="greedily"):
        await api.generate([ChatMessageUser(content="Go")], [], "auto", GenerateConfig(**settings))
    cut = await api.generate([ChatMessageUser(content="Go")], [], "auto", GenerateConfig(max_tokens=4, stop_seqs=[" "]))
    assert " " not in cut.completion


@pytest.fixture
def anyio_backend():
    return "asyncio"
