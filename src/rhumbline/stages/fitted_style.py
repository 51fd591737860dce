"""The judges of a continuous score as read from disk: a score, the content and the form of a completion.

Independent of how the judges were fitted, and of directions and arms.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rhumbline.judging.score import TextJudge
from rhumbline.judging.style_classifier import Classifier, ClassifierJudge
from rhumbline.judging.text_style import MarkerJudge, content_kept
from rhumbline.prompts.contrasts import Prompt
from rhumbline.records.outcome_rows import TextForm
from rhumbline.records.seed_files import StyleJudges


@dataclass(frozen=True)
class StyleReadout:
    """What is recorded with the score of a completion."""

    content: float | None
    """Share of the content that the completion has, 0 to 1; None if there is nothing to compare with."""
    form: TextForm
    marker_share: float | None
    """Share of the words inside markers; None: unscored."""
    classifier: float | None
    """Probability of the behaviour; None without a classifier."""


@dataclass(frozen=True)
class FittedStyle:
    """The judges of one seed, and the content overlap of unrelated texts."""

    markers: MarkerJudge
    classifier: Classifier | None
    chance: float
    """Mean content overlap of training texts on different prompts."""
    main: str
    """The judge that gives the score: `markers` or `classifier`."""

    @classmethod
    def of(cls, record: StyleJudges, tensors: Mapping[str, Tensor], main: str) -> "FittedStyle":
        """The judges from style.json and the tensors of classifier.safetensors (empty without a classifier)."""
        classifier = None
        if tensors:
            classifier = Classifier(tensors["weights"].numpy(), tensors["intercepts"].numpy())
        return cls(MarkerJudge(tuple(m.phrase for m in record.markers)), classifier, record.chance, main)

    def judge(self, topic: str | None) -> TextJudge:
        """The judge of a completion about this topic."""
        if self.main == "classifier":
            assert self.classifier is not None
            return ClassifierJudge(self.classifier, topic)
        return self.markers

    def content(self, text: str, baseline: str, prompt: Prompt) -> float:
        """Share of the content of the baseline completion (or of the known answer) that a completion has."""
        return content_kept(self.markers, text, baseline, prompt.answer, self.chance)

    def readout(self, text: str, baseline: str | None, prompt: Prompt) -> StyleReadout:
        """Content, form and the values of both judges. `baseline` is None if the baseline completion has no answer."""
        classifier = None
        if self.classifier is not None:
            classifier = ClassifierJudge(self.classifier, prompt.category)(text).value
        shape = self.markers.form(text)
        has_content = baseline is not None or prompt.answer is not None
        content = self.content(text, baseline or "", prompt) if has_content else None
        return StyleReadout(content, shape, self.markers(text).value, classifier)
