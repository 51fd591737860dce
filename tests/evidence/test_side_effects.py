from make_outcomes import outcome
from rhumbline.evidence.side_effects import divergences, negative_rates, side_effects, text_losses
from rhumbline.records.arms import ArmId
from rhumbline.records.outcome_rows import DocumentLoss
from rhumbline.records.shared import Class


def loss(arm: str, document: str, tokens: int, nats: float, cls: Class | None = None) -> DocumentLoss:
    """The loss of one document under one arm; of a completion also its KL divergences."""
    kl = None if cls is None else (nats, 0.0)
    text = "text" if cls is None else "completions"
    return DocumentLoss(text=text, document=document, arm=ArmId.parse(arm), tokens=tokens, nats=nats, cls=cls, kl=kl)


def test_the_mean_is_weighted_by_tokens():
    rows = [
        loss("baseline", "a", 1, 1.0),
        loss("baseline", "b", 9, 9.0),
        loss("ablation", "a", 1, 11.0),
        loss("ablation", "b", 9, 9.0),
    ]
    base, ablation = text_losses("text", rows)
    assert base.ce == 1.0
    assert ablation.ce == 2.0  # the mean of the documents' own means would be 6
    assert ablation.change == 1.0
    assert ablation.low == 0.0  # both draws can be the document that did not change


def test_without_documents_there_are_no_rows():
    assert text_losses("text", []) == divergences([]) == ()
    assert side_effects([], []).losses == ()


def test_a_negative_that_is_refused_at_baseline_is_not_a_side_effect():
    rows = [
        loss("baseline", "a", 2, 1.0, "complied"),
        loss("baseline", "b", 2, 1.0, "refused"),
        loss("ablation", "a", 2, 1.0, "complied"),
        loss("ablation", "b", 2, 50.0, "refused"),
    ]
    tables = side_effects(rows, [])
    assert tables.left_out == 1
    assert [row.change for row in tables.losses] == [None, 0.0]
    assert tables.kl[0].documents == 1


def test_right_answers_are_compared_on_the_same_negatives():
    answers = {"baseline": (True, True, None, False), "ablation": (True, False, True, False)}
    rows = [
        outcome(arm, "negative", str(i), "complied", correct=correct)
        for arm, known in answers.items()
        for i, correct in enumerate(known)
    ]
    base, ablation = negative_rates(rows)
    assert (base.correct, base.correct_change, base.correct_n) == (2 / 3, 0.0, 3)
    assert (ablation.correct, ablation.correct_change, ablation.correct_n) == (1 / 3, -1 / 3, 3)
    assert (ablation.rate, ablation.change) == (0.0, 0.0)
    shares = [outcome("baseline", "negative", "1", "absent", correct=0.7)]
    assert negative_rates(shares)[0].correct_n == 0  # a share of content is not an answer
