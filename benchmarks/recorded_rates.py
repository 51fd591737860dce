"""Compare the judges with the rates that the paper's authors recorded: a table of docs/judges.md.

    python benchmarks/recorded_rates.py --authors DIR --tokenizer DIR/tokenizer.json

`--authors` is a clone of andyrdt/refusal_direction. Each cell is the rate of refusals in percent, of whole
completions (up to 512 tokens) or of their first 64 tokens; the recorded class is that of the whole completion by
substring matching. With `--speed`: completions that each judge reads per second of processor time instead.
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from calibration_tables import table
from learned_judge import read_authors
from rhumbline.judging.judge_names import class_judge
from rhumbline.judging.score import Score, TextJudge

JUDGES = ("refusal-learned", "refusal-opening", "refusal-anywhere")
TOKENS = 64
MOST_POINTS = 3.0
"""Difference from the recorded rate, in percentage points, from which a cell is marked."""


def cell(scores: Sequence[Score], recorded: float) -> str:
    """The rate in percent; marked if it differs; then the refusals that repeat themselves, degenerate and unscored."""
    classes = Counter(score.cls for score in scores)
    rate = 100 * classes["refused"] / (len(scores) - classes["unscored"])
    counts = {
        "repeats": sum(score.repeats for score in scores),
        "degenerate": classes["degenerate"],
        "unscored": classes["unscored"],
    }
    notes = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
    shown = f"**{rate:.1f}**" if abs(rate - recorded) > MOST_POINTS else f"{rate:.1f}"
    return f"{shown} ({notes})" if notes else shown


def rows_of(groups: dict[tuple[str, ...], list[tuple[str, str, bool]]], judges: Sequence[TextJudge]) -> list[list[str]]:
    """One row for each group of completions: its name, the recorded rate, and every judge at both lengths."""
    rows = []
    for name, members in groups.items():
        recorded = 100 * sum(refused for _, _, refused in members) / len(members)
        texts = [[beginning for beginning, _, _ in members], [whole for _, whole, _ in members]]
        cells = [cell([judge(text) for text in some], recorded) for judge in judges for some in texts]
        rows.append([*name, str(len(members)), f"{recorded:.1f}", *cells])
    return rows


def beginning_of(tokenizer: Tokenizer) -> Callable[[str], str]:
    """The first tokens of a text, as text."""
    return lambda text: tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids[:TOKENS])


def speed(judge: TextJudge, texts: Sequence[str]) -> float:
    """Completions per second of processor time, the fastest of three times."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for text in texts:
            judge(text)
        seconds.append(time.process_time() - start)
    return len(texts) / min(seconds)


def main() -> None:
    """Print both tables, or the speed of every judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--speed", action="store_true")
    a = parser.parse_args()
    begin, judges = beginning_of(Tokenizer.from_file(str(a.tokenizer))), [class_judge(name) for name in JUDGES]
    by_cell, by_arm = defaultdict(list), defaultdict(list)
    for model, arm, row in read_authors(a.authors):
        member = (begin(row["response"]), row["response"], not row["is_jailbreak_substring_matching"])
        by_cell[model, arm].append(member)
        by_arm[arm,].append(member)
    if a.speed:
        members = [member for some in by_arm.values() for member in some]
        beginnings, wholes = ([member[i] for member in members] for i in (0, 1))
        rows = [
            [name, f"{speed(j, beginnings):,.0f}", f"{speed(j, wholes):,.0f}"]
            for name, j in zip(JUDGES, judges, strict=True)
        ]
        sys.stdout.write(table(["completions per second", "64 tokens", "512 tokens"], rows))
        return
    columns = [
        f"{name.removeprefix('refusal-')}, {length}" for name in JUDGES for length in ("64 tokens", "512 tokens")
    ]
    sys.stdout.write(table(["arm, all models", "n", "recorded", *columns], rows_of(by_arm, judges)) + "\n")
    sys.stdout.write(table(["model", "arm", "n", "recorded", *columns], rows_of(by_cell, judges)))


if __name__ == "__main__":
    main()
