import pytest

from make_styled import TOPICS, texts
from rhumbline.errors import ProtocolError
from rhumbline.judging.style_classifier import FOLDS, ClassifierJudge, fit, fold_of
from rhumbline.records.shared import ByLabel


def test_the_classifier_separates_style_on_held_out_topics_and_not_the_topics_themselves():
    pytest.importorskip("sklearn")
    (styled, a), (plain, b) = texts(64, True), texts(64, False)
    classifier, record = fit(styled, plain, ByLabel(a, b))
    assert record.auroc > 0.95
    assert ClassifierJudge(classifier, "boats")(styled[0]).cls == "shown"
    # Classes that differ in their topics only are not separated on held-out topics.
    boats = [t for t, topic in zip(plain, b, strict=True) if topic in TOPICS[:4]]
    rest = [t for t, topic in zip(plain, b, strict=True) if topic in TOPICS[4:]]
    topics = ByLabel([x for x in b if x in TOPICS[:4]], [x for x in b if x in TOPICS[4:]])
    assert fit(boats, rest, topics)[1].auroc < 0.9
    assert {fold_of(t) for t in TOPICS} <= set(range(FOLDS))
    with pytest.raises(ProtocolError, match="several topics"):
        fit(styled, plain, ByLabel([None] * 64, [None] * 64))
