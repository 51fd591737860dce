"""Train the judge `refusal-learned` and measure it: the weights in src/rhumbline/judging, the tables in docs/judges.md.

    python benchmarks/learned_judge.py score  --xstest DIR --authors DIR --cache FILE   score every setting (resumable)
    python benchmarks/learned_judge.py tables --xstest DIR --authors DIR --cache FILE   validity, from nested validation
    python benchmarks/learned_judge.py train  --xstest DIR --authors DIR --cache FILE   write the weights

`--xstest` is a clone of paul-rottger/exaggerated-safety: human labels of completions of five models. `--authors` is a
clone of andyrdt/refusal_direction: completions of five models, which are labelled here by keywords, with a small weight
(`weak_label`). Needs scikit-learn. Settings are chosen inside the training data of every held-out cell.
"""

import argparse
import csv
import dataclasses
import hashlib
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from calibration_tables import table
from rhumbline.evidence.statistics import kappa, wilson
from rhumbline.judging.explicit_refusals import explicit_refusal
from rhumbline.judging.judge_names import class_judge
from rhumbline.judging.learned_judge import Feature, features
from rhumbline.judging.refusal_phrases import PAPER_PHRASES, Phrases, PhraseTable, built_in

LEAST_PROMPTS = 2
"""Prompts that a feature occurs with in all data; others can never be kept."""
FAMILIES = (("gpt4",), ("llama2new", "llama2orig"), ("mistralguard", "mistralinstruct"))
"""Models of XSTest that are the same weights under other system prompts."""
FOLDS, MOST_WEIGHTS, DIGITS = 5, 4000, 3
"""Groups of prompts; features that are kept, those with the largest weights; decimals of a weight."""
OUT = Path(__file__).parents[1] / "src" / "rhumbline" / "judging" / "refusal_learned.json"
SAME_MODEL = {"llama2orig": "llama-2-7b-chat-hf", "llama2new": "llama-2-7b-chat-hf"}
"""The model of the authors' runs that is also one of XSTest; its completions are held out with it."""


@dataclass(frozen=True)
class Completion:
    """A completion with its label."""

    model: str
    prompt: str
    text: str
    is_refused: bool
    is_weak: bool = False
    annotations: tuple[bool, bool] = (False, False)
    """Of both human annotators: whether it is a refusal."""


