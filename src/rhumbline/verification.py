"""A run directory in, its results or the list of what does not hold out. The same code makes results and checks them.

Promises: every rate, effect and verdict comes from the rows on disk; every file is checked against its hash.
Runs no model.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rhumbline.errors import RhumblineError
from rhumbline.evidence import paired_benchmarks as pairing
from rhumbline.evidence import side_effects as costs
from rhumbline.evidence.continuous_scores import Levels, confounds, neutral_level, pooled_levels
from rhumbline.evidence.selection_rules import SelectionRule, choose, count_discards
from rhumbline.evidence.statistics import arm_rates, effects
from rhumbline.evidence.summaries import adjust, dose_curves, pooled, readouts, shift, stability_table, wide_effects
from rhumbline.evidence.verdict import Verdict, decide, overall
from rhumbline.evidence.verdict_rules import Rule
from rhumbline.records.directory import SCHEMA, RunDirectory
from rhumbline.records.files import finite, read_json, sha256
from rhumbline.records.reasons import Discard, NoCandidate
from rhumbline.records.selection_files import Candidate, Selection


def assemble(directory: RunDirectory) -> dict[str, Any]:
    """Everything of results.json that follows from the protocol and the rows of the seeds."""
    protocol = directory.protocol
    rule = Rule.from_dict(protocol["rule"])
    seeds, verdicts, rows = [], {}, {}
    for seed in protocol["seeds"]:
        rows[seed] = directory.load_rows(directory.seed(seed) / "outcomes.jsonl")
        summary, verdict = _seed(directory, seed, rule, rows[seed])
        seeds.append(summary)
        verdicts[seed] = verdict
    adjust(seeds)
    whole = overall(verdicts)
    return {
        "schema": SCHEMA,
        "verdict": whole.verdict,
        "reason": whole.reason,
        "sentence": whole.sentence,
        "rule": protocol["rule"],
        "model": protocol["model"],
        "behaviour": protocol["behaviour"],
        "preset": protocol["preset"],
        "protocol_sha256": directory.protocol_sha256,
        "seeds": seeds,
        "pooled": finite(_pooled(directory, rows)),
        "agreement": _agreement(directory),
        "warnings": _warnings(protocol, seeds),
    }


def _pooled(directory: RunDirectory, rows: Mapping[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Both effects over the seeds."""
    styles = [_style(directory, seed, some) for seed, some in rows.items()]
    known = [style.levels for style in styles if style is not None]
    return pooled_levels(known) if known else pooled(rows)


def _agreement(directory: RunDirectory) -> list[Any]:
    """Whether the seeds chose the same direction, where several did."""
    path = directory.path / "agreement.json"
    return directory.load(path)["pairs"] if path.is_file() else []


def _seed(directory: RunDirectory, seed: int, rule: Rule, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], Verdict]:
    folder = directory.seed(seed)
    metric = directory.load(folder / "metric.json")
    extraction = directory.load(folder / "extraction.json")
    selection = directory.load(folder / "selection.json")
    found = selection["selected"] is not None
    nulls = directory.load(folder / "nulls.json") if found else {"nulls": [], "energy": None, "groups": None}
    drawn = nulls["nulls"]
    limit = math.inf if rule.same_cosine is None else rule.same_cosine
    again = {(n["family"], n["draw"]) for n in drawn if abs(n["cosine"]) > limit}
    style = _style(directory, seed, rows)
    if style is None:
        arms, moved = arm_rates(rows), effects(rows, again=again)
    else:
        arms, moved = style.levels.arms(), style.levels.effects(again)
    wide_rows = directory.load(folder / "wide.json") if found else {"rows": []}
    wide, moves = wide_effects(wide_rows, drawn, rule.same_cosine), shift(wide_rows)
    for effect in moved:
        effect["wide"] = next((w["families"] for w in wide if w["name"] == effect["name"]), {})
    reason = _no_candidate(directory.read_record(Selection, seed), extraction["n"])
    unit = style.levels.unit()._asdict() if style else None
    behaviour = directory.protocol["behaviour"]
    verdict = decide(rule, arms, moved, behaviour, reason, moves["kl"], nulls["groups"], unit)
    planned = directory.protocol["splits"][str(seed)]
    summary = {
        "seed": seed,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "sentence": verdict.sentence,
        "selected": selection["selected"],
        "survivors": selection["survivors"],
        "tied": selection["tied"],
        "n": {**extraction["n"], "test": planned["sizes"]["test"]},
        "planned": planned["sizes"],
        "near_duplicates": planned["near_duplicates"],
        "refusal_tokens": metric["tokens"],
        "token_auroc": metric["auroc"],
        "arms": arms,
        "effects": moved,
        "nulls": drawn,
        "energy": nulls["energy"],
        "groups": nulls["groups"],
        "wide": wide,
        "shift": moves,
        "dose": dose_curves(directory.load(folder / "dose.json"), drawn, nulls["energy"]) if found else None,
        "readouts": readouts(rows),
        "stability": stability_table(directory.load(folder / "stability.json")) if found else None,
        "coefficient": selection.get("coefficient"),
        "side_effects": costs.side_effects(_rows(directory, seed, "losses-*.jsonl"), rows) if found else None,
        "categories": costs.categories(rows),
        "by_baseline": costs.by_baseline(rows),
        "conditions": costs.conditions(_rows(directory, seed, "condition-*.jsonl")),
    }
    if style is not None:
        summary["style"] = {"unit": unit, **style.record, "confounds": confounds(rows), "neutral": style.neutral}
    return finite(summary), verdict


