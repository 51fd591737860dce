"""The style classifier: training texts with labels and topics -> the probability of the style of a text.

Guarantees: a text of a known topic is scored by a model that was fitted on other topics only, so the score does not
depend on content. Character n-grams are hashed, and function words are a fixed list: a fitted model is one vector per
fold and holds no text. Needs scikit-learn (extra `style`). Independent of the origin of the texts.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from rhumbline.errors import ModelError, ProtocolError
from rhumbline.evidence.statistics import auroc, finite_or_none
from rhumbline.judging.degeneration import degeneration
from rhumbline.judging.normal_text import normal_form
from rhumbline.judging.score import Score
from rhumbline.judging.text_style import words
from rhumbline.records.shared import ByLabel, ClassifierFit

FEATURES = 2**13
"""Hash buckets of the character n-grams."""
Features = Literal["characters", "function words"]
"""What a classifier reads: character n-grams of 2 to 5 characters, or the shares of function words, without content."""
FUNCTION_WORDS = (
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because", "been", "before",
    "but", "by", "can", "could", "do", "does", "for", "from", "had", "has", "have", "he", "her", "here", "him",
    "his", "how", "i", "if", "in", "into", "is", "it", "its", "just", "like", "may", "me", "might", "more", "most",
    "much", "must", "my", "no", "not", "of", "on", "one", "or", "other", "our", "out", "over", "please", "quite",
    "rather", "really", "shall", "she", "should", "so", "some", "such", "than", "that", "the", "their", "them",
    "then", "there", "these", "they", "this", "those", "through", "to", "too", "under", "up", "us", "very", "was",
    "we", "well", "were", "what", "when", "where", "which", "while", "who", "will", "with", "would", "yes", "you",
    "your",
)  # fmt: skip
"""English words that carry grammar and stance rather than content."""
FOLDS = 5
"""Groups of topics; a text is scored by the model that was fitted without its group."""


@dataclass(frozen=True)
class Classifier:
    """Logistic regressions on hashed character n-grams, one for each held-out group of topics."""

    weights: Float[np.ndarray, "fold feature"]
    intercepts: Float[np.ndarray, " fold"]
    features: Features = "characters"

    def score(self, text: str, topic: str | None) -> float:
        """Probability that a text of this topic belongs to the positive class."""
        fold = fold_of(topic)
        value = float((_features([text], self.features) @ self.weights[fold])[0] + self.intercepts[fold])
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))


@dataclass(frozen=True)
class ClassifierJudge:
    """The classifier as a judge of texts on one topic."""

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
    """The group of a topic, by its hash. Texts without a topic share one group."""
    return int(hashlib.sha256((topic or "").encode()).hexdigest(), 16) % FOLDS


def fit(
    positive: Sequence[str],
    negative: Sequence[str],
    topics: ByLabel[Sequence[str | None]],
    features: Features = "characters",
) -> tuple[Classifier, ClassifierFit]:
    """The classifier, and how well it separates training texts of held-out topics.

    Raises ProtocolError if the training texts of some fold lack a class.
    """
    texts = [*positive, *negative]
    labels = np.array([1] * len(positive) + [0] * len(negative))
    folds = np.array([fold_of(topic) for topic in (*topics.positive, *topics.negative)])
    if len(set(folds.tolist())) < 2:
        raise ProtocolError(
            "the style classifier has training texts of one topic: it needs several topics (column `category`), so "
            "that held-out ones can be scored. Add categories, or set text_score.classifier = false in an experiment "
            "file."
        )
    table = _features(texts, features)
    weights, intercepts = np.zeros((FOLDS, table.shape[1])), np.zeros(FOLDS)
    held = np.full(len(texts), math.nan)
    for fold in range(FOLDS):
        rest = folds != fold
        if len(set(labels[rest].tolist())) < 2:
            raise ProtocolError(
                "the style classifier: one group of topics contains all texts of a class. Add texts of more topics."
            )
        model = _regression().fit(table[rest], labels[rest])
        weights[fold], intercepts[fold] = model.coef_[0], model.intercept_[0]
        if (~rest).any():
            held[~rest] = model.decision_function(table[~rest])
    separation = finite_or_none(auroc(held[labels == 1], held[labels == 0]))
    return Classifier(weights, intercepts, features), ClassifierFit(separation, len(texts), len(set(folds.tolist())))


def _features(texts: Sequence[str], kind: Features) -> Any:
    text = _sklearn().feature_extraction.text
    if kind == "characters":
        vectors = text.HashingVectorizer(
            analyzer="char_wb", ngram_range=(2, 5), n_features=FEATURES, norm="l2", alternate_sign=True
        )
        return vectors.transform(map(normal_form, texts))
    of_texts = [words(t) for t in texts]
    counts = np.array([[of_text.count(word) for word in FUNCTION_WORDS] for of_text in of_texts], float)
    return 10 * counts / np.array([[max(1, len(of_text))] for of_text in of_texts])


def _regression() -> Any:
    return _sklearn().linear_model.LogisticRegression(C=10.0, max_iter=1000)


def _sklearn() -> Any:
    try:
        import sklearn.feature_extraction.text
        import sklearn.linear_model
    except ImportError as error:
        raise ModelError(
            "the style classifier needs scikit-learn, which is not installed. Run pip install 'rhumbline[style]', or "
            "set text_score.classifier = false in an experiment file."
        ) from error
    return sklearn
