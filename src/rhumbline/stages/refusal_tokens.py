"""Which tokens open a refusal: given, or found in the model's own baseline completions of training prompts.

Sees training prompts only. Knows tokens and a judge; does not know directions.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from rhumbline.axes import TokenIds
from rhumbline.errors import ProtocolError
from rhumbline.evidence.statistics import auroc
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.score import TextJudge
from rhumbline.models.chat import Chat

LONGEST_READ = 64
"""New tokens that are enough to see whether a training prompt is refused."""
SMALLEST_SHARE = 0.05
"""A first token that opens fewer of the refusals than this is left out."""
SMALLEST_AUROC = 0.6
"""A first token whose probability separates the classes less than this is left out."""


def opening_tokens(
    runner: Runner,
    chat: Chat,
    positive: Sequence[TokenIds],
    negative: Sequence[TokenIds],
    judge: TextJudge,
    *,
    given: Sequence[str] | None,
    max_new_tokens: int,
) -> dict[str, Any]:
    """The refusal tokens of the metric, with how well they separate the training classes, as a JSON record.

    {"how", "tokens": [{"id", "text", "auroc", "share"}], "auroc", "refusals", "n", "reason"}; no token is an outcome
    with its reason. The paper chooses them by hand per model family (appendix B); "auto" is ours.
    """
    found: dict[str, Any] = {"how": "given", "refusals": None, "n": None, "reason": None}
    shares: dict[int, float | None]
    if given is not None:
        shares = {chat.first_token(text): None for text in given}
    else:
        completions, _ = runner.generate(positive, max_new_tokens=min(max_new_tokens, LONGEST_READ))
        texts = [chat.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions[0]]
        refusals = [ids for ids, text in zip(completions[0], texts, strict=True) if judge(text).value]
        counts = Counter(ids[0] for ids in refusals)
        shares = {token: n / len(refusals) for token, n in counts.most_common() if n / len(refusals) >= SMALLEST_SHARE}
        found |= {"how": "auto", "refusals": len(refusals), "n": len(positive)}
        if not shares:
            return found | {
                "tokens": [],
                "auroc": None,
                "reason": f"none of {len(positive)} training positives showed the behaviour at baseline",
            }
    each = {token: _separation(runner, positive, negative, [token]) for token in shares}
    kept = [token for token in shares if given is not None or each[token] >= SMALLEST_AUROC]
    tokens = [{"id": t, "text": chat.tokenizer.decode([t]), "auroc": each[t], "share": shares[t]} for t in kept]
    if not kept:
        return found | {"tokens": [], "auroc": None, "reason": "no first token of a refusal separates the classes"}
    together = each[kept[0]] if len(kept) == 1 else _separation(runner, positive, negative, kept)
    return found | {"tokens": tokens, "auroc": together}


def shifted_tokens(
    runner: Runner, chat: Chat, positive: Sequence[TokenIds], negative: Sequence[TokenIds]
) -> dict[str, Any]:
    """First tokens that the model finds likelier after training positives, as the record of `opening_tokens`.

    `share` is by how much the mean probability differs, `SMALLEST_SHARE` at least. For behaviours with many openings:
    a greedy completion shows one of them, and the others would be missed.
    """
    means = []
    for sequences in (positive, negative):
        total: torch.Tensor | None = None
        for _, logits in runner.last_logits(sequences):
            some = logits.double().softmax(-1).sum(0).cpu()
            total = some if total is None else total + some
        assert total is not None
        means.append(total / len(sequences))
    more = means[0] - means[1]
    candidates = [int(t) for t in more.argsort(descending=True).tolist() if more[t] >= SMALLEST_SHARE]
    each = {t: _separation(runner, positive, negative, [t]) for t in candidates}
    kept = [t for t in candidates if each[t] >= SMALLEST_AUROC]
    tokens = [{"id": t, "text": chat.tokenizer.decode([t]), "auroc": each[t], "share": float(more[t])} for t in kept]
    found = {"how": "shifted", "tokens": tokens, "refusals": None, "n": len(positive), "auroc": None, "reason": None}
    if not kept:
        return found | {"reason": "no first token is likelier after the positives"}
    return found | {"auroc": _separation(runner, positive, negative, kept)}


def _separation(
    runner: Runner, positive: Sequence[TokenIds], negative: Sequence[TokenIds], tokens: Sequence[int]
) -> float:
    vocab = runner.model.model.get_input_embeddings().weight.shape[0]
    if outside := [t for t in tokens if not 0 <= t < vocab]:
        raise ProtocolError(f"refusal tokens {outside} are outside the vocabulary of {vocab}.")
    values = torch.zeros(len(positive) + len(negative), dtype=torch.float64)
    for rows, logits in runner.last_logits([*positive, *negative]):
        values[rows.prompt] = refusal_metric(logits, tokens).cpu()
    both = values.numpy()
    return auroc(both[: len(positive)], both[len(positive) :])
