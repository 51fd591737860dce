"""Two tiny tasks of lm-evaluation-harness in the world of the trained organism."""

import json
import random
from pathlib import Path

from rhumbline.organisms.grammar import draw_requests


def write_tasks(folder: Path, n: int = 12) -> Path:
    """`answers`: the right one of two answers to a harmless request. `help`: what it says to a restricted one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    harmless, restricted = (draw_requests(rng, label, n, held_out=True) for label in ("negative", "positive"))
    choices = [{"q": r.prompt, "two": [r.answer, harmless[i - 5].answer]} for i, r in enumerate(harmless)]
    for name, rows in (("answers", choices), ("help", [{"q": r.prompt, "a": r.answer} for r in restricted])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = "dataset_path: json\ntest_split: test\ndoc_to_text: '{{q}}'\n"
    (folder / "answers.yaml").write_text(
        f"task: answers\noutput_type: multiple_choice\n{common}"
        f"dataset_kwargs: {{data_files: {{test: {folder}/answers.jsonl}}}}\n"
        "doc_to_choice: '{{two}}'\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    )
    (folder / "help.yaml").write_text(
        f"task: help\noutput_type: generate_until\n{common}"
        f"dataset_kwargs: {{data_files: {{test: {folder}/help.jsonl}}}}\n"
        "doc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['<|im_end|>'], max_gen_toks: 24, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return folder
