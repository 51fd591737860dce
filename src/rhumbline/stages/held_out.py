"""Testing the direction on held-out prompts: what its arms complete, where the classes separate, what it costs.

Every function is one stage: it takes the seed's run, reads the artefacts of the stages before it, and returns the
content of its own, or writes it where there are several. Opens test prompts, so it comes after selection.
"""

from collections.abc import Sequence
from typing import Any

import torch

from rhumbline.axes import Candidates
from rhumbline.errors import ProtocolError
from rhumbline.evidence.class_rates import arm_rates
from rhumbline.evidence.side_effects import TEXTS
from rhumbline.evidence.statistics import auroc
from rhumbline.inference.interventions import BASELINE, Ablate, Add, Arm
from rhumbline.inference.residuals import at_site, projections
from rhumbline.inference.runner import Runner
from rhumbline.judging.keyword_judges import JUDGES, judge
from rhumbline.judging.paired_log_odds import PairedLogOdds
from rhumbline.models.chat import Chat
from rhumbline.prompts.contrasts import LABELS, Label, Prompt, Split, Splits
from rhumbline.records.arms import ArmId
from rhumbline.records.held_out_files import Outcome
from rhumbline.records.positions import Position
from rhumbline.records.shared import Cell
from rhumbline.stages.losses import Reading, Source, cost_arms, loss_rows
from rhumbline.stages.seed_run import SeedRun, encoded
from rhumbline.stages.stage_jobs import ROWS_PER_BLOCK, Ask, Block, forget_answers, spans
from rhumbline.stages.style_judge import complete, text_scores
from rhumbline.stages.system_prompts import condition_arms, condition_rows

LENGTHS_READ = (16, 32, 64)
"""New tokens after which a completion is judged as well, beside the whole of it."""

# -- arms on test prompts ---------------------------------------------------------------------------------------------


def arms_on(run: SeedRun, label: Label) -> list[Arm]:
    """Baseline first, the direction's arms next, one arm for each of the first null draws last."""
    if run.direction is None:
        return [BASELINE]
    few, how = [n for n in run.nulls if n.draw < run.protocol.nulls.draws], run.how
    ablation = Arm("ablation", (Ablate(run.direction),))
    if label == "positive":
        null_arms = [Arm(f"null:{n.family}:{n.draw}:ablation", (Ablate(n.direction),)) for n in few]
        return [BASELINE, ablation, *null_arms]
    null_arms = [Arm(f"null:{n.family}:{n.draw}:addition", (Add(n.direction, **how),)) for n in few]
    other = "prompt" if how["positions"] == "all" else "all"
    elsewhere = Arm(f"addition-{other}", (Add(run.direction, how["coefficient"], other),))
    return [BASELINE, Arm("addition", (Add(run.direction, **how),)), elsewhere, ablation, *null_arms]


