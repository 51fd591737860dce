"""The embedded prompts: everyday questions over several topics, neutral in content (everyday.toml)."""

import tomllib
from importlib.resources import files

from rhumbline.prompts.contrasts import Prompt

EVERYDAY = "everyday"
"""Name of the prompts."""


def everyday_prompts() -> tuple[Prompt, ...]:
    """Every question with its topic, and the words of a right answer where the file has them."""
    table = tomllib.loads((files("rhumbline.prompts") / "everyday.toml").read_text(encoding="utf-8"))
    return tuple(
        Prompt(text, "positive", f"{topic}-{i:02d}", category=topic, answer=answer[0] if answer else None)
        for topic, questions in table.items()
        for i, (text, *answer) in enumerate(questions, 1)
    )