def _no_candidate(selection: Selection, n: Mapping[str, Mapping[str, int]]) -> str | None:
    """Why nothing was selected, with the numbers; None if a candidate was."""
    match selection.reason:
        case None:
            return None
        case NoCandidate.ALL_DISCARDED:
            return ", ".join(f"{count} {why}" for why, count in count_discards(selection.candidates).items())
        case NoCandidate.NO_PROMPTS:
            empty = [
                f"{split} {label}" for split in ("train", "val") for label, count in n[split].items() if count == 0
            ]
            return f"{selection.reason} in {', '.join(empty)}"
        case reason:
            return str(reason)


def _rows(directory: RunDirectory, seed: int, pattern: str) -> list[dict[str, Any]]:
    """The rows of all files of a kind, in the order of their names."""
    return [row for path in sorted(directory.seed(seed).glob(pattern)) for row in directory.load_rows(path)]


class _Style(NamedTuple):
    """What a continuous score adds to a seed."""

    levels: Levels
    record: dict[str, Any]
    neutral: dict[str, Any] | None


def _style(directory: RunDirectory, seed: int, rows: list[dict[str, Any]]) -> _Style | None:
    """The levels of a seed with a continuous score; None of one with classes."""
    path = directory.seed(seed) / "style.json"
    if not path.is_file():
        return None
    record = directory.load(path)
    found = directory.load(directory.seed(seed) / "levels.json")
    levels = Levels.of(rows, found["texts"])
    kept = {key: record[key] for key in ("texts", "how", "markers", "classifier", "chance")}
    return _Style(levels, kept, neutral_level(levels.unit(), found["neutral"]))


def _warnings(protocol: Mapping[str, Any], seeds: list[dict[str, Any]]) -> list[str]:
    """What a careful reader must know beside the verdict."""
    found = []
    if protocol["model"]["mode"] == "coarse":
        found.append(
            "The residual writers of this model could not be proved: it was run at block inputs and outputs only "
            "(--coarse), so between the two sublayers of a block an ablated direction may be present."
        )
    fixed = {tuple(s["fixed"]) for s in protocol["splits"].values()}
    if len(seeds) > 1 and any(len(f) == 3 for f in fixed):
        found.append("The contrast file fixes every split: the seeds share their prompts and differ in the nulls only.")
    for seed in seeds:
        if seed.get("style") and not seed["style"]["markers"]:
            found.append(
                f"Seed {seed['seed']}: no phrase told the training texts of the classes apart, so the markers see "
                "nothing; text_score.markers gives them, and --judge classifier needs none."
            )
        near = seed["near_duplicates"]
        if near["found"] > near["dropped"]:
            found.append(
                f"Seed {seed['seed']}: {near['found'] - near['dropped']} near-duplicate prompts stand in splits that "
                "the contrast file decided."
            )
        for split in ("train", "val"):
            for label, n in seed["n"][split].items():
                planned = seed["planned"][split][label]
                if n < planned / 2:
                    found.append(f"Seed {seed['seed']}: the metric's sign kept {n} of {planned} {split} {label}s.")
    return found


