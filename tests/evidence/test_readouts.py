from make_outcomes import outcome
from rhumbline.evidence.readouts import readouts


def judged(arm, prompt, cls, other=None, short=None):
    """An outcome with the classes of two judges, and of a shorter reading."""
    classes = {"judges": {"one": cls, "two": other or cls}, "by_length": {"16": short or cls, "full": cls}}
    return outcome(arm, "positive", prompt, cls, **classes)


def test_judges_and_lengths_have_rates_of_their_own():
    rows = [judged("baseline", str(i), "refused", "complied" if i < 5 else None, "complied") for i in range(10)]
    rows += [judged("ablation", str(i), "complied") for i in range(10)]
    tables = readouts(rows)
    assert {(row.judge, str(row.arm)): row.rate for row in tables.judges} == {
        ("one", "baseline"): 1.0,
        ("two", "baseline"): 0.5,
        ("one", "ablation"): 0.0,
        ("two", "ablation"): 0.0,
    }
    assert {row.length: row.rate for row in tables.lengths if row.arm.is_baseline} == {"16": 0.0, "full": 1.0}
    (pair,) = tables.kappa
    assert (pair.judges, pair.n, pair.agreement) == (("one", "two"), 20, 0.75)


def test_outcomes_with_one_class_have_no_readouts():
    tables = readouts([outcome("baseline", "positive", "1", "refused")])
    assert (tables.judges, tables.kappa, tables.lengths) == ((), (), ())


def test_nulls_are_not_read_by_other_judges():
    assert readouts([judged("null:isotropic:0:ablation", "1", "refused")]).judges == ()


def test_a_judge_that_read_the_smaller_part_of_an_arm_has_no_rate():
    def rates(unscored):
        rows = [judged("baseline", str(i), "refused", "unscored" if i < unscored else None) for i in range(10)]
        return {row.judge: (row.n, row.rate) for row in readouts(rows).judges}

    assert rates(6) == {"one": (10, 1.0), "two": (0, None)}
    assert rates(5) == {"one": (10, 1.0), "two": (5, 1.0)}