def write_outcomes(run: SeedRun, ask: Ask) -> None:
    """Every arm on every test prompt, block by block."""
    path = run.folder / "outcomes.jsonl"
    if path.is_file():
        return
    rows: list[dict[str, Any]] = []
    for label in LABELS:
        size = max(1, ROWS_PER_BLOCK // len(arms_on(run, label)))
        with run.timings.stage(f"arms on {label}s", run.seed):
            arguments = [{"label": label, **span} for span in spans(len(run.splits.get("test", label)), size)]
            rows += [row for part in ask("outcomes", arguments) for row in part]
    run.directory.save_rows(path, rows)
    forget_answers(run)


def outcome_block(run: SeedRun) -> Block:
    """Every arm on some test prompts: completions, judged."""

    def outcomes(label: Label, first: int, end: int) -> list[dict[str, Any]]:
        arms, prompts = arms_on(run, label), run.splits.get("test", label)[first:end]
        runner, sequences = run.runner(f"arms on {label}s"), [run.chat.encode(p) for p in prompts]
        pairs, read = (run.metric, None) if isinstance(run.metric, PairedLogOdds) else (None, run.metric)

        def decided(arm: int, tokens: Sequence[int]) -> bool:
            return not ArmId.parse(arms[arm].name).is_own and judge(run.protocol.judge).settled(_text(run, tokens))

        completions, metric = runner.generate(
            sequences,
            arms,
            max_new_tokens=run.protocol.max_new_tokens,
            read=read,
            decided=decided if run.protocol.early_stop else None,
        )
        if pairs is not None:
            metric = pairs.read(runner, sequences, arms)
        baseline = [_text(run, ids) for ids in completions[0]]
        return [
            _outcome(run, arm, label, prompt, completions[a][p], float(metric[a, p]), baseline[p])
            for a, arm in enumerate(arms)
            for p, prompt in enumerate(prompts)
        ]

    return outcomes


def _outcome(
    run: SeedRun, arm: Arm, label: Label, prompt: Prompt, ids: Sequence[int], metric: float, baseline: str
) -> dict[str, Any]:
    """The row of one completion."""
    text = _text(run, ids)
    score = run.judge(prompt)(text)
    row = {
        "arm": arm.name,
        "set": label,
        "prompt_id": prompt.id,
        "class": score.cls,
        "score": score.value,
        "evidence": score.evidence,
        "metric": metric,
        "new_tokens": len(ids),
        "category": prompt.category,
    }
    if run.protocol.is_continuous:
        row |= run.styling.readouts(text, baseline, prompt)
    elif ArmId.parse(arm.name).is_own:
        row |= _readouts(run, ids, text, prompt, label)
    return row | ({"prompt": prompt.text, "completion": text} if run.protocol.save_completions else {})


def _text(run: SeedRun, ids: Sequence[int]) -> str:
    return run.chat.tokenizer.decode(ids, skip_special_tokens=True)


def _readouts(run: SeedRun, ids: Sequence[int], text: str, prompt: Prompt, label: Label) -> dict[str, Any]:
    """The classes that other judges and shorter readings give, and whether a known answer is in the text."""
    judged = judge(run.protocol.judge)
    lengths = [n for n in LENGTHS_READ if n < run.protocol.max_new_tokens]
    texts = {str(n): _text(run, ids[:n]) for n in lengths}
    known = None
    if label == "negative" and prompt.response:
        known = " ".join(prompt.response.casefold().split()) in " ".join(text.casefold().split())
    return {
        "judges": {name: j(text).cls for name, j in JUDGES.items()},
        "by_length": {n: judged(t).cls for n, t in (texts | {"full": text}).items()},
        "correct": known,
    }


def check_filter(run: SeedRun) -> None:
    """A model that shows the behaviour, but no prompt that the metric's sign keeps: the tokens are wrong."""
    empty = [f"{s} {c}s" for s in ("train", "val") for c, n in run.extraction["n"][s].items() if n == 0]
    rows = run.directory.read_rows(Outcome, run.seed)
    baseline = next(a for a in arm_rates(rows) if a.arm.is_baseline and a.side == "positive")
    if empty and (baseline.rate or 0.0) >= run.protocol.rule.min_baseline:
        raise ProtocolError(
            f"seed {run.seed}: the model shows the behaviour (rate {baseline.rate:.2f}, n = {baseline.n}), "
            f"but the sign of the metric keeps none of the {' and '.join(empty)}. It reads the wrong tokens: "
            "give others with --refusal-tokens, or set extraction.filter = false in an experiment file. "
            f"What was computed stays in {run.directory.path}."
        )


# -- separation -------------------------------------------------------------------------------------------------------


def separate(run: SeedRun) -> dict[str, Any]:
    """Where the classes separate on test prompts."""
    tensors, _ = run.directory.load_tensors(run.folder / "directions.safetensors")
    means = (tensors["candidates"], tensors["negative_mean"])
    selected = run.selection.selected
    return separation(run.runner("separation"), run.chat, run.splits, "test", run.positions, *means, selected=selected)


def separation(
    runner: Runner,
    chat: Chat,
    splits: Splits,
    split: Split,
    positions: Sequence[Position],
    candidates: Candidates,
    negative_mean: Candidates,
    *,
    selected: Cell | None,
) -> dict[str, Any]:
    """Where the classes separate on held-out prompts: AUROC of the projection, cosine of the class means, norm."""
    of_texts = any(p.is_in_response for p in positions)
    read = {c: splits.texts(split, c) if of_texts else splits.get(split, c) for c in LABELS}
    projected = {
        c: projections(runner, encoded(chat, some, positions), candidates, positions).numpy()
        for c, some in read.items()
    }
    means_cosine = torch.cosine_similarity(negative_mean + candidates, negative_mean, dim=-1)
    norms = candidates.norm(dim=-1)
    grid = [
        {
            "position": int(position),
            "layer": layer,
            "auroc": auroc(projected["positive"][:, p, layer], projected["negative"][:, p, layer]),
            "cosine": float(means_cosine[p, layer]),
            "norm": float(norms[p, layer]),
        }
        for p, position in enumerate(positions)
        for layer in range(candidates.shape[1])
    ]
    rows = []
    if selected is not None:
        p, layer = list(positions).index(selected.position), selected.layer
        for label in LABELS:
            for prompt, value in zip(read[label], projected[label][:, p, layer], strict=True):
                rows.append({"prompt_id": prompt.id, "label": label, "projection": float(value)})
    return {"split": split, "n": {c: len(some) for c, some in read.items()}, "grid": grid, "projections": rows}


# -- what it costs, and where else it holds ---------------------------------------------------------------------------


def write_side_effects(run: SeedRun) -> None:
    """The losses of every arm, one artefact for each text."""
    assert run.direction is not None
    plan = run.protocol.side_effects
    arms = cost_arms(run.direction, run.nulls, plan.controls, run.how)
    for text in TEXTS if plan.documents else ():
        path, stage = run.folder / f"losses-{text}.jsonl", f"losses on {text}"
        if not path.is_file():
            with run.timings.stage(stage, run.seed):
                runner = run.runner(stage)
                run.directory.save_rows(path, loss_rows(runner, text, _sources(run, text, runner), arms))


def _sources(run: SeedRun, text: str, runner: Runner) -> list[Source]:
    plan, negatives = run.protocol.side_effects, run.splits.get("test", "negative")
    reading = Reading(run.chat, plan.documents, plan.max_tokens)
    if text == "text":
        return reading.text(run.texts)
    if text == "responses":
        return reading.responses(run.texts, negatives)
    return reading.completions(runner, negatives, run.judge, run.protocol.max_new_tokens)


def write_conditions(run: SeedRun) -> None:
    """The test prompts again under each system prompt, one artefact for each."""
    for number, (name, chat) in enumerate(run.chats.items()):
        path, stage = run.folder / f"condition-{number:02d}.jsonl", f"condition {name}"
        if path.is_file():
            continue
        with run.timings.stage(stage, run.seed):
            rows = []
            for label in LABELS:
                arms, prompts = condition_arms(label, run.direction, run.how), run.splits.get("test", label)
                judged, longest = judge(run.protocol.judge), run.protocol.max_new_tokens
                rows += condition_rows(run.runner(stage), chat, name, label, prompts, arms, judged, longest)
            run.directory.save_rows(path, rows)


def measure_levels(run: SeedRun) -> dict[str, Any]:
    """Scores of the contrast's own test texts, and the neutral prompts at baseline and on the direction."""
    texts = run.protocol.extraction.response_position is not None
    found: dict[str, Any] = {"texts": text_scores(run.styling, run.splits) if texts else None, "neutral": []}
    if not run.neutral:
        return found
    runner, direction = run.runner("levels"), run.direction
    said = complete(runner, run.chat, run.neutral, [BASELINE], run.protocol.max_new_tokens)[0]
    along: list[float | None] = [None] * len(said)
    if direction is not None and not direction.position.is_in_response:
        h = at_site(runner, [run.chat.encode(p) for p in run.neutral], direction.position, direction.layer)
        along = (h @ direction.vector).tolist()
    for prompt, text, value in zip(run.neutral, said, along, strict=True):
        score = run.styling.judge(prompt.category)(text)
        found["neutral"].append({"prompt_id": prompt.id, "class": score.cls, "score": score.value, "projection": value})
    return found
