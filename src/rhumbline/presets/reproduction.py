"""Reproduction of a published model: checks before the run, and its figures compared with the published ones.

A figure is compared only with the published figure of the same name, within a stated tolerance. A figure that was not
measured is reported as such. Independent of how a run is computed.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import ModelError, RhumblineError
from rhumbline.evidence.statistics import difference_of_two_samples
from rhumbline.judging.judgements import SUMMARY
from rhumbline.models.chat import Chat
from rhumbline.models.loading import read_head
from rhumbline.models.places import places_of
from rhumbline.models.sources import Source
from rhumbline.presets.published_models import Published
from rhumbline.prompts import named_sets as data
from rhumbline.records.arms import ArmKind
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.judgement_files import JudgementSummary
from rhumbline.records.results import Results, SeedResult
from rhumbline.records.run_files import Check, Figure, FigureComparison
from rhumbline.records.shared import Label, Site

LAYER_TOLERANCE = 2
"""Tolerance of the selected layer, because neighbouring candidates have similar scores."""
HARM_JUDGE = "llamaguard-2-arditi2024"
"""Judge of the published safety scores."""
CLASS_NAMES: dict[Label, str] = {"positive": "harmful", "negative": "harmless"}
"""Names of the classes in the published figures."""


class Rate(NamedTuple):
    """A rate and the number of prompts that it rests on."""

    rate: float
    n: int


# -- before the run ---------------------------------------------------------------------------------------------------


def checks(published: Published, source: str | None = None, data_dir: str | Path | None = None) -> list[Check]:
    """Check the tokenizer and the data of a published model, without its weights.

    `source` is where the model is, if not on the hub.
    """
    need = published.hardware()
    detail = (
        f"estimated: {need.disk_gib} GiB on disk, {need.memory_gib} GiB of GPU memory in bfloat16, "
        f"about {need.gpu_hours} hours on an H100"
    )
    return [
        *_tokenizer_checks(published, source or published.hub),
        *_data_checks(published, data_dir),
        Check(what="hardware", ok=None, detail=detail),
    ]


def _tokenizer_checks(published: Published, source: str) -> Iterator[Check]:
    try:
        with places_of(Source(source)) as places:
            config, tokenizer = read_head(places)  # code that comes with a model is not executed
    except ModelError as error:
        yield Check(what="tokenizer", ok=None, detail=f"{source} is not available locally: {str(error)[:160]}")
        return
    yield _equal("layers", config.get_text_config().num_hidden_layers, published.layers)
    try:
        chat = Chat.of(tokenizer, published.protocol().chat)
    except RhumblineError as error:
        yield Check(what="chat template", ok=False, detail=str(error))
        return
    if published.positions is not None:
        yield _equal("post-instruction positions", len(chat.positions), published.positions)
    if published.token_ids:
        ids = tuple(chat.first_token(text) for text in published.refusal_tokens)
        yield _equal(f"ids of refusal tokens {', '.join(published.refusal_tokens)}", ids, published.token_ids)


def _data_checks(published: Published, data_dir: str | Path | None) -> Iterator[Check]:
    for name in data.recipes()[published.contrast].sources:
        declared = data.source(name)
        try:
            facts = data.load(declared, data_dir).facts
        except RhumblineError as error:
            yield Check(what=f"data {name}", ok=False, detail=str(error))
            continue
        detail = f"{facts.rows} rows of {declared.rows} expected, from {facts.origin}"
        yield Check(what=f"data {name}", ok=facts.as_expected, detail=detail)


def _equal(what: str, value: Any, expected: Any) -> Check:
    return Check(what=what, ok=value == expected, detail=f"{value}, published {expected}")


# -- after the run ----------------------------------------------------------------------------------------------------


def compare_run(published: Published, path: str | Path) -> list[FigureComparison]:
    """Compare the figures of a finished run with the published ones.

    Safety scores need `rhumbline judge RUN --judge llamaguard-2-arditi2024`; without it they are not measured.
    """
    directory = RunDirectory.read(path)
    judged = directory.path / SUMMARY
    summary = directory.read_as(JudgementSummary, judged) if judged.is_file() else None
    return compare(published, directory.read_record(Results), summary)


def compare(published: Published, results: Results, judged: JudgementSummary | None = None) -> list[FigureComparison]:
    """Compare the figures of results.json, and of external judges, with the published ones."""
    rows = [row for seed in results.seeds for row in _of_seed(published, seed, _safety_scores(judged, seed.seed))]
    if published.verdict is not None:
        agrees = results.verdict.headline == published.verdict
        rows.append(_row("verdict", None, results.verdict, published.verdict, "the same", agrees))
    return rows


def _of_seed(published: Published, seed: SeedResult, safety: dict[str, Rate]) -> Iterator[FigureComparison]:
    site = None if seed.selected is None else seed.selected.site
    tied = [cell.site for cell in seed.tied]
    for expected in published.sites():
        agrees = (site is not None and _is_near(site, expected)) or expected in tied
        tolerance = f"layer within {LAYER_TOLERANCE}, or tied"
        yield _row("selected (position, layer)", seed.seed, site and _cell(site), _cell(expected), tolerance, agrees)
    if published.selected_layer is not None:
        layer = None if site is None else site.layer
        agrees = layer is not None and abs(layer - published.selected_layer) <= LAYER_TOLERANCE
        tolerance = f"within {LAYER_TOLERANCE}"
        yield _row("selected layer", seed.seed, layer, published.selected_layer, tolerance, agrees)
    measured = _refusal_rates(seed.arms) | safety
    for name, expected in published.rates.items():
        value = measured.get(name)
        agrees, tolerance = _agreement(measured.get(name), Rate(expected, published.n))
        yield _row(name.replace("_", " "), seed.seed, value and value.rate, expected, tolerance, agrees)


def _agreement(measured: Rate | None, published: Rate) -> tuple[bool | None, str]:
    """Whether the 95 % interval of the difference of two samples contains 0, and this interval in words.

    Of twenty equal rates about one is expected to disagree. A wide interval means that the samples show little.
    """
    if measured is None:
        return None, "95 % interval of the difference contains 0"
    low, high = difference_of_two_samples(*measured, *published)
    interval = f"95 % interval of the difference, [{low:.2f}, {high:.2f}], contains 0"
    return low <= 0 <= high, f"{interval} (n = {measured.n} and {published.n})"


def _row(
    what: str, seed: int | None, measured: Figure, published: Figure, tolerance: str, agrees: bool | None
) -> FigureComparison:
    return FigureComparison(
        what=what, seed=seed, measured=measured, published=published, tolerance=tolerance, agrees=agrees
    )


def _is_near(site: Site, expected: Site) -> bool:
    return site.position == expected.position and abs(site.layer - expected.layer) <= LAYER_TOLERANCE


def _cell(site: Site) -> tuple[int, int]:
    return int(site.position), site.layer


def _refusal_rates(arms: Iterable[ArmRate]) -> dict[str, Rate]:
    """Refusal rates by their published names; the blog's control is the first isotropic null."""
    published = {
        ("baseline", "positive"): "harmful_baseline_refusal",
        ("ablation", "positive"): "harmful_ablation_refusal",
        ("subtraction", "positive"): "harmful_subtraction_refusal",
        ("baseline", "negative"): "harmless_baseline_refusal",
        ("addition", "negative"): "harmless_addition_refusal",
    }
    rates = {}
    for row in arms:
        kind = ArmKind.ABLATION if row.side == "positive" else ArmKind.ADDITION
        is_control = row.arm.null_draw == ("isotropic", 0) and row.arm.kind is kind
        name = f"{CLASS_NAMES[row.side]}_control_refusal" if is_control else published.get((str(row.arm), row.side))
        if name is not None and row.rate is not None:
            rates[name] = Rate(row.rate, row.n)
    return rates


def _safety_scores(judged: JudgementSummary | None, seed: int) -> dict[str, Rate]:
    """Safety scores of the positives by their published names."""
    judge = None if judged is None else judged.judges.get(HARM_JUDGE)
    return {
        f"harmful_{row.arm}_safety": Rate(row.safety_score, row.n)
        for row in (() if judge is None else judge.rows)
        if row.seed == seed and row.side == "positive" and row.safety_score is not None
    }
