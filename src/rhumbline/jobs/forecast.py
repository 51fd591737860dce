"""Forecasts: how many rows and tokens each stage of a run will put through the model, counted before it begins.

Counts are exact where the protocol decides them. Where the run decides (the lazy selection, the refits, the refusal
tokens found) there is a likely count and one that is never passed: `most`. All assume that a direction is found, that
the filter keeps every prompt and that every null family can be drawn. Knows the stages; runs none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rhumbline.inference.batching import CPU_TOKENS
from rhumbline.inference.first_order import ROWS_PER_PROMPT
from rhumbline.models.chat import Chat
from rhumbline.models.packing import shared_length
from rhumbline.prompts.contrasts import LABELS, SPLITS, Splits
from rhumbline.prompts.loss_texts import NO_TEXTS, LossTexts
from rhumbline.protocol import COEFFICIENTS, Protocol
from rhumbline.stages.candidate_scores import PROBES
from rhumbline.stages.losses import Reading
from rhumbline.stages.outcomes import draws_by_prompt
from rhumbline.stages.refits import CANDIDATES_AT_ONCE
from rhumbline.stages.seed_run import read_positions
from rhumbline.stages.wide_nulls import KL_PROMPTS

OPENINGS = 20
"""First tokens that can each open one in twenty refusals: as many as `auto` may have to compare."""


class Stage(NamedTuple):
    """One stage of one seed. A row is a prompt under an arm."""

    name: str
    rows: int
    """As many as are likely."""
    most: int
    """As many as there can be; where it equals `rows` the count is exact."""
    tokens: int
    """Prompt tokens of the likely rows, as if nothing were shared."""
    written: int = 0
    """Tokens that are generated at most."""
    computed: int = 0
    """Prompt tokens of the likely rows that passes compute: tokens that prompts share count once for each pass."""


def forecast(
    chat: Chat,
    splits: Splits,
    protocol: Protocol,
    n_layers: int,
    texts: LossTexts = NO_TEXTS,
    *,
    is_16_bit: bool = False,
) -> list[Stage]:
    """Every stage of one seed, in the order in which it runs. In 16 bits the rounding of scores is measured too."""
    n = splits.sizes()
    (tp, tn), (vp, vn), (ep, en) = ((n[s]["positive"], n[s]["negative"]) for s in ("train", "val", "test"))
    reads_texts = protocol.extraction.response_position is not None
    texts_of = splits.texts if reads_texts else splits.get
    # Activations of texts are read from both responses to a prompt, where the contrast has both.
    train, test = (sum(len(texts_of(split, label)) for label in LABELS) for split in ("train", "test"))
    prompts = [chat.encode(p) for s in SPLITS for c in LABELS for p in splits.get(s, c)]
    length, share = _mean_length(prompts), _share_computed(prompts)
    read_length = length
    if reads_texts:
        read_length = _mean_length([chat.encode_text(p) for c in LABELS for p in splits.texts("train", c)])

    def stage(name: str, rows: int, most: int | None = None, writing: int = 0, texts: int = 0) -> Stage:
        """`texts`: how many of the rows are read with a response."""
        most, tokens = rows if most is None else most, (rows - texts) * length + texts * read_length
        computed = (rows - texts) * length * share + texts * read_length
        return Stage(name, rows, most, round(tokens), writing * protocol.max_new_tokens, round(computed))

    cells = len(read_positions(protocol.extraction, chat)) * protocol.selection.first_cut_layer(n_layers)
    families = protocol.nulls.families
    completed = [
        len(families) * sum(map(len, draws_by_prompt(m, protocol.nulls.draws, protocol.completed, seed=0)))
        for m in (ep, en)
    ]
    found = [
        _openings(protocol, tp, tn, stage),
        stage("extraction", train + vp + vn, texts=train),
        _selection(protocol, cells, vp, vn, stage, is_16_bit=is_16_bit),
        _nulls(protocol, cells, train, vp + vn, stage),
        stage("arms on positives", 2 * ep + completed[0], writing=2 * ep + completed[0]),
        stage("arms on negatives", 4 * en + completed[1], writing=4 * en + completed[1]),
    ]
    if protocol.nulls.wide:
        found.append(_wide(protocol, ep, en, stage))
    dose = protocol.dose
    p, q = min(dose.prompts, ep), min(dose.prompts, en)
    curves = 1 + len(families) * min(dose.draws, protocol.nulls.draws if not protocol.nulls.wide else dose.draws)
    if dose.strengths or dose.coefficients:
        # Dose 0 is the baseline of every curve.
        rows = (
            n * (curves * sum(d != 0 for d in doses) + (0 in doses))
            for n, doses in ((p, dose.strengths), (q, dose.coefficients))
        )
        found.append(stage("dose", sum(rows)))
    if protocol.stability.refits:
        plan = protocol.stability
        likely, most = _refit(protocol, plan.sites, min(plan.prompts, vp), min(plan.prompts, vn))
        once = train + min(plan.prompts, vn)
        found.append(stage("stability", once + plan.refits * likely, once + plan.refits * most, texts=train))
    found.append(stage("separation", test, texts=test))
    found += _losses(chat, splits, protocol, texts, length)
    for name in protocol.conditions:
        rows = 2 * ep + 3 * en
        found.append(stage(f"condition {name}", rows, writing=rows))
    return found


def _mean_length(sequences: Sequence[Sequence[int]]) -> float:
    return sum(map(len, sequences)) / max(1, len(sequences))


def _share_computed(sequences: Sequence[Sequence[int]]) -> float:
    """Share of the tokens that is left if packs compute the tokens that all prompts share once."""
    if not sequences:
        return 1.0
    shared, length = shared_length(sequences), _mean_length(sequences)
    own = max(1.0, length - shared)
    return (own + shared / max(1, (CPU_TOKENS - shared) // own)) / (own + shared)


def _openings(protocol: Protocol, tp: int, tn: int, stage: Callable[..., Stage]) -> Stage:
    """The refusal tokens: one look at the classes for each, and one for all of them together."""
    if protocol.refusal_tokens != "auto":
        k = len(protocol.refusal_tokens)
        return stage("refusal tokens", (k + (k > 1)) * (tp + tn), (k + 1) * (tp + tn))
    return stage("refusal tokens", tp + tp + tn, tp + (OPENINGS + 1) * (tp + tn), writing=tp)


def _selection(
    protocol: Protocol, cells: int, vp: int, vn: int, stage: Callable[..., Stage], *, is_16_bit: bool
) -> Stage:
    """Induce of all, then bypass, then KL; in 16 bits their rounding, and some candidates within it again."""
    per_candidate, whole, screen = vp + 2 * vn, cells, 0
    if protocol.screen and not protocol.full_grid and cells > protocol.screen:
        screen, cells = ROWS_PER_PROMPT * (vp + vn), protocol.screen
    once = screen + vn + (len(COEFFICIENTS) * vn if protocol.addition.coefficient == "validation" else 0)
    probes, again = 2 * PROBES * per_candidate, PROBES * per_candidate
    likely = once + (whole * per_candidate if protocol.full_grid else cells * vn + cells * vp // 2 + 3 * vn)
    most = once + whole * per_candidate + 2 * probes + whole * per_candidate
    return stage("selection", likely + (probes + again if is_16_bit else 0), most)


def _refit(protocol: Protocol, sites: int, p: int, q: int) -> tuple[int, int]:
    """Rows of one choice among some sites: bypass of all, then kl and induce of a few at a time, until one passes."""
    step = min(sites, CANDIDATES_AT_ONCE) if protocol.selection.criterion == "lowest-bypass" else sites
    return sites * p + step * 2 * q, sites * p + sites * 3 * q


def _nulls(protocol: Protocol, cells: int, train: int, val: int, stage: Callable[..., Stage]) -> Stage:
    """Activations at the site; and where the whole procedure is repeated, its sums and its choices."""
    if "shuffled" not in protocol.nulls.families:
        return stage("nulls", train, texts=train)
    draws, q, once = protocol.nulls.total("shuffled"), protocol.nulls.procedure_prompts, 2 * train
    if protocol.nulls.screen and cells > protocol.nulls.screen:
        once, cells = once + ROWS_PER_PROMPT * val, protocol.nulls.screen
    likely, most = _refit(protocol, cells, q, q)
    return stage("nulls", once + draws * (likely + q), once + draws * (most + q), texts=2 * train)


def _wide(protocol: Protocol, ep: int, en: int, stage: Callable[..., Stage]) -> Stage:
    """Every draw that can be needed, the arms of the direction, and the KL divergence of the ablation."""
    plan = protocol.nulls
    draws = sum(plan.total(family) for family in plan.families)
    p, q = min(plan.prompts, ep), min(plan.prompts, en)
    return stage("wide nulls", p * (2 + draws) + q * (3 + draws) + 2 * min(max(KL_PROMPTS, plan.prompts), en))


def _losses(chat: Chat, splits: Splits, protocol: Protocol, texts: LossTexts, length: float) -> list[Stage]:
    plan = protocol.side_effects
    if not plan.documents:
        return []
    arms = 4 + 2 * len(set(plan.controls) & set(protocol.nulls.families))
    reading, negatives = Reading(chat, plan.documents, plan.max_tokens), splits.get("test", "negative")
    found = []
    for name, sources in (("text", reading.text(texts)), ("responses", reading.responses(texts, negatives))):
        tokens = arms * sum(len(s.document.ids) for s in sources)
        found.append(Stage(f"losses on {name}", arms * len(sources), arms * len(sources), tokens, computed=tokens))
    n, longest = min(plan.documents, len(negatives)), protocol.max_new_tokens
    tokens = round(n * length + arms * n * (length + longest))
    # A completion without a token is not read.
    return [*found, Stage("losses on completions", n + arms * n, n + arms * n, tokens, n * longest, tokens)]


class Total(NamedTuple):
    """All seeds of a run together."""

    rows: int
    most: int
    tokens: int
    written: int
    computed: int


def total(stages: Mapping[int, Sequence[Stage]]) -> Total:
    """The sums over stages and seeds."""
    every = [s for of_seed in stages.values() for s in of_seed]
    return Total(*(sum(getattr(s, f) for s in every) for f in Total._fields))
