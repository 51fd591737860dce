"""External judges: prompts and responses -> judgements, from a model on this machine or from an endpoint.

A causal judge runs on the inference engine of the library: the shared prefix of its questions is computed once for each
batch, and a batch is halved if memory does not suffice. Independent of runs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from rhumbline.errors import InputError, ModelError, SourceError
from rhumbline.inference.batching import is_out_of_memory
from rhumbline.inference.runner import Runner, measured_tokens
from rhumbline.judging.judge_endpoint import query
from rhumbline.judging.judge_specs import Judgement, JudgeSpec
from rhumbline.models.answers import AnswerReader
from rhumbline.models.control_tokens import ControlTokens, unused_character
from rhumbline.models.loading import check_device, load
from rhumbline.models.places import is_absent
from rhumbline.models.sequence_limits import most_positions
from rhumbline.models.sources import Source, checkpoint
from rhumbline.models.templates import own_template
from rhumbline.models.turn_end import turn_ends
from rhumbline.prompts.chat_options import DEFAULT_OPTIONS
from rhumbline.records.outcome_rows import NO_ANSWER

CLASSIFIER_BATCH = 32
"""Initial batch size of a sequence classification model."""


@dataclass(frozen=True)
class ExternalJudge:
    """A judge with its model, which is loaded for the first question and kept."""

    spec: JudgeSpec
    device: str | None = None
    """Device of its model; None: the first GPU, or else the CPU."""
    dtype: str = "auto"
    """dtype of its model; auto: that of the checkpoint."""

    def __post_init__(self):
        Source(self.spec.model, self.dtype, self.device)  # refuses an unknown dtype or device before a run is read

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """One judgement for each response to its prompt."""
        judgements = [self.spec.without_query(response) for response in responses]
        left = [i for i, judgement in enumerate(judgements) if judgement is None]
        queried = self._query([prompts[i] for i in left], [responses[i] for i in left])
        for i, judgement in zip(left, queried, strict=True):
            judgements[i] = judgement
        return [judgement for judgement in judgements if judgement is not None]

    def _query(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """The judgements by the judge's model."""
        spec = self.spec
        if not prompts:
            return []
        if spec.form == "endpoint":
            replies = query(spec, [spec.question(p, r) for p, r in zip(prompts, responses, strict=True)])
            return [Judgement("unscored", None, r.failure) if r.text is None else spec.read(r.text) for r in replies]
        if spec.form == "classifier":
            return self._classify([spec.question(p, r) for p, r in zip(prompts, responses, strict=True)])
        model = self._runner.model
        sequences = [self._encode(model.tokenizer, p, r) for p, r in zip(prompts, responses, strict=True)]
        most = most_positions(model) or sys.maxsize
        room = most - (0 if spec.scale else spec.max_new_tokens)
        judgements = [_too_long(len(ids), room) for ids in sequences]
        if fitting := [ids for ids, judgement in zip(sequences, judgements, strict=True) if judgement is None]:
            self._runner.tokens_per_forward = measured_tokens(model, max(fitting, key=len))
            replies = iter(self._grade(fitting) if spec.scale else self._reply(fitting))
            judgements = [next(replies) if judgement is None else judgement for judgement in judgements]
        return [judgement for judgement in judgements if judgement is not None]

    # Causal models

    def _reply(self, sequences: Sequence[list[int]]) -> list[Judgement]:
        """Judgements by the model's replies in words."""
        spec, model, controls = self.spec, self._runner.model, self._controls
        stop = model.stop_tokens().union(turn_ends(controls, DEFAULT_OPTIONS) if controls.template else ())
        completions, _ = self._runner.generate(sequences, max_new_tokens=spec.max_new_tokens, stop=stop)
        answers = AnswerReader.of(model.tokenizer, controls.template, header="")
        replies = [answers.read(ids).text for ids in completions[0]]
        return [Judgement("unscored", None, NO_ANSWER) if r is None else spec.read(r) for r in replies]

    @cached_property
    def _runner(self) -> Runner:
        # Coarse mode if the writers are not proved: a judge is not edited.
        spec = self.spec
        try:
            model = load(spec.model, dtype=self.dtype, device=self.device, coarse=True, revision=spec.revision)
        except SourceError as error:
            raise SourceError(f"judge {spec.name}: {error} For a model in a directory, pass --model DIR.") from error
        return Runner(model)

    @cached_property
    def _controls(self) -> ControlTokens:
        tokenizer = self._runner.model.tokenizer
        return ControlTokens(tokenizer, "" if self.spec.form == "text" else own_template(tokenizer) or "")

    def _encode(self, tokenizer: Any, prompt: str, response: str) -> list[int]:
        """The token ids of a question. Text that spells control tokens is encoded as plain text."""
        spec, controls = self.spec, self._controls
        mark = unused_character(prompt, response, spec.template)
        prompt, response = controls.cut(prompt, mark), controls.cut(response, mark)
        if spec.form == "text":
            question = spec.question(prompt, response)
            if mark in question:
                return [*controls.leading, *controls.encode_cut(question, mark)]
            return list(tokenizer(question).input_ids)
        if spec.form == "conversation":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        else:
            turns = [{"role": "user", "content": spec.question(prompt, response)}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return controls.encode_cut(text, mark)

    def _grade(self, sequences: Sequence[list[int]]) -> list[Judgement]:
        """Expected grade from 0 to 1 over the tokens of the scale, with renormalised probabilities."""
        tokenizer = self._runner.model.tokenizer
        ids = [tokenizer.convert_tokens_to_ids(token) for token in self.spec.scale]
        if None in ids or tokenizer.unk_token_id in ids or len(set(ids)) < len(ids):
            raise InputError(
                f"judge {self.spec.name}: the scale {list(self.spec.scale)} is not one token each. Set `scale` to "
                "different tokens of the model."
            )
        grades = torch.linspace(0, 1, len(ids), dtype=torch.float64)
        values = torch.full((len(sequences),), float("nan"), dtype=torch.float64)
        for rows, logits in self._runner.last_logits(sequences):
            values[rows.prompt] = logits[:, ids].double().softmax(-1).cpu() @ grades
        return [self.spec.graded(float(value)) for value in values]

    # Sequence classification

    @cached_property
    def _classifier(self) -> "_Classifier":
        return _Classifier.load(self.spec, self.device, self.dtype)

    def _classify(self, texts: Sequence[str]) -> list[Judgement]:
        model, tokenizer = self._classifier
        # transformers gives a tokenizer without a limit the value 1e30.
        most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or sys.maxsize)
        lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
        # A truncated text would be another text, so it is unscored.
        judgements = {i: judgement for i, n in enumerate(lengths) if (judgement := _too_long(n, most)) is not None}
        # Longest first: the first batch shows whether memory suffices.
        queue = sorted(set(range(len(texts))) - judgements.keys(), key=lambda i: -lengths[i])
        size = CLASSIFIER_BATCH
        while queue:
            batch = queue[:size]
            inputs = tokenizer([texts[i] for i in batch], padding=True, return_tensors="pt")
            try:
                with torch.inference_mode():
                    logits = model(**inputs.to(model.device)).logits.float().cpu()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size = max(1, size // 2)
                continue
            for i, row in zip(batch, logits, strict=True):
                label = str(model.config.id2label[int(row.argmax())])
                judgements[i] = self.spec.read(label) if row.isfinite().all() else Judgement("unscored", None, "NaN")
            queue = queue[size:]
        return [judgements[i] for i in range(len(texts))]


def _too_long(n: int, most: int) -> Judgement | None:
    """The judgement of a question of `n` tokens that is longer than the model can read; None for a shorter one."""
    return Judgement("unscored", None, f"too long: {n} tokens of {most}") if n > most else None


class _Classifier(NamedTuple):
    """A sequence classification model and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, spec: JudgeSpec, device: str | None, dtype: str) -> "_Classifier":
        """Load the model of a judge. Raises ModelError, and InputError if its labels do not match the judge."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(device)
        try:
            with checkpoint(spec.model) as where:
                tokenizer = AutoTokenizer.from_pretrained(where, revision=spec.revision)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    where, revision=spec.revision, dtype=dtype, device_map=device, output_loading_info=True
                )
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise (SourceError if is_absent(spec.model, spec.revision) else ModelError)(
                f"judge {spec.name}: {spec.model} could not be loaded: {first}. Check its name, or pass --model DIR."
            ) from error
        if random := sorted(map(str, {*(info.get("missing_keys") or ()), *(info.get("mismatched_keys") or ())})):
            raise ModelError(
                f"judge {spec.name}: {spec.model} lacks {len(random)} weights of a classifier "
                f"({', '.join(random[:3])}), which would be random. Use a sequence classification model."
            )
        labels = {str(label).casefold() for label in model.config.id2label.values()}
        if missing := [a for a in spec.answers if not any(label.startswith(a.casefold()) for label in labels)]:
            raise InputError(
                f"judge {spec.name}: no label {', '.join(missing)}; the model has {sorted(labels)}. Set `answers` to "
                "these."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        return cls(model.eval(), tokenizer)
