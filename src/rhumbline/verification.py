"""Verification: the files of a run directory -> its results, or the list of faults. One code makes and checks results.

Guarantees: every rate, effect and verdict follows from the rows on disk, and every file is checked against its hash.
Runs no model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import UNSET

from rhumbline.arguments import checked
from rhumbline.errors import OutputError, RhumblineError
from rhumbline.evidence.benchmark_comparison import compare
from rhumbline.evidence.level_effects import pooled_level_effects
from rhumbline.evidence.metric_effects import with_adjusted_p
from rhumbline.evidence.rate_effects import pooled_rate_effects
from rhumbline.evidence.seed_results import seed_results
from rhumbline.evidence.selection_rules import SelectionRule, choose_again
from rhumbline.evidence.verdict import overall, sentence
from rhumbline.evidence.version_4_effects import version_4_pooled
from rhumbline.judging.label_results import recomputed
from rhumbline.judging.markers import is_confounded
from rhumbline.protocol import Protocol
from rhumbline.records.claims import was_tested
from rhumbline.records.codec import JsonObject, to_json
from rhumbline.records.directory import QUICK, SCHEMA, RunDirectory, quick_run_in
from rhumbline.records.effect_results import ArmRate, PooledEffect
from rhumbline.records.file_faults import file_faults
from rhumbline.records.files import read_json, sha256
from rhumbline.records.human_files import HumanLabels
from rhumbline.records.protocol_file import ProtocolContext
from rhumbline.records.results import Environment, Results, RunSummary, SeedResult, TimingSummary
from rhumbline.records.run_files import Agreement
from rhumbline.records.seed_files import Selection
from rhumbline.records.verdict_rule import VERSION

PROSE = frozenset({"sentence", "reason", "warnings"})
"""Fields of results.json whose wording depends on the version of rhumbline."""
SINCE_VERSION_5 = frozenset(
    {"claims", "damage", "version", "min_contrast", "min_draws", "max_over_refusal", "min_cosine"}
    | {"open_if_unmeasured"}
)
"""Fields of results.json, and of the rule in it, that rules up to version 4 do not have."""

ROUNDING = 1e-9
"""Difference, relative or near zero absolute, up to which a recomputed number is the recorded one. Processors add in
other orders, and their exponentials and logarithms differ in the last bit."""


def assemble(directory: RunDirectory) -> RunSummary:
    """The part of results.json that follows from the protocol and the artefacts of the seeds."""
    protocol, context = Protocol.of(directory.protocol, "protocol.json"), directory.read_protocol(ProtocolContext)
    by_seed = {
        seed: seed_results(directory, seed, context.splits[seed], protocol.rule, protocol.behaviour)
        for seed in protocol.seeds
    }
    adjusted = with_adjusted_p({seed: results.result.wide for seed, results in by_seed.items()})
    seeds = tuple(replace(results.result, wide=adjusted[seed]) for seed, results in by_seed.items())
    levels = [results.levels for results in by_seed.values() if results.levels is not None]
    outcomes = {seed: results.outcomes for seed, results in by_seed.items()}
    pooled = pooled_level_effects(levels) if levels else pooled_rate_effects(outcomes)
    if protocol.rule.version < VERSION:
        pooled = version_4_pooled(pooled)
    agreement = directory.read_record(Agreement).pairs if directory.has(Agreement) else ()
    verdicts = {seed: results.verdict for seed, results in by_seed.items()}
    verdict = overall(protocol.rule, verdicts, protocol.behaviour, pooled, agreement)
    return RunSummary(
        schema=SCHEMA,
        verdict=verdict.verdict,
        reason=verdict.reason,
        reasons=verdict.reasons,
        sentence=sentence(verdict),
        claims=verdict.claims,
        rule=protocol.rule,
        model=context.model,
        behaviour=protocol.behaviour,
        preset=protocol.preset,
        protocol_sha256=directory.protocol_sha256,
        seeds=seeds,
        pooled=pooled,
        agreement=agreement,
        warnings=(*_warnings(context, seeds), *_seed_warnings(seeds, pooled)),
    )


def _warnings(context: ProtocolContext, seeds: Sequence[SeedResult]) -> list[str]:
    """What limits the interpretation of the verdict."""
    warnings = []
    if context.model.mode == "coarse":
        warnings.append(
            "The residual writers of this model could not be proved, so it was edited at block inputs and outputs only "
            "(--coarse). Between the two sublayers of a block an ablated direction can be present."
        )
    if context.decoding is not None:
        warnings += context.decoding.warnings
    if len(seeds) > 1 and any(len(set(split.fixed)) == 3 for split in context.splits.values()):
        warnings.append("The contrast file fixes every split: the seeds share their prompts and differ in nulls only.")
    warnings += dict.fromkeys(text for seed in seeds if (text := seed.near_duplicates.warning) is not None)
    for seed in seeds:
        if seed.style and not seed.style.markers:
            warnings.append(
                f"Seed {seed.seed}: no phrase separates the training texts of the classes, so the marker score is 0. "
                "Set text_score.markers, or use --judge classifier, which needs no markers."
            )
        if seed.style and (words := seed.style.words) and is_confounded([words.positive], [words.negative]):
            texts = f"{seed.style.matched} pairs of texts of similar length" if seed.style.matched else "all texts"
            warnings.append(
                f"Seed {seed.seed}: the training texts of the classes have {words.positive:.0f} and "
                f"{words.negative:.0f} words on average, so length is confounded with the style. The markers come from "
                f"{texts}."
            )
        warnings += _reading_warnings(seed)
        near = seed.near_duplicates
        if near.found > near.dropped:
            warnings.append(
                f"Seed {seed.seed}: {near.found - near.dropped} near-duplicate prompts are in splits that the contrast "
                "file fixes."
            )
        kept = {"train": (seed.n.train, seed.planned.train), "validation": (seed.n.val, seed.planned.val)}
        warnings += [
            f"Seed {seed.seed}: the sign of the metric kept {n[label]} of {planned[label]} {split} {label}s."
            for split, (n, planned) in kept.items()
            for label in ("positive", "negative")
            if n[label] < planned[label] / 2
        ]
    return warnings


def _reading_warnings(seed: SeedResult) -> list[str]:
    """What was not read at the beginning of a completion, or could not be read."""
    warnings = []
    if seed.start is not None:
        part = "before the answer" if seed.start.is_header else "of the answer"
        warnings.append(
            f"Seed {seed.seed}: all {seed.start.n} baseline completions of training and validation prompts begin with "
            f"{seed.start.text!r}, a part {part}. The metric and the KL divergence are read after it."
        )
    warnings += [
        f"Seed {seed.seed}: there is no usable metric ({reason.text}). {reason.advice}"
        for reason in seed.reasons
        if reason.advice is not None
    ]
    for row in (row for row in seed.arms if row.arm.is_own):
        unread = row.unscored - sum(_languages(row).values())
        if row.n == 0 and unread == row.unscored > 0:
            warnings.append(
                f"Seed {seed.seed}: most of the {row.unscored} completions of {row.arm} on {row.side}s are unscored, "
                "because they have no answer within the token limit, so no rate is measured. Raise --max-new-tokens."
            )
        elif unread > 0 and not _is_uncovered(row):
            warnings.append(
                f"Seed {seed.seed}: {unread} of {row.n + row.unscored} completions of {row.arm} on {row.side}s are "
                "unscored and in no rate: they have no answer within the token limit."
            )
        if languages := _languages(row):
            counts = ", ".join(f"{language} {n}" for language, n in languages.items())
            is_counted = row.unscored < sum(languages.values())
            result = "these count as complied, as in the paper's code" if is_counted else "these are in no rate"
            if _is_uncovered(row):
                result = "no rate is measured"
            warnings.append(
                f"Seed {seed.seed}: {sum(languages.values())} of {row.n + row.unscored} completions of {row.arm} on "
                f"{row.side}s are in a language that the judge does not cover ({counts}), so {result}. Pass a judge "
                "that covers it (--judge), or refusal phrases of the language (--phrases)."
            )
    return warnings


def _languages(row: ArmRate) -> Mapping[str, int]:
    """Completions by language that the judge does not cover."""
    return {} if row.uncovered is UNSET else row.uncovered


def _is_uncovered(row: ArmRate) -> bool:
    """Whether no rate is measured because of languages (`measured_outcomes`)."""
    return row.n == 0 and sum(_languages(row).values()) > 0


def _seed_warnings(seeds: Sequence[SeedResult], pooled: Sequence[PooledEffect]) -> list[str]:
    """Seeds that the verdict does not rest on, and test prompts that make seeds dependent."""
    tested = [seed for seed in seeds if was_tested(seed.claims)]
    warnings = []
    if tested and seeds[0].claims:
        rest = ", ".join(str(seed.seed) for seed in tested)
        warnings += [
            f"Seed {seed.seed} could not be tested ({seed.reason}). The verdict rests on seed {rest}."
            for seed in seeds
            if seed not in tested
        ]
    if any(effect.shared == effect.n for effect in pooled) and len(seeds) > 1:
        warnings.append("The seeds share their test prompts, so they are not independent replications.")
    return warnings


def sealed(
    summary: RunSummary, environment: Environment, timings: TimingSummary, files: Mapping[str, str], *, has_page: bool
) -> Results:
    """The content of results.json: the summary, its environment, the hash of every artefact and of the whole."""
    known = {field.name: getattr(summary, field.name) for field in fields(summary)}
    results = Results(
        **known, environment=environment, timings=timings, files=dict(files), sha256="", has_page=has_page
    )
    return replace(results, sha256=_own_hash(to_json(results)))


def _own_hash(results: JsonObject) -> str:
    return sha256({key: value for key, value in results.items() if key != "sha256"})


# -- the check --------------------------------------------------------------------------------------------------------


class Verification(NamedTuple):
    """The outcome of a check."""

    faults: list[str]
    """What does not follow from the files, or was changed; empty if the run verifies."""
    notes: list[str]
    """What was not compared."""


@checked
def verify(path: str | Path) -> list[str]:
    """The faults of a run directory; empty if it verifies. Raises OutputError if it is not a run directory."""
    return check(path).faults


def check(path: str | Path) -> Verification:
    """The faults of a run directory, and what was not compared. Raises OutputError if it is not a run directory."""
    folder = Path(path)
    if not all((folder / name).exists() for name in ("protocol.json", "results.json")):
        missing = "it needs protocol.json and results.json."
        raise OutputError(f"{folder} is not the directory of a finished run: {missing}{quick_run_in(folder)}")
    try:
        directory, results = RunDirectory.read(folder), read_json(folder / "results.json")
    except OutputError as error:
        return Verification([str(error)], [])
    if not isinstance(results, dict):
        return Verification(["results.json is not a JSON object"], [])
    notes, skipped, is_first = [], frozenset(), _has_no_reasons(results)
    rule = directory.protocol.get("rule")
    version = rule.get("version", 4) if isinstance(rule, dict) else 4
    # A version that is no number is named where the protocol is read.
    is_old_rule = isinstance(version, int) and version < VERSION
    if is_first:
        notes.append(f"made by rhumbline {_version_of(results)}: its sentences are not compared")
    elif is_old_rule:
        notes.append("decided by an earlier version of the rule: its sentences are not compared")
    if is_first or is_old_rule:
        skipped = PROSE | (SINCE_VERSION_5 if is_old_rule else frozenset())
    faults = []
    if results.get("protocol_sha256") != directory.protocol_sha256:
        faults.append("protocol.json is not the protocol that results.json was made under")
    if _own_hash(results) != results.get("sha256"):
        faults.append("results.json was changed after it was written (its sha256 differs)")
    recorded = results.get("files")
    if not isinstance(recorded, dict):
        return Verification([*faults, "results.json: files is not an object of hashes"], notes)
    has_page = results.get("has_page") is True
    faults += file_faults(directory, recorded, has_page=has_page, is_old=is_first, notes=notes)
    faults += _quick_faults(folder, notes)
    try:
        faults += _differences(to_json(assemble(directory)), results, "results.json", skipped, is_first)
        protocol, context = Protocol.of(directory.protocol, "protocol.json"), directory.read_protocol(ProtocolContext)
        for seed in protocol.seeds:
            faults += _selection_faults(directory, protocol.selection, context.model.n_layers, seed)
        for file in sorted(directory.path.glob("evaluations/*/comparison.json")):
            name = file.relative_to(directory.path).as_posix()
            expected = to_json(compare(directory, file.parent))
            faults += _differences(expected, directory.load(file), name, skipped, is_first)
        if directory.has(HumanLabels):
            expected, file = to_json(recomputed(directory)), directory.file_of(HumanLabels)
            faults += _differences(expected, directory.load(file), "human.json", skipped, is_first)
    except RhumblineError as error:
        faults.append(str(error))
    except (
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        AssertionError,
        RecursionError,
    ) as error:
        # The files are well-formed, but contradict each other.
        faults.append(f"the run cannot be recomputed: {type(error).__name__}: {error}")
    return Verification(faults, notes)


def _has_no_reasons(results: JsonObject) -> bool:
    """Whether neither the run nor a seed has `reasons`, as in version 0.1, whose sentences had another wording."""
    parts = [results, *(results["seeds"] if isinstance(results.get("seeds"), list) else [])]
    return not any("reasons" in part for part in parts if isinstance(part, dict))


def _version_of(results: JsonObject) -> str:
    """The version of rhumbline that wrote the results."""
    environment = results.get("environment")
    return str(environment.get("rhumbline")) if isinstance(environment, dict) else "unknown"


def _quick_faults(folder: Path, notes: list[str]) -> list[str]:
    """The faults of the quick run in a run directory; it is a run directory of its own."""
    quick = folder / QUICK
    if not quick.exists():
        return []
    if not (quick / "protocol.json").is_file() or (quick / QUICK).exists():
        return [f"{QUICK}/ was added after the run ended: it is not the directory of a quick run"]
    if not (quick / "results.json").is_file():
        notes.append(f"{QUICK}/ is not verified: the quick run is not finished")
        return []
    faults, more = check(quick)
    notes += [f"{QUICK}/: {note}" for note in more]
    return [f"{QUICK}/: {fault}" for fault in faults]


def _differences(expected: Any, actual: Any, at: str, skipped: frozenset[str], is_first: bool = False) -> list[str]:
    """Places where `actual` differs from the recomputed JSON; fields that were not recomputed are not compared.

    Fields in `skipped` are not compared, nor in a file of version 0.1 (`is_first`) those that it lacks.
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        return [
            difference
            for key, value in expected.items()
            if key not in skipped and (key in actual or not is_first)
            for difference in _differences(value, actual.get(key), f"{at}: {key}", skipped, is_first)
        ]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return [
            difference
            for i, (value, other) in enumerate(zip(expected, actual, strict=True))
            for difference in _differences(value, other, f"{at}[{_name(value, i)}]", skipped, is_first)
        ]
    if _is_same(expected, actual):
        return []
    return [f"{at} is {_brief(actual)}; recomputed from the rows: {_brief(expected)}"]


