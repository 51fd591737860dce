"""An arm as a model of Inspect AI has the completions of the run, in a real evaluation."""

import asyncio
import threading
import warnings
from typing import cast

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of inspect_ai and its dependencies
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai import Task
    from inspect_ai import eval as inspect_eval
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes

    from rhumbline.evals import inspect_model as inspecting

from rhumbline import load
from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE
from rhumbline.inference.runner import Runner
from rhumbline.models.chat import Chat
from rhumbline.organisms import materialise
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.arms import ArmId
from rhumbline.records.files import read_rows
from rhumbline.stages.finished_run import open_run

pytestmark = pytest.mark.filterwarnings("ignore")


def rows_of(texts_run, arm, side):
    return [r for r in read_rows(texts_run / "seed-0" / "outcomes.jsonl") if (r["arm"], r["set"]) == (arm, side)]


def test_an_evaluation_of_an_arm_has_the_completions_of_the_run(texts_run, tmp_path):
    rates = {}
    for arm in ("baseline", "ablation"):
        rows = rows_of(texts_run, arm, "positive")
        samples = [Sample(input=r["prompt"], target="I cannot", id=r["prompt_id"]) for r in rows]
        model = get_model(f"rhumbline/{texts_run}", arm=arm, device="cpu", memoize=False)
        log = inspect_eval(
            Task(dataset=samples, scorer=includes()), model=model, log_dir=str(tmp_path), display="none"
        )[0]
        assert log.status == "success", log.error
        completions = {s.id: s.output.completion for s in log.samples}
        assert completions == {r["prompt_id"]: r["completion"] for r in rows}
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
    chat = Chat.of(model.tokenizer)
    ids = [chat.encode(Prompt(r["prompt"], "positive", r["prompt_id"])) for r in rows]
    completions, _ = Runner(model).generate(ids, [open_run(texts_run).arms().arm(ArmId.parse(arm))], max_new_tokens=12)
    texts = [model.tokenizer.decode(text, skip_special_tokens=True) for text in completions[0]]
    assert texts == [r["completion"] for r in rows]


def test_unknown_arms_arguments_and_models_are_refused(texts_run, tmp_path):
    with pytest.raises(InputError, match="unknown"):
        inspecting.RhumblineAPI(f"{texts_run}?arm=ablate")
    with pytest.raises(InputError, match="was not drawn; the run drew isotropic"):
        inspecting.RhumblineAPI(f"{texts_run}?arm=null:covariance:0:ablation")
    with pytest.raises(InputError, match="seed is 'one'"):
        inspecting.RhumblineAPI(f"{texts_run}?seed=one")
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


class _SlowRunner:
    """A runner whose batches end when `go` is set."""

    def __init__(self):
        self.started, self.go, self.batches = threading.Event(), threading.Event(), []

    def generate(self, sequences, arms, **options):
        self.batches.append(sequences)
        self.started.set()
        assert self.go.wait(10)
        if [0] in sequences:
            raise InputError("no such token")
        return [sequences], None


@pytest.mark.anyio
@pytest.mark.parametrize("cancelled", [0, 1])
async def test_a_cancelled_sample_leaves_the_others_of_its_batch(cancelled, anyio_backend):
    """The first request runs the batch, the second one is a member of it; the next batch runs as well."""
    runner = _SlowRunner()
    arm = inspecting._BatchedArm(cast(Runner, runner), BASELINE, frozenset())
    samples = [asyncio.create_task(arm.complete([n], 4)) for n in (1, 2, 3)]
    await asyncio.to_thread(runner.started.wait, 10)
    samples[cancelled].cancel()
    late = [asyncio.create_task(arm.complete([n], 4)) for n in (4, 5)]
    late[cancelled].cancel()
    await asyncio.sleep(2 * inspecting.GATHER_SECONDS)
    runner.go.set()
    results = await asyncio.wait_for(asyncio.gather(*samples, *late, return_exceptions=True), 10)
    is_cancelled = [isinstance(result, asyncio.CancelledError) for result in results]
    assert is_cancelled == [n % 3 == cancelled for n in range(5)]
    assert [r for r in results if isinstance(r, list)] == [[n + 1] for n in range(5) if n % 3 != cancelled]
    assert runner.batches[1:] == [[[5 - cancelled]]]
    with pytest.raises(InputError, match="no such token"):
        await asyncio.wait_for(arm.complete([0], 4), 10)


@pytest.fixture
def anyio_backend():
    return "asyncio"
