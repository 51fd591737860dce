"""A published model run again, and its figures beside the published ones; or a look at whether it could be run.

Promises: a figure is compared only with the published one of the same name, with the tolerance that is stated; what was
not measured is told as such. Does not know how a run is done.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rhumbline.errors import RhumblineError
from rhumbline.judging.judgements import SUMMARY
from rhumbline.models.chat import Chat
from rhumbline.presets.published import Published
from rhumbline.prompts import named_sets as data
from rhumbline.records.directory import RunDirectory
from rhumbline.records.files import read_json

TOLERANCE = 0.10
"""Of a rate: two samples of 100 prompts at one rate differ by more in about one of twenty cases below 0.15 and above
0.85, and in one of six near one half."""
LAYERS = 2
"""Of the selected layer: neighbouring candidates score nearly alike (the shipped run differs from the table)."""

Row = dict[str, Any]


# -- before ----------------------------------------------------------------------------------------------------------


def checks(published: Published, source: str | None = None, data_dir: str | Path | None = None) -> list[Row]:
    """Everything that can be looked at without weights: [{"what", "ok": True | False | None, "told"}].

    None is what could not be looked at from here (nothing is cached, and no directory was given).
    """
    rows = [*_tokenizer_checks(published, source or published.hub), *_data_checks(published, data_dir)]
    need = published.hardware()
    told = (
        f"estimated: {need['disk_gib']} GiB on disk, {need['memory_gib']} GiB of GPU memory in bfloat16, "
        f"about {need['gpu_hours']} hours on an H100"
    )
    return [*rows, {"what": "hardware", "ok": None, "told": told}]


def _tokenizer_checks(published: Published, source: str) -> list[Row]:
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    # The hub's errors have no common base, and code that comes with a model is not run here.
    except (OSError, ValueError, ImportError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [{"what": "tokenizer", "ok": None, "told": f"{source} is not here: {first[:160]}"}]
    layers = config.get_text_config().num_hidden_layers
    rows = [_same("layers", layers, published.layers)]
    try:
        chat = Chat.of(tokenizer, published.protocol().chat)
    except RhumblineError as error:
        return [*rows, {"what": "chat template", "ok": False, "told": str(error)}]
    if published.positions is not None:
        rows.append(_same("post-instruction positions", len(chat.positions), published.positions))
    if published.token_ids:
        found = tuple(chat.first_token(text) for text in published.refusal_tokens)
        rows.append(_same(f"ids of refusal tokens {', '.join(published.refusal_tokens)}", found, published.token_ids))
    return rows


def _data_checks(published: Published, data_dir: str | Path | None) -> list[Row]:
    rows = []
    for name in data.recipes()[published.contrast].sources:
        declared = data.source(name)
        try:
            found = data.load(declared, data_dir).provenance
        except RhumblineError as error:
            rows.append({"what": f"data {name}", "ok": False, "told": str(error)})
            continue
        told = f"{found['rows']} rows of {declared.rows} expected, from {found['from']}"
        rows.append({"what": f"data {name}", "ok": found["as_expected"], "told": told})
    return rows


def _same(what: str, found: Any, expected: Any) -> Row:
    return {"what": what, "ok": found == expected, "told": f"{found}, published {expected}"}


# -- after -----------------------------------------------------------------------------------------------------------


def compare(published: Published, path: str | Path) -> list[Row]:
    """The run's figures beside the published ones: [{"what", "seed", "found", "published", "tolerance", "agrees"}].

    `agrees` is None where the run has no such figure: safety scores need `rhumbline judge RUN --judge
    llamaguard-2-arditi2024`.
    """
    directory = RunDirectory.read(path)
    results = read_json(directory.path / "results.json")
    rows: list[Row] = []
    for seed in results["seeds"]:
        number, cell = seed["seed"], seed["selected"]
        site = None if cell is None else (cell["position"], cell["layer"])
        tied = [(t["position"], t["layer"]) for t in seed["tied"]]
        for expected in published.sites():
            near = site is not None and site[0] == expected[0] and abs(site[1] - expected[1]) <= LAYERS
            told = f"layer within {LAYERS}, or tied"
            rows.append(_row("selected (position, layer)", number, site, expected, told, near or expected in tied))
        if published.selected_layer is not None:
            layer = None if site is None else site[1]
            near = layer is not None and abs(layer - published.selected_layer) <= LAYERS
            rows.append(_row("selected layer", number, layer, published.selected_layer, f"within {LAYERS}", near))
        found = _rates(seed["arms"]) | _safety(directory, number)
        for name, expected in published.rates.items():
            value = found.get(name)
            agrees = None if value is None else abs(value - expected) <= TOLERANCE + 1e-9
            rows.append(_row(name.replace("_", " "), number, value, expected, f"within {TOLERANCE:g}", agrees))
    if published.verdict is not None:
        same = results["verdict"] == published.verdict
        rows.append(_row("verdict", None, results["verdict"], published.verdict, "the same", same))
    return rows


def _row(what: str, seed: int | None, found: Any, published: Any, tolerance: str, agrees: bool | None) -> Row:
    return {
        "what": what,
        "seed": seed,
        "found": found,
        "published": published,
        "tolerance": tolerance,
        "agrees": agrees,
    }


def _rates(arms: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    by = {(a["arm"], a["set"]): a["rate"] for a in arms if a["rate"] is not None}
    controls = [k for k in by if k[0].startswith("null:isotropic:0:")]
    names = {
        "harmful_baseline_refusal": ("baseline", "positive"),
        "harmful_ablation_refusal": ("ablation", "positive"),
        "harmless_baseline_refusal": ("baseline", "negative"),
        "harmless_addition_refusal": ("addition", "negative"),
        **{f"{'harmful' if side == 'positive' else 'harmless'}_control_refusal": (arm, side) for arm, side in controls},
    }
    return {name: by[place] for name, place in names.items() if place in by}


def _safety(directory: RunDirectory, seed: int) -> dict[str, float]:
    path = directory.path / SUMMARY
    judge = read_json(path)["judges"].get("llamaguard-2-arditi2024") if path.is_file() else None
    rows = [] if judge is None else [r for r in judge["rows"] if (r["seed"], r["set"]) == (seed, "positive")]
    return {f"harmful_{r['arm']}_safety": r["safety_score"] for r in rows if r["safety_score"] is not None}
