"""A judge asked about prompts and responses: in batches on the model's device, or at its address.

A causal judge runs on the same machinery as any model here: its questions share their long beginning, which is read
once per batch, and batches halve when memory does not suffice. Knows models; does not know runs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rhumbline.errors import InputError, ModelError
from rhumbline.inference.batching import is_out_of_memory
from rhumbline.inference.runner import Runner, measured_tokens
from rhumbline.judging import judge_endpoint as endpoint
from rhumbline.judging.judge_specs import Judgement, JudgeSpec
from rhumbline.models.loading import load

CLASSIFIER_BATCH = 32
"""Texts that a sequence classification model reads at once, at first."""


@dataclass
class Judge:
    """A judge with its model, which is loaded at the first question and kept."""

    spec: JudgeSpec
    device: str | None = None
    dtype: str = "auto"
    _loaded: Any = field(default=None, repr=False)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """One judgement for each response to its prompt."""
        found: list[Judgement | None] = [self.spec.without_query(response) for response in responses]
        left = [i for i, judged in enumerate(found) if judged is None]
        for i, judged in zip(left, self._ask([prompts[i] for i in left], [responses[i] for i in left]), strict=True):
            found[i] = judged
        return [judged for judged in found if judged is not None]

    def _ask(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        spec = self.spec
        if not prompts:
            return []
        if spec.form == "endpoint":
            questions = [spec.question(p, r) for p, r in zip(prompts, responses, strict=True)]
            answers = endpoint.ask(spec, questions)
            return [Judgement("unscored", None, a.failure) if a.text is None else spec.read(a.text) for a in answers]
        if spec.form == "classifier":
            return self._classify([spec.question(p, r) for p, r in zip(prompts, responses, strict=True)])
        runner = self._runner()
        sequences = [self._encode(runner.model.tokenizer, p, r) for p, r in zip(prompts, responses, strict=True)]
        runner.tokens_per_forward = measured_tokens(runner.model, max(sequences, key=len))
        if spec.scale:
            return self._grade(runner, sequences)
        completions, _ = runner.generate(sequences, max_new_tokens=spec.max_new_tokens)
        texts = [runner.model.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions[0]]
        return [spec.read(text) for text in texts]

    # -- causal models

    def _runner(self) -> Runner:
        if self._loaded is None:
            # Coarse where the writers are not proved: nothing is edited in a judge.
            self._loaded = Runner(
                load(self.spec.model, dtype=self.dtype, device=self.device, coarse=True, revision=self.spec.revision)
            )
        return self._loaded

    def _encode(self, tokenizer: Any, prompt: str, response: str) -> list[int]:
        spec = self.spec
        if spec.form == "text":
            return list(tokenizer(spec.question(prompt, response)).input_ids)
        if spec.form == "conversation":
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        else:
            turns = [{"role": "user", "content": spec.question(prompt, response)}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def _grade(self, runner: Runner, sequences: Sequence[list[int]]) -> list[Judgement]:
        """Expected grade over the tokens of the scale, from 0 to 1, their probabilities renormalised."""
        tokenizer = runner.model.tokenizer
        ids = [tokenizer.convert_tokens_to_ids(token) for token in self.spec.scale]
        if None in ids or tokenizer.unk_token_id in ids or len(set(ids)) < len(ids):
            raise InputError(f"judge {self.spec.name}: the scale {list(self.spec.scale)} is not one token each.")
        grades = torch.linspace(0, 1, len(ids), dtype=torch.float64)
        values = torch.full((len(sequences),), float("nan"), dtype=torch.float64)
        for rows, logits in runner.last_logits(sequences):
            values[rows.prompt] = logits[:, ids].double().softmax(-1).cpu() @ grades
        return [self.spec.graded(float(value)) for value in values]

    # -- sequence classification

    def _classify(self, texts: Sequence[str]) -> list[Judgement]:
        model, tokenizer = self._classifier()
        labels = model.config.id2label
        # transformers says 1e30 of a tokenizer that knows no limit.
        most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or sys.maxsize)
        lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
        # A text that was cut is another text: nobody judged the whole of it.
        found = {
            i: Judgement("unscored", None, f"too long: {n} tokens of {most}") for i, n in enumerate(lengths) if n > most
        }
        # Longest first, so that too large a batch is met at once; each text is judged by itself.
        order = sorted(set(range(len(texts))) - found.keys(), key=lambda i: -lengths[i])
        size = CLASSIFIER_BATCH
        while order:
            batch = order[:size]
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
                best = int(row.argmax())
                found[i] = (
                    self.spec.read(str(labels[best])) if row.isfinite().all() else Judgement("unscored", None, "NaN")
                )
            order = order[size:]
        return [found[i] for i in range(len(texts))]

    def _classifier(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            name, revision = self.spec.model, self.spec.revision
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            if self.dtype != "auto" and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
                raise ModelError(f"dtype {self.dtype!r} is not a torch dtype; use auto, float32, bfloat16 or float16.")
            try:
                tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    name, revision=revision, dtype=self.dtype, device_map=device, output_loading_info=True
                )
            except Exception as error:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ModelError(f"judge {self.spec.name}: {name} cannot be loaded: {first}") from error
            if random := sorted(map(str, {*(info.get("missing_keys") or ()), *(info.get("mismatched_keys") or ())})):
                raise ModelError(
                    f"judge {self.spec.name}: {name} lacks {len(random)} weights of a classifier "
                    f"({', '.join(random[:3])}), which would be random. Give a sequence classification model."
                )
            known = {str(label).casefold() for label in model.config.id2label.values()}
            if missing := [a for a in self.spec.answers if not any(k.startswith(a.casefold()) for k in known)]:
                raise InputError(
                    f"judge {self.spec.name}: no label {', '.join(missing)}; the model has {sorted(known)}."
                )
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
            self._loaded = model.eval(), tokenizer
        return self._loaded