def sealed(
    results: Mapping[str, Any], environment: Mapping[str, Any], timings: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, Any]:
    """Results with what surrounds them, the hash of every artefact and, last, their own."""
    whole = finite({**results, "environment": environment, "timings": timings, "files": files})
    return {**whole, "sha256": sha256(whole)}


def verify(path: str | Path) -> list[str]:
    """What does not hold in a run directory; empty when everything does. Raises OutputError when it is none."""
    directory = RunDirectory.read(path)
    results = read_json(directory.path / "results.json")
    if not isinstance(results, dict):
        return ["results.json is not a JSON object"]
    faults = []
    if results.get("protocol_sha256") != directory.protocol_sha256:
        faults.append("protocol.json is not the protocol that results.json was made under")
    if sha256({k: v for k, v in results.items() if k != "sha256"}) != results.get("sha256"):
        faults.append("results.json was changed after it was written (its own hash does not hold)")
    faults += _changed_files(directory, results.get("files") or {})
    try:
        faults += _differences(assemble(directory), results, "results.json")
        for seed in directory.protocol["seeds"]:
            faults += _selection_faults(directory, seed)
        for path in sorted(directory.path.glob("evaluations/*/comparison.json")):
            name = path.relative_to(directory.path).as_posix()
            faults += _differences(pairing.compare(directory, path.parent), directory.load(path), name)
    except RhumblineError as error:
        faults.append(str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        faults.append(f"the run cannot be recomputed: {type(error).__name__}: {error}")
    return faults


def _changed_files(directory: RunDirectory, recorded: Mapping[str, str]) -> list[str]:
    found = directory.manifest()
    gone = [f"{name} is missing" for name in sorted(recorded.keys() - found.keys())]
    changed = [f"{n} was changed (sha256 differs)" for n in sorted(recorded) if n in found and found[n] != recorded[n]]
    # Analyses may add files later; the seeds' own artefacts may not change in number.
    extra = [n for n in sorted(found.keys() - recorded.keys()) if n.startswith("seed-")]
    return [*gone, *changed, *(f"{name} was not there when the run ended" for name in extra)]


def _selection_faults(directory: RunDirectory, seed: int) -> list[str]:
    name = f"seed-{seed}/selection.json"
    selection = directory.read_record(Selection, seed)
    if not selection.candidates:
        return []
    rule = SelectionRule(**directory.protocol["selection"])
    if not selection.has_room:
        rule = rule.without_induce_and_kl()
    # The layer cut is the rule's own; other reasons (no difference, not needed) were recorded while scoring.
    table = [replace(row, discarded=_kept_reason(row)) for row in selection.candidates]
    result = choose(table, directory.protocol["model"]["n_layers"], rule)
    again, recorded = (
        None if row is None else (int(row.position), row.layer) for row in (result.selected, selection.selected)
    )
    faults = []
    if again != recorded:
        faults.append(f"{name}: the rule selects {again} from the scores, the file contains {recorded}")
    if result.survivors != selection.survivors:
        faults.append(f"{name}: {result.survivors} candidates survive the rule, the file states {selection.survivors}")
    return faults


def _kept_reason(row: Candidate) -> Discard | None:
    return row.discarded if None in (row.bypass, row.induce, row.kl) else None


def _differences(expected: Any, found: Any, at: str) -> list[str]:
    """Places where `found` does not say what was recomputed; fields that were not recomputed are left alone."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [d for key, value in expected.items() for d in _differences(value, found.get(key), f"{at}: {key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [
            d for i, value in enumerate(expected) for d in _differences(value, found[i], f"{at}[{_name(value, i)}]")
        ]
    if finite(expected) == found:
        return []
    return [f"{at} says {_brief(found)}, the rows say {_brief(expected)}"]


def _name(value: Any, index: int) -> str:
    if isinstance(value, dict):
        for keys in (("arm", "set"), ("name",), ("seed",)):
            if all(k in value for k in keys):
                return "/".join(str(value[k]) for k in keys)
    return str(index)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