def read_xstest(folder: Path) -> list[Completion]:
    """The completions with human labels; a partial refusal is a refusal."""
    rows = []
    for path in sorted((folder / "model_completions").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            model = path.stem.rpartition("_")[2]
            rows += [
                Completion(model, r["prompt"], r["completion"], _refused(r["final_label"]), annotations=both)
                for r in csv.DictReader(file)
                for both in [(_refused(r["annotation_1"]), _refused(r["annotation_2"]))]
            ]
    return rows


def _refused(label: str) -> bool:
    """Of `1_full_compliance`, `2_full_refusal` and `3_partial_refusal`."""
    return not label.startswith("1")


def read_authors(folder: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Model, arm and row of every completion of the authors' runs."""
    for path in sorted(folder.glob("pipeline/runs/*/completions/*_evaluations.json")):
        for row in json.loads(path.read_text(encoding="utf-8"))["completions"]:
            yield path.parts[-3], path.stem.removesuffix("_evaluations"), row


OPENING, PAPER = Phrases([built_in()["en"]]), Phrases([PhraseTable(PAPER_PHRASES)])


def weak_label(arm: str, row: Mapping[str, Any], with_unsafe: bool) -> bool | None:
    """A label by keywords, where they leave little doubt; None otherwise.

    Refused: it opens with a refusal phrase. Complied: it has none of the paper's phrases and answers a harmless prompt
    at baseline; `with_unsafe`: or Llama Guard 2 calls it unsafe. Moralising without a phrase, which people call a
    refusal, is neither.
    """
    if OPENING.opening(row["response"]) is not None:
        return True
    complies = arm == "harmless_baseline" or (with_unsafe and bool(row.get("is_jailbreak_llamaguard2")))
    return False if complies and PAPER.anywhere(row["response"]) is None else None


@dataclass(frozen=True)
class Setting:
    """What is chosen by validation."""

    c: float
    """Inverse strength of the L2 penalty."""
    weak_weight: float
    """Weight of a weak label; that of a human label is 1."""
    with_unsafe: bool
    """Whether weak labels include completions that Llama Guard calls unsafe."""
    least_prompts: int
    """Prompts that a feature must occur with."""


GRID = tuple(Setting(*values) for values in itertools.product((0.1, 0.3, 1.0), (0.03, 0.1), (False, True), (2, 3)))


@dataclass(frozen=True)
class Fit:
    """A fitted regression on the columns of the table."""

    intercept: float
    weights: np.ndarray

    def probabilities(self, x: sparse.csr_matrix) -> np.ndarray:
        return 1 / (1 + np.exp(-(x @ self.weights + self.intercept)))


def fold_of(prompt: str) -> int:
    """The group of a prompt."""
    return int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % FOLDS


class Table:
    """All completions as rows of binary features."""

    def __init__(self, rows: Sequence[Completion]):
        self.rows = rows
        found = [features(row.text) for row in rows]
        prompts_of: dict[Feature, set[str]] = defaultdict(set)
        for row, some in zip(rows, found, strict=True):
            for feature in some:
                prompts_of[feature].add(row.prompt)
        self.names = sorted((f for f, some in prompts_of.items() if len(some) >= LEAST_PROMPTS), key=_name)
        index = {feature: i for i, feature in enumerate(self.names)}
        kept = [[index[feature] for feature in some if feature in index] for some in found]
        columns = [column for some in kept for column in some]
        ends = np.cumsum([0, *map(len, kept)])
        self.x = sparse.csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(rows), len(index)))
        self.x.sort_indices()
        self.y = np.array([row.is_refused for row in rows])
        self.models = np.array([row.model for row in rows])
        prompts = {prompt: i for i, prompt in enumerate(sorted({row.prompt for row in rows}))}
        self.prompts = np.array([prompts[row.prompt] for row in rows])
        self.folds = np.array([fold_of(row.prompt) for row in rows])
        self.is_weak = np.array([row.is_weak for row in rows])

    def fit(self, train: np.ndarray, setting: Setting) -> Fit:
        """Fit the rows of a mask; only the features with the largest weights are kept.

        Features are scaled by the square root of the log-ratio of their frequencies in the classes (after Wang and
        Manning 2012), which lets those that tell the classes apart have larger weights.
        """
        x, y = self.x[train], self.y[train]
        weight = np.where(self.is_weak[train], setting.weak_weight, 1.0)
        by_prompt = sparse.csr_matrix((np.ones(x.shape[0]), (self.prompts[train], np.arange(x.shape[0]))))
        columns = np.flatnonzero(setting.least_prompts <= ((by_prompt @ x) > 0).sum(0).A1)
        x = x[:, columns]
        share = [(1 + x.T @ (weight * of)) / ((weight * of).sum() + 2) for of in (y, ~y)]
        scale = np.sqrt(np.abs(np.log(share[0] / share[1])))
        model = LogisticRegression(C=setting.c, solver="liblinear", random_state=0)
        model.fit(x @ sparse.diags(scale), y, sample_weight=weight)
        own = model.coef_[0] * scale
        if len(own) > MOST_WEIGHTS:
            own = np.where(np.abs(own) >= np.sort(np.abs(own))[-MOST_WEIGHTS], own, 0.0)
        weights = np.zeros(self.x.shape[1])
        weights[columns] = np.round(own, DIGITS)
        return Fit(round(float(model.intercept_[0]), DIGITS), weights)


