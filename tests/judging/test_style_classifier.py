import random

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


def test_function_words_see_a_register_and_no_content():
    rng = random.Random(2)
    topics = [f"topic {i % 10}" for i in range(60)]
    nouns = ("bread", "boats", "lamps", "goats", "rain")
    plain = [f"{rng.choice(nouns)} need {rng.choice(nouns)} here" for _ in topics]
    formal = [f"you may well find that {rng.choice(nouns)} would need {rng.choice(nouns)}" for _ in topics]
    content = [f"violins need {rng.choice(nouns)} here" for _ in topics]
    both = ByLabel(topics, topics)
    assert fit(formal, plain, both, "function words")[1].auroc == 1.0
    assert fit(content, plain, both, "function words")[1].auroc == pytest.approx(0.5, abs=0.15)
    assert fit(content, plain, both)[1].auroc > 0.9  # characters see it
