"""Synthetic run directories of schema 1: plausible numbers, no model.

python tests/make_run.py DIR [--layers 10] [--positions 5] [--seeds 2] [--draws 8] [--families 2] [--verdict V]
                                 [--hostile] [--no-candidate] [--discover]
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;\u202e\u2028\'"`${x}'
SUFFIX = ["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n", "<|start_header_id|>", "<|end_header_id|>", "\n\n"]
REPRODUCES, NO_BASELINE, NOT_SINGLE = "SINGLE-DIRECTION-REPRODUCES", "NO-BASELINE-REFUSAL", "NOT-SINGLE-DIRECTION"
NO_CANDIDATE = "no candidate passed: 50 of 50 discarded"
SENTENCES = {
    REPRODUCES: "One direction is sufficient to move refusal on this model: ablation suppresses it and addition "
    "induces it, beyond every margin of the rule and every null family.",
    NOT_SINGLE: "The selected direction did not move refusal by the margins of the rule.",
    NO_BASELINE: "The model refuses too few positive prompts for a suppression to be measurable.",
}


def _write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _wilson(rate: float, n: int) -> tuple[float, float]:
    z = 1.96
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(0, centre - half)), float(min(1, centre + half))


def _protocol(seeds, layers, positions, draws, families, behaviour, mode, text) -> dict:
    suffix = [text or token for token in SUFFIX[:positions]]
    name = text or "/models/organisms/refusal-qwen2-10x96"
    return {
        "schema": 1,
        "preset": "rhumbline",
        "behaviour": behaviour,
        "model": {
            "name": name,
            "class": "Qwen2ForCausalLM",
            "model_type": "qwen2",
            "fingerprint": "9f" * 32,
            "n_layers": layers,
            "d_model": 96,
            "dtype": "bfloat16",
            "mode": mode,
        },
        "chat": {
            "template_sha256": "ab" * 32,
            "system": text,
            "enable_thinking": None,
            "date": None,
            "template_kwargs": {},
            "prefix": [1, 2],
            "suffix": list(range(positions)),
            "suffix_tokens": suffix,
            "positions": list(range(-positions, 0)),
        },
        "contrast": {"name": text or "organism-refusal", "sha256": "cd" * 32, "duplicates": 0},
        "sizes": {"train": 128, "val": 32, "test": 100},
        "seeds": list(seeds),
        "extraction": {"batch": 32, "accumulate": "float64"},
        "selection": {"name": "arditi2024", "max_layer_share": 0.8, "max_kl": 0.1, "min_induce": 0.0},
        "nulls": {"families": list(families), "draws": draws},
        "judge": text or "refusal-opening",
        "max_new_tokens": 64,
        "addition": {"coefficient": 1.0, "positions": "all"},
        "rule": {
            "name": "rhumbline",
            "min_baseline": 0.5,
            "min_drop": 0.5,
            "min_gap": 0.25,
            "families": list(families),
        },
        "versions": {"torch": "2.9.1", "transformers": "5.17.0"},
    }


def _candidates(rng, layers, positions, best, survive: bool) -> list[dict]:
    rows = []
    cut = int(0.8 * layers)
    for position in range(-positions, 0):
        for layer in range(layers):
            near = np.exp(-(((layer - best) / (0.18 * layers)) ** 2)) * (1 - 0.13 * abs(position + 1) % 0.8)
            bypass = 6.1 - 14 * near + rng.normal(0, 0.7)
            induce = -7 + 12 * near + rng.normal(0, 0.7) - (0 if survive else 9)
            kl = (
                0.02
                + 0.4 * max(0.0, layer / layers - 0.45) ** 2
                + 0.1 * near * rng.random()
                + (0.5 if layer == 0 else 0)
            )
            reason = None
            if layer >= cut:
                reason = f"layer >= int(0.8 * {layers})"
            elif kl > 0.1:
                reason = "kl > 0.1"
            elif induce < 0:
                reason = "induce < 0"
            skipped = layer >= cut
            rows.append(
                {
                    "position": position,
                    "layer": layer,
                    "bypass": None if skipped else float(bypass),
                    "induce": None if skipped else float(induce),
                    "kl": None if skipped else float(kl),
                    "norm": float(2 + layer**1.3),
                    "discarded": reason,
                }
            )
    return rows


def _grid(rng, layers, positions, best) -> list[dict]:
    rows = []
    for position in range(-positions, 0):
        for layer in range(layers):
            rise = 1 / (1 + np.exp(-(layer - 0.5 * best) / (0.08 * layers)))
            auroc = float(np.clip(0.5 + (0.5 - 0.05 * abs(position + 1)) * rise + rng.normal(0, 0.01), 0, 1))
            rows.append(
                {
                    "position": position,
                    "layer": layer,
                    "auroc": auroc,
                    "cosine": float(0.99 - 0.5 * rise * rng.uniform(0.8, 1)),
                    "norm": float(1.5 + layer**1.3 * rng.uniform(0.9, 1.1)),
                }
            )
    return rows


def _arm(arm: str, which: str, rate: float, n: int, metric: float | None) -> dict:
    low, high = _wilson(rate, n)
    degenerate = 0.04 if arm == "addition" else 0.0
    return {
        "arm": arm,
        "set": which,
        "n": n,
        "rate": rate,
        "low": low,
        "high": high,
        "degenerate": degenerate,
        "unscored": 0,
        "metric": metric,
    }


def _arms(rng, n, verdict, families, draws) -> tuple[list[dict], list[dict]]:
    baseline = 0.4 if verdict == NO_BASELINE else 0.98
    arms = [_arm("baseline", "positive", baseline, n, 6.1), _arm("baseline", "negative", 0.03, n, -7.0)]
    if verdict == NO_BASELINE:
        return arms, []
    strong = verdict == REPRODUCES
    arms += [
        _arm("ablation", "positive", 0.04 if strong else 0.61, n, -5.2),
        _arm("ablation", "negative", 0.0, n, -7.4),
        _arm("addition", "negative", 0.91 if strong else 0.33, n, 4.4),
    ]
    nulls = []
    for family in families:
        for draw in range(draws):
            spread = 0.02 if family == "isotropic" else 0.12
            cosine = float(rng.normal(0, 0.06 if family == "isotropic" else 0.16))
            down = float(np.round(np.clip(baseline - abs(rng.normal(0, spread)) - 0.4 * abs(cosine), 0, 1) * n) / n)
            up = float(np.round(np.clip(0.03 + abs(rng.normal(0, spread)) + 0.5 * max(cosine, 0), 0, 1) * n) / n)
            arms.append(_arm(f"null:{family}:{draw}:ablation", "positive", down, n, None))
            arms.append(_arm(f"null:{family}:{draw}:addition", "negative", up, n, None))
            nulls.append({"family": family, "draw": draw, "cosine": cosine})
    return arms, nulls


def _effects(arms, families, draws, n) -> list[dict]:
    rates = {(a["arm"], a["set"]): a["rate"] for a in arms}
    effects = []
    for name, arm, which, sign in [
        ("suppression", "ablation", "positive", 1),
        ("induction", "addition", "negative", -1),
    ]:
        drop = sign * (rates["baseline", which] - rates[arm, which])
        null = {
            f: [sign * (rates["baseline", which] - rates[f"null:{f}:{d}:{arm}", which]) for d in range(draws)]
            for f in families
        }
        effects.append(
            {
                "name": name,
                "drop": drop,
                "low": drop - 0.06,
                "high": min(1.0, drop + 0.05),
                "n": n,
                "gap": {f: drop - float(np.mean(v)) for f, v in null.items()},
                "p": {f: (1 + sum(x >= drop for x in v)) / (1 + draws) for f, v in null.items()},
                "null": {f: {"draws": draws, "mean": float(np.mean(v)), "max": max(v)} for f, v in null.items()},
            }
        )
    return effects


def _seed(
    rng, seed, verdict, layers, positions, families, draws, candidate: bool, n, text
) -> tuple[dict, dict | None, dict | None]:
    best = int(0.45 * layers)
    early = verdict == NO_BASELINE
    rows = [] if early else _candidates(rng, layers, positions, best, candidate)
    kept = sorted((r for r in rows if r["discarded"] is None), key=lambda r: r["bypass"])
    site = {k: kept[0][k] for k in ("position", "layer", "norm")} if kept else None
    tied = [
        {k: r[k] for k in ("position", "layer", "bypass")} for r in kept[:3] if r["bypass"] - kept[0]["bypass"] < 0.5
    ]
    arms, nulls = (
        _arms(rng, n, verdict, families, draws) if (early or site) else _arms(rng, n, NO_BASELINE, families, draws)
    )
    counts = {s: {"positive": k, "negative": k} for s, k in (("train", 128), ("val", 32), ("test", n))}
    reason = (
        None
        if verdict == REPRODUCES
        else NO_CANDIDATE
        if not (candidate or early)
        else text or "baseline rate 0.40 < 0.50"
    )
    entry = {
        "seed": seed,
        "verdict": verdict,
        "reason": reason,
        "sentence": SENTENCES.get(verdict, verdict),
        "selected": site,
        "survivors": len(kept),
        "tied": tied,
        "n": counts,
        "near_duplicates": {"found": 2, "dropped": 2},
        "refusal_tokens": [{"id": 11, "text": text or "I"}, {"id": 12, "text": " As"}],
        "token_auroc": 0.99,
        "arms": arms,
        "effects": _effects(arms, families, draws, n) if site else [],
        "nulls": nulls,
    }
    if early:
        return entry, None, None
    selection = {
        "selected": site,
        "reason": None if site else NO_CANDIDATE,
        "survivors": len(kept),
        "tied": tied,
        "baseline": {"positive": 6.1, "negative": -7.0},
        "n": counts["val"],
        "candidates": rows,
    }
    if site is None:
        return entry, selection, None
    projections = [
        {"prompt_id": text or f"{label}-{i:03d}", "label": label, "projection": float(rng.normal(mean, 2.2))}
        for label, mean in (("positive", 9.0), ("negative", -3.0))
        for i in range(n)
    ]
    separation = {"n": counts["test"], "grid": _grid(rng, layers, positions, best), "projections": projections}
    return entry, selection, separation


def make_run(
    into: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    verdict: str = REPRODUCES,
    layers: int = 10,
    positions: int = 5,
    families: Sequence[str] = ("isotropic", "shuffled"),
    draws: int = 8,
    n: int = 100,
    candidate: bool = True,
    behaviour: str = "refusal",
    mode: str = "exact",
    hostile: bool = False,
) -> Path:
    """Write a run directory that looks like a real one; `hostile` puts markup into every free text."""
    text = HOSTILE if hostile else None
    protocol = _protocol(seeds, layers, positions, draws, families, behaviour, mode, text)
    sha256 = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    into.mkdir(parents=True, exist_ok=True)
    _write(into / "protocol.json", protocol)
    entries, stages = [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        entry, selection, separation = _seed(rng, seed, verdict, layers, positions, families, draws, candidate, n, text)
        entries.append(entry)
        for name, value in (("selection", selection), ("separation", separation)):
            if value is not None:
                _write(into / f"seed-{seed}" / f"{name}.json", {"schema": 1, "protocol_sha256": sha256, **value})
        stages += [
            {"stage": stage, "seed": seed, "seconds": seconds, "peak_memory_mb": memory}
            for stage, seconds, memory in (("extraction", 1.2, 700), ("selection", 8.4, 810), ("arms", 11.0, 930))
        ]
    _write(
        into / "results.json",
        {
            "schema": 1,
            "verdict": verdict,
            "reason": entries[0]["reason"],
            "sentence": text or SENTENCES.get(verdict, verdict),
            "rule": protocol["rule"],
            "model": protocol["model"],
            "protocol_sha256": sha256,
            "preset": protocol["preset"],
            "behaviour": behaviour,
            "seeds": entries,
            "environment": {
                "python": "3.11.7",
                "torch": "2.9.1",
                "transformers": "5.17.0",
                "rhumbline": "0.1.0",
                "platform": text or "Linux-6.1-x86_64",
                "device": "cpu",
                "threads": 2,
                "started": "2026-01-05T12:00:00Z",
            },
            "timings": {"total_seconds": 42.0, "stages": stages},
            "warnings": [text] if text else [],
        },
    )
    return into


def make_discover(into: Path, *, layers: int = 10, positions: int = 5, hostile: bool = False) -> Path:
    """Write what a `discover` run leaves: a protocol and the separation per layer and position."""
    protocol = _protocol([0], layers, positions, 0, [], "refusal", "exact", HOSTILE if hostile else None)
    into.mkdir(parents=True, exist_ok=True)
    _write(into / "protocol.json", protocol)
    grid = _grid(np.random.default_rng(0), layers, positions, int(0.45 * layers))
    _write(
        into / "discover.json",
        {
            "protocol_sha256": "ee" * 32,
            "seed": 0,
            "model": protocol["model"],
            "train": {"positive": 128, "negative": 128},
            "split": "val",
            "n": {"positive": 32, "negative": 32},
            "projections": [],
            "grid": grid,
        },
    )
    return into


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("into", type=Path)
    parser.add_argument("--verdict", default=REPRODUCES)
    for flag, default in (("layers", 10), ("positions", 5), ("seeds", 2), ("draws", 8), ("families", 2)):
        parser.add_argument(f"--{flag}", type=int, default=default)
    for flag in ("hostile", "no-candidate", "discover"):
        parser.add_argument(f"--{flag}", action="store_true")
    o = parser.parse_args()
    if o.discover:
        make_discover(o.into, layers=o.layers, positions=o.positions, hostile=o.hostile)
    else:
        names = ["isotropic", "shuffled", "covariance", "principal"][: o.families]
        make_run(
            o.into,
            seeds=range(o.seeds),
            verdict=o.verdict,
            layers=o.layers,
            positions=o.positions,
            draws=o.draws,
            families=names,
            candidate=not o.no_candidate,
            hostile=o.hostile,
        )
