"""Forecasts: the rows and tokens of every stage of a run, counted before it starts.

Counts that the protocol determines are exact. Those that the run determines (lazy selection, refits, refusal tokens)
have an expected number and an upper bound. All counts assume that a direction is selected, that the filter keeps every
prompt, and that every null family can be drawn. No stage runs here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rhumbline.inference.batching import CPU_TOKENS
from rhumbline.inference.first_order import ROWS_PER_PROMPT
from rhumbline.models.chat import Chat
from rhumbline.models.packing import shared_length
from rhumbline.prompts.contrasts import LABELS, SPLITS, Splits
from rhumbline.prompts.loss_texts import NO_TEXTS, LossTexts
from rhumbline.protocol import Protocol
from rhumbline.settings import COEFFICIENTS, SUBTRACTED_DRAWS
from rhumbline.stages.candidate_scores import PROBE_PROMPTS, PROBES
from rhumbline.stages.losses import Reading
from rhumbline.stages.null_directions import MORE_DRAWS
from rhumbline.stages.outcomes import draws_by_prompt
from rhumbline.stages.refits import CANDIDATES_AT_ONCE
from rhumbline.stages.second_direction import INDEPENDENCE_PROMPTS
from rhumbline.stages.second_gradient import CANDIDATES as GRADIENT_CANDIDATES
from rhumbline.stages.second_gradient import FIT_PROMPTS
from rhumbline.stages.seed_run import read_positions
from rhumbline.stages.stage_jobs import NULLS_PER_JOB
from rhumbline.stages.wide_nulls import KL_POOL, kl_prompts


class StageForecast(NamedTuple):
    """The counts of one stage of one seed, or their sums. A row is a prompt under an arm."""

    name: str
    rows: int
    """Expected number of rows."""
    most: int
    """Largest number of rows; equal to `rows` if the count is exact."""
    tokens: int
    """Prompt tokens of the expected rows, without prefix sharing."""
    written: int = 0
    """Largest number of generated tokens."""
    computed: int = 0
    """Prompt tokens of the expected rows with prefix sharing: shared tokens count once for each pass."""
    scored: int = 0
    """Tokens after which the logits of the whole vocabulary are read; elsewhere only those after the last token are."""


def forecast(
    chat: Chat,
    splits: Splits,
    protocol: Protocol,
    n_layers: int,
    texts: LossTexts = NO_TEXTS,
    *,
    is_16_bit: bool = False,
) -> list[StageForecast]:
    """The stages of one seed, in order. In 16 bits the rounding of scores is measured too."""
    n = splits.sizes()
    (tp, tn), (vp, vn), (ep, en) = ((n[s]["positive"], n[s]["negative"]) for s in ("train", "val", "test"))
    reads_texts = protocol.extraction.response_position is not None
    texts_of = splits.texts if reads_texts else splits.get
    # In a contrast of texts, both responses to a prompt are read if the contrast has both.
    train, test = (sum(len(texts_of(split, label)) for label in LABELS) for split in ("train", "test"))
    prompts = [chat.encode(p) for s in SPLITS for c in LABELS for p in splits.get(s, c)]
    length, share = _mean_length(prompts), _share_computed(prompts)
    read_length = length
    if reads_texts:
        read_length = _mean_length([chat.encode_text(p) for c in LABELS for p in splits.texts("train", c)])

    def stage(
        name: str, rows: int, most: int | None = None, writing: int = 0, texts: int = 0, *, shares: bool = True
    ) -> StageForecast:
        """`texts` of the rows are read with a response; `writing` of them generate.

        Without `shares` the rows share no prefix: they are padded, or few prompts are in a pack.
        """
        plain, read = (rows - texts) * length, texts * read_length
        written = writing * protocol.max_new_tokens
        most = rows if most is None else most
        computed = plain * (share if shares else 1.0) + read
        return StageForecast(name, rows, most, round(plain + read), written, round(computed))

    cells = len(read_positions(protocol.extraction, chat)) * protocol.selection.first_cut_layer(n_layers)
    nulls, dose, refits = protocol.nulls, protocol.dose, protocol.stability
    p_nulls, n_nulls = (
        len(nulls.families) * sum(map(len, draws_by_prompt(m, nulls.draws, protocol.completed, seed=0)))
        for m in (ep, en)
    )
    # Baseline, ablation and subtraction; few draws of each family are the nulls of the subtraction.
    subtracted = min(SUBTRACTED_DRAWS, nulls.draws) * min(ep, protocol.completed or ep)
    arms = 3 * ep + p_nulls + len(nulls.families) * subtracted + 4 * en + n_nulls
    stages = [
        _refusal_tokens(protocol, tp, tn, stage),
        stage("extraction", train + vp + vn, texts=train),
        _selection(protocol, cells, vp, vn, stage, is_16_bit=is_16_bit),
        _nulls(protocol, cells, train, vp + vn, stage),
        stage("arms", arms, writing=arms),
    ]
    if nulls.wide:
        stages.append(_wide(protocol, ep, en, stage))
    if dose.strengths or dose.coefficients:
        stages.append(_dose(protocol, ep, en, stage))
    if refits.refits:
        stages.append(_stability(protocol, train, vp, vn, stage))
    if protocol.second.screen:
        tested = sum(2 * min(n, m) for n in (protocol.second.prompts, nulls.prompts) for m in (ep, en))
        stages.append(_second(protocol, cells, tp, vp, vn, tested, stage, is_16_bit=is_16_bit))
    stages.append(stage("separation", test, texts=test))
    stages += _losses(chat, splits, protocol, texts, length)
    rows = 2 * ep + p_nulls + 3 * en + n_nulls
    return [*stages, *(stage(f"condition {name}", rows, writing=rows) for name in protocol.conditions)]


def _mean_length(sequences: Sequence[Sequence[int]]) -> float:
    return sum(map(len, sequences)) / max(1, len(sequences))


def _share_computed(sequences: Sequence[Sequence[int]]) -> float:
    """Share of the tokens that are computed if packs compute the tokens that all prompts share once."""
    if not sequences:
        return 1.0
    shared, length = shared_length(sequences), _mean_length(sequences)
    own = max(1.0, length - shared)
    return (own + shared / max(1, (CPU_TOKENS - shared) // own)) / (own + shared)


def _refusal_tokens(protocol: Protocol, tp: int, tn: int, stage: Callable[..., StageForecast]) -> StageForecast:
    """The refusal tokens: both classes once for every token, and once for several together.

    If they are found: also once for the probabilities of all tokens, and once for the threshold of the metric.
    """
    both = tp + tn
    if isinstance(protocol.refusal_tokens, tuple):
        passes = 1 + (len(protocol.refusal_tokens) > 1)
        return stage("refusal tokens", passes * both, (passes + 1) * both)
    passes = 2 + (protocol.metric_threshold == "judged")
    return stage("refusal tokens", tp + passes * both, tp + (passes + 2) * both, writing=tp)


def _selection(
    protocol: Protocol, cells: int, vp: int, vn: int, stage: Callable[..., StageForecast], *, is_16_bit: bool
) -> StageForecast:
    """Induce, then bypass, then KL scores; in 16 bits their rounding, and some candidates within it again.

    At most: no candidate of the screen passes, and the selection is repeated with the second bound on KL.
    """
    screen, attempts = None if protocol.full_grid else protocol.screen, len(protocol.selection.attempts())
    likely, most = _scores(cells, screen, vp, vn, is_16_bit=is_16_bit, attempts=attempts)
    once = len(COEFFICIENTS) * vn if protocol.addition.coefficient == "validation" else 0
    return stage("selection", once + likely, once + most)


def _scores(cells: int, screen: int | None, vp: int, vn: int, *, is_16_bit: bool, attempts: int = 1) -> tuple[int, int]:
    """Expected and largest number of rows that score the candidates of a selection. `screen` None: the full grid.

    Further attempts, with other bounds, reuse the scores and measure their rounding.
    """
    per_candidate, once, likely = vp + 2 * vn, vn, cells * (vp + 2 * vn)
    if screen is not None:
        kept = cells
        if 0 < screen < cells:
            once, kept = once + ROWS_PER_PROMPT * (vp + vn), screen
        likely = kept * vn + kept * vp // 2 + 3 * vn
    again = PROBES * per_candidate
    probes = 2 * PROBES * (min(vp, PROBE_PROMPTS) + 2 * min(vn, PROBE_PROMPTS)) + min(vn, PROBE_PROMPTS)
    most = once + cells * per_candidate + attempts * 2 * probes + cells * per_candidate
    return once + likely + (probes + again if is_16_bit else 0), most


def _second(
    protocol: Protocol,
    cells: int,
    tp: int,
    vp: int,
    vn: int,
    tested: int,
    stage: Callable[..., StageForecast],
    *,
    is_16_bit: bool,
) -> StageForecast:
    """The screen and the scores of the remainders, the fit and scores by gradient, then two arms on test prompts."""
    likely, most = _scores(cells, protocol.second.screen, vp, vn, is_16_bit=is_16_bit)
    # Two backward passes and two readings; then both signs are added, and each vector is ablated on both classes.
    rest = (2 * ROWS_PER_PROMPT + 2) * min(tp, FIT_PROMPTS) + GRADIENT_CANDIDATES * (3 * vn + vp) + vn
    rest += 3 * min(vp, INDEPENDENCE_PROMPTS) + tested
    return stage("second direction", likely + rest, most + rest, shares=False)


def _refit(protocol: Protocol, sites: int, p: int, q: int) -> tuple[int, int]:
    """Rows of one selection among `sites`: all bypass scores, then KL and induce scores in steps until one passes."""
    step = min(sites, CANDIDATES_AT_ONCE) if protocol.selection.criterion == "lowest-bypass" else sites
    return sites * p + step * 2 * q, sites * p + sites * 3 * q


def _nulls(protocol: Protocol, cells: int, train: int, val: int, stage: Callable[..., StageForecast]) -> StageForecast:
    """Activations at the site; for `shuffled` also the sums and the selection of every draw."""
    nulls = protocol.nulls
    if "shuffled" not in nulls.families:
        return stage("nulls", train, texts=train)
    draws, q, once = nulls.total("shuffled"), nulls.procedure_prompts, 2 * train
    if nulls.screen and cells > nulls.screen:
        once, cells = once + ROWS_PER_PROMPT * val, nulls.screen
    likely, most = _refit(protocol, cells, q, q)
    further = draws * (_draw_limit(protocol) - 1)  # a pass over the training prompts, and a screen, for a few of these
    again = -(-further // MORE_DRAWS) * once
    largest = once + again + (draws + further) * (most + q)
    return stage("nulls", once + draws * (likely + q), largest, texts=2 * train, shares=False)


def _draw_limit(protocol: Protocol) -> int:
    """By how many times the planned draws can be exceeded until enough are comparable."""
    return 1 if protocol.rule.same_cosine is None else protocol.nulls.limit


def _wide(protocol: Protocol, ep: int, en: int, stage: Callable[..., StageForecast]) -> StageForecast:
    """All draws that can be needed, the arms of the direction, and the KL divergence of the ablation.

    A rule that bounds it measures that of the null draws that suppress as much: expected are as many as its bound on p.
    """
    nulls = protocol.nulls
    draws = sum(nulls.total(family) for family in nulls.families)
    p, q = min(nulls.prompts, ep), min(nulls.prompts, en)
    most, rule = draws * _draw_limit(protocol), protocol.rule

    def damage(arms: int, sought: int) -> int:
        """Prompts of the KL divergences of some ablations; each job seeks them among `sought` baselines."""
        return -(-arms // NULLS_PER_JOB) * min(sought, en) + arms * min(kl_prompts(protocol), en)

    least_sought, most_sought = kl_prompts(protocol), KL_POOL * kl_prompts(protocol)
    own = 2 * p + 3 * q + damage(1, most_sought)
    # Expected to suppress: as many draws as p permits, and one draw of each family in its completions.
    suppressing = math.ceil(draws * (rule.max_p or 1)) + len(nulls.families)
    reaching, all_reach = (0, 0) if rule.max_kl is None else (min(suppressing, draws), most)
    likely = (p + q) * draws + damage(reaching, least_sought)
    at_most = (p + q) * most + damage(all_reach, most_sought)
    return stage("wide nulls", own + likely, own + at_most)


def _dose(protocol: Protocol, ep: int, en: int, stage: Callable[..., StageForecast]) -> StageForecast:
    """The curves of the direction and of some nulls; dose 0 is the baseline of every curve."""
    dose, nulls = protocol.dose, protocol.nulls
    curves = 1 + len(nulls.families) * min(dose.draws, dose.draws if nulls.wide else nulls.draws)
    rows = (
        min(dose.prompts, m) * (curves * sum(d != 0 for d in doses) + (0 in doses))
        for m, doses in ((ep, (*dose.strengths, *dose.subtractions)), (en, dose.additions))
    )
    return stage("dose", sum(rows))


def _stability(protocol: Protocol, train: int, vp: int, vn: int, stage: Callable[..., StageForecast]) -> StageForecast:
    """One pass over the training prompts for all refits, then the selection of each."""
    plan = protocol.stability
    likely, most = _refit(protocol, plan.sites, min(plan.prompts, vp), min(plan.prompts, vn))
    once = train + min(plan.prompts, vn)
    return stage("stability", once + plan.refits * likely, once + plan.refits * most, texts=train)


def _losses(chat: Chat, splits: Splits, protocol: Protocol, texts: LossTexts, length: float) -> list[StageForecast]:
    plan = protocol.side_effects
    if not plan.documents:
        return []
    arms = 4 + 2 * len(set(plan.controls) & set(protocol.nulls.families))
    reading, negatives = Reading(chat, plan.documents, plan.max_tokens), splits.get("test", "negative")
    stages = []
    for name, sources in (("text", reading.text(texts)), ("responses", reading.responses(texts, negatives))):
        rows, tokens = arms * len(sources), arms * sum(len(s.document.ids) for s in sources)
        stages.append(StageForecast(f"losses on {name}", rows, rows, tokens, computed=tokens, scored=tokens))
    n, longest = min(plan.documents, len(negatives)), protocol.max_new_tokens
    rows, tokens = n + arms * n, round(n * length + arms * n * (length + longest))
    # Upper bounds: an empty completion is not read.
    return [*stages, StageForecast("losses on completions", rows, rows, tokens, n * longest, tokens, tokens)]


def total(stages: Mapping[int, Sequence[StageForecast]]) -> StageForecast:
    """The sums over the stages of all seeds."""
    every = [stage for of_seed in stages.values() for stage in of_seed]
    sums = (sum(getattr(stage, name) for stage in every) for name in StageForecast._fields[1:])
    return StageForecast("all seeds", *sums)