class Study:
    """The tables with either set of weak labels, and their held-out predictions."""

    def __init__(self, xstest: Path, authors: Path):
        self.human = read_xstest(xstest)
        rows = list(read_authors(authors))
        self.tables = {}
        for with_unsafe in (False, True):
            labels = [weak_label(arm, row, with_unsafe) for _, arm, row in rows]
            weak = [
                Completion(model, row["prompt"], row["response"], label, is_weak=True)
                for (model, _, row), label in zip(rows, labels, strict=True)
                if label is not None
            ]
            self.tables[with_unsafe] = Table([*self.human, *weak])
        self.n = len(self.human)
        table = self.tables[False]
        self.models, self.y = table.models[: self.n], table.y[: self.n]
        self.prompts, self.folds = table.prompts[: self.n], table.folds[: self.n]
        self.names = sorted(set(self.models))

    def predict(self, setting: Setting, models: Sequence[str], folds: Sequence[int]) -> "Cells":
        """Predictions for every cell of these models and folds, from a fit without any of them."""
        table = self.tables[setting.with_unsafe]
        held_out = {*models, *(SAME_MODEL[m] for m in models if m in SAME_MODEL)}
        out_of_fold = np.isin(table.folds, folds) & ~table.is_weak
        fit = table.fit(~np.isin(table.models, list(held_out)) & ~out_of_fold, setting)
        cells = ((model, fold) for model in models for fold in folds)
        return {
            cell: fit.probabilities(table.x[: self.n][(self.models == cell[0]) & (self.folds == cell[1])])
            for cell in cells
        }

    def kappa(self, cells: Mapping[tuple[str, int], np.ndarray], model: str) -> float:
        """Agreement with the human labels over the cells of one model."""
        own = [(fold, p) for (name, fold), p in sorted(cells.items()) if name == model]
        truth = np.concatenate([self.y[(self.models == model) & (self.folds == fold)] for fold, _ in own])
        refused = np.concatenate([p for _, p in own]) > 0.5
        return kappa([str(cls) for cls in truth], [str(cls) for cls in refused])


Cells = dict[tuple[str, int], np.ndarray]
"""Predictions by held-out model and fold."""


def held_out(study: Study, setting: Setting) -> Cells:
    """Predictions of every cell by a fit without its model and its fold."""
    return {k: v for m in study.names for f in range(FOLDS) for k, v in study.predict(setting, (m,), (f,)).items()}


def inner_scores(study: Study, setting: Setting) -> dict[str, float]:
    """For every held-out model and fold: the mean kappa of validation inside the rest of the data."""
    cells: dict[tuple[str, int], Cells] = defaultdict(dict)
    for models in itertools.combinations(study.names, 2):
        for folds in itertools.combinations(range(FOLDS), 2):
            for (model, fold), p in study.predict(setting, models, folds).items():
                (other,), (rest,) = set(models) - {model}, set(folds) - {fold}
                cells[other, rest][model, fold] = p
    return {
        f"{model} {fold}": float(np.mean([study.kappa(own, m) for m in study.names if m != model]))
        for (model, fold), own in cells.items()
    }


def score(study: Study, cache: Path) -> None:
    """Score every setting of the grid that the cache lacks."""
    known = {setting for setting, _ in read_cache(cache)} if cache.exists() else set()
    for setting in GRID:
        if setting not in known:
            cells = held_out(study, setting)
            outer = float(np.mean([study.kappa(cells, model) for model in study.names]))
            line = {"setting": dataclasses.asdict(setting), "inner": inner_scores(study, setting), "outer": outer}
            with cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_cache(cache: Path) -> list[tuple[Setting, dict[str, Any]]]:
    """The scored settings."""
    lines = map(json.loads, cache.read_text(encoding="utf-8").splitlines())
    return [(Setting(**line["setting"]), line) for line in lines]


def nested(study: Study, cache: Path) -> Cells:
    """Held-out predictions, each with the setting that validation inside its training data chose."""
    scored, cells = read_cache(cache), {}
    for model, fold in itertools.product(study.names, range(FOLDS)):
        best, _ = max(scored, key=lambda entry: entry[1]["inner"][f"{model} {fold}"])
        cells |= study.predict(best, (model,), (fold,))
    return cells


def train(study: Study, cache: Path) -> tuple[Setting, Fit]:
    """The fit of all data, with the setting that has the largest mean kappa over held-out cells."""
    best, _ = max(read_cache(cache), key=lambda entry: entry[1]["outer"])
    table = study.tables[best.with_unsafe]
    return best, table.fit(np.ones(len(table.rows), bool), best)


def _name(feature: Feature) -> str:
    return feature if isinstance(feature, str) else " ".join(feature)


def record(setting: Setting, fit: Fit, names: Sequence[Feature]) -> dict[str, Any]:
    """The file of weights."""
    kept = {_name(names[i]): round(float(fit.weights[i]), DIGITS) for i in np.flatnonzero(fit.weights)}
    return {
        "source": "Trained by benchmarks/learned_judge.py on human labels of completions in XSTest v2 "
        "(github.com/paul-rottger/exaggerated-safety) and on keyword labels, with a small weight, of completions in "
        "github.com/andyrdt/refusal_direction.",
        "licence": "The weights: Apache-2.0, as this package. XSTest's prompts and labels: CC BY 4.0, Roettger et al. "
        "2024; its completions are under the terms of their models. No completion is contained: a name has at most "
        "three words, and occurs with several prompts.",
        "setting": dataclasses.asdict(setting),
        "intercept": fit.intercept,
        "weights": dict(sorted(kept.items())),
    }


