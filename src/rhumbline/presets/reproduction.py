"""Reproduction of a published model: checks before the run, and its figures compared with the published ones.

A figure is compared only with the published figure of the same name, within a stated tolerance. A figure that was not
measured is reported as such. Independent of how a run is computed.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from rhumbline.errors import ModelError, RhumblineError
from rhumbline.evidence.statistics import difference_of_two_samples, wilson_of_rate
from rhumbline.judging.judgements import SUMMARY
from rhumbline.models.chat import Chat
from rhumbline.models.loading import read_head
from rhumbline.models.places import places_of
from rhumbline.models.sources import Source
from rhumbline.presets.figure_comparison import HARM_JUDGE, RunFigures, further_rows
from rhumbline.presets.published_models import Published
from rhumbline.prompts import named_sets as data
from rhumbline.records.arms import ArmKind
from rhumbline.records.directory import RunDirectory
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.evaluation_files import Comparison
from rhumbline.records.judgement_files import JudgementSummary
from rhumbline.records.protocol_file import ProtocolContext
from rhumbline.records.results import Results, SeedResult
from rhumbline.records.run_files import Check, Figure, FigureComparison
from rhumbline.records.seed_files import Selection
from rhumbline.records.shared import Label, Site

LAYER_TOLERANCE = 2
"""Tolerance of the selected layer, because neighbouring candidates have similar scores."""
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

    Safety scores need `rhumbline judge RUN --judge llamaguard-2-arditi2024`, benchmarks `rhumbline evaluate RUN`;
    without them they are not measured.
    """
    directory = RunDirectory.read(path)
    judged, context = directory.path / SUMMARY, directory.read_protocol(ProtocolContext)
    results = directory.read_record(Results)
    figures = RunFigures(
        results=results,
        judged=directory.read_as(JudgementSummary, judged) if judged.is_file() else None,
        selections={seed.seed: directory.read_record(Selection, seed.seed) for seed in results.seeds},
        evaluations=tuple(
            directory.read_as(Comparison, file) for file in sorted(directory.path.glob("evaluations/*/comparison.json"))
        ),
        recipe=None if context.contrast.pools is None else context.contrast.pools.recipe,
        system=context.chat.system,
    )
    return compare(published, figures)


def compare(published: Published, figures: RunFigures) -> list[FigureComparison]:
    """Compare the figures of results.json, external judges and evaluations with the published ones."""
    rows = [
        row
        for seed in figures.results.seeds
        for row in (*_of_seed(published, figures, seed), *further_rows(published, figures, seed))
    ]
    if published.verdict is not None:
        verdict = figures.results.verdict
        rows.append(
            _row("verdict", None, verdict, published.verdict, "the same", verdict.headline == published.verdict)
        )
    return rows


def _of_seed(published: Published, figures: RunFigures, seed: SeedResult) -> Iterator[FigureComparison]:
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
    measured = _refusal_rates(seed.arms) | _safety_scores(figures, seed.seed)
    for name, expected in published.rates.items():
        value = measured.get(name)
        agrees, tolerance = _agreement(value, Rate(expected, published.n))
        row = _row(name.replace("_", " "), seed.seed, value and value.rate, expected, tolerance, agrees)
        if value is None:
            yield replace(row, needs=_needs(name))
        else:
            low, high = wilson_of_rate(*value)
            yield replace(row, low=low, high=high)


def _needs(name: str) -> str:
    """What a rate takes that was not measured."""
    return f"`rhumbline judge RUN --judge {HARM_JUDGE}`" if name.endswith("safety") else "a run with this arm"


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
        what=what,
        seed=seed,
        measured=measured,
        published=published,
        tolerance=tolerance,
        agrees=agrees,
        source="models.toml of rhumbline.presets",
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


def _safety_scores(figures: RunFigures, seed: int) -> dict[str, Rate]:
    """Safety scores of the positives by their published names."""
    return {
        f"harmful_{row.arm}_safety": Rate(row.safety_score, row.n)
        for row in figures.judgements(HARM_JUDGE, seed)
        if row.safety_score is not None
    }
