"""A classifier of style that never saw the topic it is asked about. Needs scikit-learn (extra `style`).

Promises: a text of a known topic is scored by a model fitted on training texts of other topics only, so that it cannot
score by content. Character n-grams are hashed, so a fitted model is one vector per fold and nothing of the texts is
kept. Knows texts, labels and topics; does not know where they come from.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from rhumbline.errors import ModelError, ProtocolError
from rhumbline.evidence.statistics import auroc
from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.score import Score

FEATURES = 2**13
FOLDS = 5
"""Groups of topics; a text is scored by the model that left its group out."""


@dataclass(frozen=True)
class Classifier:
    """Logistic regressions on hashed character n-grams, one for each left-out group of topics."""

    weights: Float[np.ndarray, "fold feature"]
    intercepts: Float[np.ndarray, " fold"]

    def score(self, text: str, topic: str | None) -> float:
        """Probability that a text of this topic is of the positive class."""
        fold = fold_of(topic)
        value = float((_features([text]) @ self.weights[fold])[0] + self.intercepts[fold])
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))


@dataclass(frozen=True)
class ClassifierJudge:
    """The classifier as a judge of texts of one topic."""

    classifier: Classifier
    topic: str | None

    def __call__(self, text: str) -> Score:
        """Judge one text; a degenerate one has the value 0."""
        broken = degeneration(text)
        if broken is not None:
            return Score(0.0, "degenerate", broken)
        value = self.classifier.score(text, self.topic)
        return Score(value, "shown" if value > 0.5 else "absent")


def fold_of(topic: str | None) -> int:
    """The group of a topic: by its hash, the same everywhere. Texts without a topic share one group."""
    return int(hashlib.sha256((topic or "").encode()).hexdigest(), 16) % FOLDS


def fit(
    positive: Sequence[str],
    negative: Sequence[str],
    topics: tuple[Sequence[str | None], Sequence[str | None]],
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier, and how well it tells training texts of left-out topics apart: {"auroc", "n", "folds"}.

    Raises ProtocolError where the topics do not leave both classes in every fold's rest.
    """
    texts = [*positive, *negative]
    labels = np.array([1] * len(positive) + [0] * len(negative))
    folds = np.array([fold_of(t) for side in topics for t in side])
    if len(set(folds.tolist())) < 2:
        raise ProtocolError(
            "the style classifier needs training texts of several topics (column `category`), to be scored on topics "
            "that it has not seen. Give categories, or set text_score.classifier = false in an experiment file."
        )
    features = _features(texts)
    weights, intercepts = np.zeros((FOLDS, FEATURES)), np.zeros(FOLDS)
    held = np.full(len(texts), math.nan)
    for fold in range(FOLDS):
        rest = folds != fold
        if len(set(labels[rest].tolist())) < 2:
            raise ProtocolError("the style classifier: a group of topics holds all texts of a class; give more topics.")
        model = _regression().fit(features[rest], labels[rest])
        weights[fold], intercepts[fold] = model.coef_[0], model.intercept_[0]
        if (~rest).any():
            held[~rest] = model.decision_function(features[~rest])
    apart = auroc(held[labels == 1], held[labels == 0])
    found = {"auroc": apart, "n": len(texts), "folds": len(set(folds.tolist()))}
    return Classifier(weights, intercepts), found


def _features(texts: Sequence[str]) -> Any:
    HashingVectorizer = _sklearn().feature_extraction.text.HashingVectorizer
    vectors = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), n_features=FEATURES, norm="l2", alternate_sign=True
    )
    return vectors.transform(texts)


def _regression() -> Any:
    return _sklearn().linear_model.LogisticRegression(C=10.0, max_iter=1000)


def _sklearn() -> Any:
    try:
        import sklearn.feature_extraction.text
        import sklearn.linear_model
    except ImportError as error:
        raise ModelError(
            "the style classifier needs scikit-learn: pip install 'rhumbline[style]', or leave it out with "
            "text_score.classifier = false in an experiment file."
        ) from error
    return sklearn