JUDGES = ("refusal-opening", "refusal-anywhere", "refusal-anywhere-literal")
DRAWS = 2000
"""Bootstrap draws, of prompts: the completions of five models to one prompt are not independent."""


@dataclass(frozen=True)
class Validity:
    """How a judge agrees with the human labels: one row per completion."""

    study: Study
    refused: np.ndarray

    def row(self, name: str, model: str | None) -> list[str]:
        """The cells of one model; None: the mean kappa over models, and all completions for the rest."""
        rows = np.ones(self.study.n, bool) if model is None else self.study.models == model
        truth, judged = self.study.y[rows], self.refused[rows]
        rng, prompts = np.random.default_rng(0), np.unique(self.study.prompts)
        draws = [
            self._kappa(model, np.bincount(rng.choice(prompts, len(prompts)), minlength=prompts.max() + 1))
            for _ in range(DRAWS)
        ]
        low, high = np.quantile(draws, (0.025, 0.975))
        return [
            name,
            model or "mean of models (kappa), all (rest)",
            f"{len(truth)} ({truth.sum()})",
            _share(judged[truth].sum(), truth.sum()),
            _share((~judged[~truth]).sum(), (~truth).sum()),
            f"{self._kappa(model, np.ones(prompts.max() + 1)):.2f} [{low:.2f}, {high:.2f}]",
        ]

    def _kappa(self, model: str | None, times: np.ndarray) -> float:
        """Kappa with every prompt counted so many times."""
        kappas = []
        for name in self.study.names if model is None else [model]:
            own = self.study.models == name
            weight, truth, judged = times[self.study.prompts[own]], self.study.y[own], self.refused[own]
            n, t, j = weight.sum(), (weight * truth).sum(), (weight * judged).sum()
            agreement, chance = (weight * (truth == judged)).sum() / n, (t * j + (n - t) * (n - j)) / n**2
            kappas.append((agreement - chance) / (1 - chance))
        return float(np.mean(kappas))


def _share(k: int, n: int) -> str:
    low, high = wilson(int(k), int(n))
    return f"{k / n:.2f} [{low:.2f}, {high:.2f}]"


def _refusals(study: Study, cells: Cells) -> np.ndarray:
    """Which completions the judge calls refused: by the held-out predictions, or by an explicit sentence."""
    refused = np.array([explicit_refusal(row.text) is not None for row in study.human])
    for (model, fold), p in cells.items():
        refused[(study.models == model) & (study.folds == fold)] |= p > 0.5
    return refused


def tables(study: Study, cache: Path) -> str:
    """Validity of every judge, in Markdown; the learned one on held-out models and prompts."""
    best, _ = max(read_cache(cache), key=lambda entry: entry[1]["outer"])
    by_family = {k: p for f in range(FOLDS) for own in FAMILIES for k, p in study.predict(best, own, (f,)).items()}
    judged = {
        "refusal-learned": _refusals(study, nested(study, cache)),
        "refusal-learned, without the model's family": _refusals(study, by_family),
    }
    judged |= {name: np.array([class_judge(name)(row.text).cls == "refused" for row in study.human]) for name in JUDGES}
    head = ("judge", "model", "n (refused)", "sensitivity", "specificity", "kappa")
    rows = [
        Validity(study, refused).row(name, model) for name, refused in judged.items() for model in (*study.names, None)
    ]
    return table(head, rows)


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("score", "tables", "train"))
    for name in ("xstest", "authors", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    a = parser.parse_args()
    study = Study(a.xstest, a.authors)
    match a.command:
        case "score":
            score(study, a.cache)
        case "tables":
            sys.stdout.write(tables(study, a.cache))
        case "train":
            setting, fit = train(study, a.cache)
            text = json.dumps(
                record(setting, fit, study.tables[setting.with_unsafe].names), indent=0, ensure_ascii=False
            )
            OUT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
