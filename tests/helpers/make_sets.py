"""Miniature files in the publishers' schemas, with neutral text: a local mirror of every source of `refusal`."""

import csv
import json
from pathlib import Path

JBB = ["Index", "Goal", "Target", "Behavior", "Category", "Source"]
HARMBENCH = ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"]
CATEGORIES = [f"Category {c}" for c in "ABCDEFGHIJ"]


def write_csv(path: Path, columns: list[str], rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(rows)


def harmbench(kind: str, n: int) -> list[list]:
    kept = [[f"Paint the {kind} fence number {i}, please", "standard", "fences", "", "", f"f{i}"] for i in range(n)]
    return [
        *kept,
        ["Sing the anthem", "copyright", "songs", "hash_check", "", "c1"],
        ["Describe the map", "contextual", "maps", "context", "a map", "c2"],
    ]


def make_sets(
    folder: Path,
    advbench: int = 140,
    tdc: int = 20,
    jbb: int = 20,
    alpaca: int = 400,
    prompts: tuple | None = None,
    splits: bool = False,
) -> Path:
    """All sources of `refusal`. `prompts` gives positives and negatives to use in place of made-up ones.

    With `splits` also those of `refusal-arditi2024`, from the same prompts.
    """
    positive = iter(prompts[0] if prompts else [f"Gild the lantern number {i}" for i in range(10_000)])
    negative = iter(prompts[1] if prompts else [f"Name the river number {i}" for i in range(10_000)])

    def take(pool, n: int) -> list[str]:
        return [next(pool) for _ in range(n)]

    test = take(positive, jbb)
    rows = [[i, t, "Sure", f"b{i}", CATEGORIES[i % 10], "Original"] for i, t in enumerate(test)]
    write_csv(folder / "harmful-behaviors.csv", JBB, rows)
    # The first row repeats a test prompt in other case: it must be left out.
    train = [test[0].upper(), *take(positive, advbench - 1)]
    write_csv(folder / "harmful_behaviors.csv", ["goal", "target"], [[t, "Sure"] for t in train])
    (folder / "MaliciousInstruct.txt").write_text("".join(f"{t}\n" for t in take(positive, tdc)))
    (folder / "tdc2023_dev_behaviors.json").write_text(json.dumps(take(positive, tdc)))
    (folder / "tdc2023_test_behaviors.json").write_text(json.dumps(take(positive, tdc)))
    val = take(positive, tdc) if prompts else []
    rows = [[t, "standard", "fences", "", "", f"v{i}"] for i, t in enumerate(val)] if prompts else harmbench("val", 20)
    write_csv(folder / "harmbench_behaviors_text_val.csv", HARMBENCH, rows)
    write_csv(folder / "harmbench_behaviors_text_test.csv", HARMBENCH, harmbench("test", 12))
    strong = [["crafts", "made up", f"Weave the basket number {i}"] for i in range(12)]
    write_csv(folder / "strongreject_dataset.csv", ["category", "source", "forbidden_prompt"], strong)
    harmless = [{"instruction": t, "input": "", "output": "Yes."} for t in take(negative, alpaca)]
    harmless.insert(1, {"instruction": "Sort these words", "input": "b a", "output": "a b"})
    (folder / "alpaca_data.json").write_text(json.dumps(harmless))
    xstest = [[i, f"How do I end a game of chess {i}?", "homonyms", "safe", "end", ""] for i in range(6)]
    xstest += [[9, "How do I end a game of draughts?", "contrast_homonyms", "unsafe", "end", ""]]
    write_csv(folder / "xstest_prompts.csv", ["id", "prompt", "type", "label", "focus", "note"], xstest)
    if splits:
        cut = {"harmful_train": train[1:], "harmful_val": val, "harmless_train": harmless[2 : alpaca // 2]}
        cut |= {"harmless_val": harmless[alpaca // 2 : 3 * alpaca // 4], "harmless_test": harmless[3 * alpaca // 4 :]}
        for name, part in cut.items():
            items = [{"instruction": r if isinstance(r, str) else r["instruction"], "category": None} for r in part]
            (folder / f"{name}.json").write_text(json.dumps(items))
    return folder
