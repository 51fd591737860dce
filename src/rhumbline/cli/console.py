"""What the commands print with: results to standard output, everything else to standard error."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(soft_wrap=True)
err = Console(stderr=True)


class Progress:
    """Prints each stage as it begins, and on a terminal the rows it has done, how fast, and how long it will go on."""

    def __init__(self, expected: Mapping[str, int] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.expected = expected or {}
        """Rows that a stage is likely to have, where that was counted beforehand."""
        self.clock = clock
        self.stage = ""
        self.rows: dict[str, int] = {}
        self.begun = (clock(), 0)
        self.status = err.status("")
        self.status.start()

    def __call__(self, stage: str, rows: int | None) -> None:
        """A stage begins (no rows), or has done some more rows."""
        if rows is None:
            err.print(f"[dim]{escape(stage)}[/]")
            if stage != self.stage:  # of another seed, where it is not the next part of the same
                self.stage, self.rows[stage] = stage, 0
            self.begun = (self.clock(), self.rows.get(stage, 0))
        self.rows[stage] = self.rows.get(stage, 0) + (rows or 0)
        self.status.update(escape(self.line(stage)))

    def line(self, stage: str) -> str:
        """Rows so far, rows per second since the stage began or went on, and what remains where that is known."""
        done, (start, before) = self.rows[stage], self.begun
        seconds = self.clock() - start
        if done == before or seconds <= 0:
            return stage
        rate = (done - before) / seconds
        said = f"{stage}: {done:,} rows, {rate:,.0f} rows/s"
        left = self.expected.get(stage, 0) - done
        return said + (f", about {left / rate:,.0f} s left" if left > 0 else "")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.status.stop()


NOT_MEASURED = "not measured"
"""Text of a number that is None in a record."""


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """A number with fixed digits and without a negative zero."""
    return NOT_MEASURED if value is None else f"{value:{'+' if signed else ''}z.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """A number with its interval."""
    if value is None or low is None or high is None:
        return NOT_MEASURED
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def text_table(*columns: str, title: str | None = None) -> Table:
    """A table of texts, folded where they are long."""
    table = Table(title=title, title_justify="left", box=None)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_plan(contrast: Any, protocol: Any) -> None:
    """What the sample can show at all, before it is used."""
    from rhumbline.evidence.detectable_effects import detectable
    from rhumbline.prompts.contrasts import LABELS, split_contrast
    from rhumbline.records.shared import ByLabel

    sizes = split_contrast(contrast, protocol.sizes, protocol.seeds[0], protocol.sampling).sizes()
    found = detectable(ByLabel(**sizes["test"]), protocol.rule.min_drop, protocol.nulls.wide)
    for label, effect in zip(LABELS, ("suppression", "induction"), strict=True):
        least, passing = found.any[label], found.rule[label]
        told = "cannot tell any change from nothing" if least is None else f"tells a true change of {least:.2f} from 0"
        passes = (
            "no effect would pass the rule's margin" if passing is None else f"one of {passing:.2f} passes the rule"
        )
        n = sizes["test"][label]
        err.print(f"[dim]{effect}: with {n} test {label}s the run {told} with {found.power:.0%} power; {passes}[/]")


def print_results(results: Mapping[str, Any]) -> None:
    """Selected candidate, arms, warnings, verdict and its sentence, for a person."""
    for seed in results["seeds"]:
        cell = seed["selected"]
        where = (
            f"position {cell['position']}, layer {cell['layer']}, norm {cell['norm']:.3g}" if cell else seed["reason"]
        )
        n = seed["n"]
        table = Table(
            title=escape(f"seed {seed['seed']}: {where}"),
            title_justify="left",
            title_style="bold",
            box=None,
            padding=(0, 1),
        )
        table.add_column("arm")
        table.add_column("set")
        # The same word as the report's: a continuous score is shown as a level.
        shows = "level" if seed.get("style") else "rate"
        for column in ("n", shows, "95 % interval", "degenerate"):
            table.add_column(column, justify="right")
        for row in _with_pooled_nulls(seed["arms"]):
            table.add_row(*row)
        out.print(table)
        train, val = n["train"], n["val"]
        out.print(
            f"[dim]n: train {train['positive']}/{train['negative']}, validation {val['positive']}/{val['negative']} "
            f"(positive/negative, after filtering); survivors {seed['survivors']} known, tied {len(seed['tied'])}; "
            f"refusal tokens {escape(', '.join(repr(t['text']) for t in seed['refusal_tokens']) or 'none')}[/]"
        )
    for warning in results["warnings"]:
        out.print(f"[yellow]note:[/] {escape(warning)}")
    because = f" ({results['reason']})" if results["reason"] else ""
    out.print(f"[bold]{results['verdict']}[/]{escape(because)}")
    for seed in results["seeds"]:
        out.print(f"seed {seed['seed']}: {escape(seed['sentence'])}", highlight=False)


def _with_pooled_nulls(arms: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each arm, and one for all draws of a null family together: the range of its rates."""
    rows: list[tuple[str, ...]] = []
    pooled: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for arm in arms:
        if arm["arm"].startswith("null:"):
            _, family, _, _ = arm["arm"].split(":")
            pooled.setdefault((f"{family} nulls", arm["set"]), []).append(arm)
            continue
        rate = "-" if arm["rate"] is None else f"{arm['rate']:.2f}"
        broken = "-" if arm["degenerate"] is None else f"{arm['degenerate']:.2f}"
        rows.append((arm["arm"], arm["set"], str(arm["n"]), rate, f"{arm['low']:.2f} - {arm['high']:.2f}", broken))
    for (name, side), members in pooled.items():
        rates = [m["rate"] for m in members if m["rate"] is not None]
        broken = [m["degenerate"] for m in members if m["degenerate"] is not None]
        spread = f"{min(rates):.2f} .. {max(rates):.2f}" if rates else "-"
        mean = f"{sum(rates) / len(rates):.2f}" if rates else "-"
        worst = f"{sum(broken) / len(broken):.2f}" if broken else "-"
        rows.append((name, side, f"{len(members)} x {members[0]['n']}", mean, f"range {spread}", worst))
    return rows
