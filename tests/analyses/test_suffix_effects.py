"""Effects of a suffix with a known effect, and of random suffixes."""

import numpy as np
import pytest

from rhumbline.analyses import suffix_effects
from rhumbline.analyses.suffix_texts import encoded, random_suffixes
from rhumbline.errors import InputError
from rhumbline.inference.interventions import BASELINE
from tolerances import rounding


def searched(subject, tokens=8, tries=30):
    """The best of some random suffixes on training prompts: a search by the test, not by the analysis."""
    prompts = subject.splits.get("train", "positive")[:4]
    like = " ".join(["cake"] * tokens)
    suffixes = random_suffixes(subject.chat, like, tries, 1)
    scorer = subject.scorer
    score = [float(scorer.read(encoded(subject.chat, prompts, s), [BASELINE]).metric.mean()) for s in suffixes]
    return suffixes[int(np.argmin(score))]


def test_a_selected_suffix_lowers_the_projection_more_than_random_ones(refusal):
    text = searched(refusal)
    record = suffix_effects.analyse(refusal, [text], prompts=16, heads=4)
    (effect,) = record.effects
    assert effect.projection.beyond_random.low > 0
    assert effect.metric.beyond_random.low > 0
    assert record.attribution.error < rounding()
    means = {c.name: c.projection.mean for c in record.conditions}
    assert means["negative"] < means["positive"]
    terms = record.attribution.terms()
    for name in ("positive", "negative", "suffix 1"):
        assert sum(t.means[name] for t in terms) == pytest.approx(means[name], abs=1e-2)
    for head in record.heads:
        for name, regions in head.attention.items():
            whole = (regions.before, regions.instruction, regions.suffix, regions.after)
            assert sum(r.mean for r in whole) == pytest.approx(1, abs=1e-3)
            assert (regions.suffix.mean > 0) is (name not in ("positive", "negative"))
    # The contrary case: a random suffix has the effect of other random suffixes.
    (other,) = suffix_effects.analyse(refusal, random_suffixes(refusal.chat, text, 1, 77), prompts=16).effects
    assert other.metric.beyond_random.mean < effect.metric.beyond_random.mean / 2


def test_zero_random_draws_are_refused(refusal):
    with pytest.raises(InputError, match="1 random draw or more"):
        suffix_effects.analyse(refusal, ["a"], draws=0)
