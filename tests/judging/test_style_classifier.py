"""The classifier of a style: it reads style on topics that it was not fitted on, and no topic."""

import pytest

from make_styled import TOPICS, texts
from rhumbline.errors import ProtocolError
from rhumbline.judging.style_classifier import FOLDS, ClassifierJudge, fit, fold_of


def test_the_classifier_knows_style_on_topics_that_it_did_not_see():
    pytest.importorskip("sklearn")
    (styled, a), (plain, b) = texts(64, True), texts(64, False)
    classifier, record = fit(styled, plain, (a, b))
    assert record["auroc"] > 0.95
    assert ClassifierJudge(classifier, "boats")(styled[0]).cls == "shown"
    # Classes that differ in their topics only: left-out topics are guessed at.
    boats = [t for t, topic in zip(plain, b, strict=True) if topic in TOPICS[:4]]
    rest = [t for t, topic in zip(plain, b, strict=True) if topic in TOPICS[4:]]
    topics = ([x for x in b if x in TOPICS[:4]], [x for x in b if x in TOPICS[4:]])
    assert fit(boats, rest, topics)[1]["auroc"] < 0.9
    assert {fold_of(t) for t in TOPICS} <= set(range(FOLDS))
    with pytest.raises(ProtocolError, match="several topics"):
        fit(styled, plain, ([None] * 64, [None] * 64))