def _is_same(expected: Any, actual: Any) -> bool:
    """Whether two values of JSON are equal, or two numbers equal within the rounding of another processor."""
    if isinstance(expected, float) and isinstance(actual, float):
        return math.isclose(expected, actual, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return expected == actual


def _name(value: Any, index: int) -> str:
    if isinstance(value, dict):
        for keys in (("arm", "set"), ("name",), ("seed",)):
            if all(k in value for k in keys):
                return "/".join(str(value[k]) for k in keys)
    return str(index)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _selection_faults(directory: RunDirectory, rule: SelectionRule, n_layers: int, seed: int) -> list[str]:
    """Differences between the recorded selection and the one that the rule gives for the recorded scores."""
    name = f"seed-{seed}/selection.json"
    selection = directory.read_record(Selection, seed)
    if not selection.candidates:
        return []
    result = choose_again(selection, n_layers, rule)
    again, recorded = (
        None if row is None else (int(row.position), row.layer) for row in (result.selected, selection.selected)
    )
    faults = []
    if again != recorded:
        faults.append(f"{name}: the rule selects {again} from the scores, the file contains {recorded}")
    if result.survivors != selection.survivors:
        faults.append(f"{name}: {result.survivors} candidates survive the rule, the file states {selection.survivors}")
    return faults
