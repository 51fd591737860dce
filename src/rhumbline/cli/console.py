"""Output of the commands: results on standard output, progress and messages on standard error."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from msgspec import UNSET
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.segment import Segment
from rich.table import Table

from rhumbline.records.arms import ArmKind
from rhumbline.records.claims import beyond_one, claim_of, reasons_once
from rhumbline.records.codec import JsonObject, to_json
from rhumbline.records.effect_results import ArmRate
from rhumbline.records.printable import CONTROL, printable
from rhumbline.records.results import Results, SeedResult
from rhumbline.records.shared import ByLabel, Label
from rhumbline.records.verdict_rule import is_number


class SafeConsole(Console):
    """A console that writes no control character of a text; only its own styles reach the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of a renderable, with printable texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled; rich would exit with code 1."""
        raise


out = SafeConsole(soft_wrap=True, emoji=False)  # `null:FAMILY:0` is no name of a picture
err = SafeConsole(stderr=True, emoji=False)

NOT_MEASURED = "not measured"
"""Text of a number that is None in a record, or not finite."""


class Work(NamedTuple):
    """The expected work of one part of a run: a stage of a seed."""

    stage: str
    rows: int
    tokens: float
    """Prompt tokens, and generated ones at the cost of as many prompt tokens."""


EARLY = 0.9
"""Share of the expected rows below which a stage is said to have ended early."""
LONGEST_STAGE = 200
"""Characters of the name of a stage."""
WRITTEN_COST = 3
"""Prompt tokens that take about as long as one generated token in a large batch."""


class Progress:
    """One bar for the whole run: the share of the expected work that is done, and the time left.

    Every stage is printed when it begins. A stage that ends before its expected rows counts as whole, and is named.
    """

    def __init__(self, expected: Sequence[Work] = ()) -> None:
        self.expected = list(expected)
        """Stages in the order in which they run."""
        self.current: Work | None = None
        self.stage, self.rows = "", 0
        self.done = 0.0
        """Work of the finished stages."""
        columns = (TextColumn("[dim]{task.description}[/]"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self.bar = ProgressBar(*columns, console=err, transient=True)
        self.task = self.bar.add_task("", total=sum(w.tokens for w in self.expected) or None)
        self.bar.start()

    def __call__(self, stage: str, rows: int | None) -> None:
        """Begin a stage or its next part (`rows` is None), or add finished rows to it."""
        if rows is None:
            self._begin(stage)
        elif stage == self.stage:
            self.rows += rows
        self.bar.update(self.task, completed=self.finished, description=escape(f"{self.stage}: {self.rows:,} rows"))

    @property
    def finished(self) -> float:
        """The expected work that is done."""
        if self.current is None:
            return self.done
        return self.done + self.current.tokens * min(1.0, self.rows / max(1, self.current.rows))

    def _begin(self, stage: str) -> None:
        if stage == self.stage and self.current is not None and self.rows < self.current.rows:
            return  # the next part of the same stage
        self._end()
        err.print(f"[dim]{escape(stage[:LONGEST_STAGE])}[/]")
        self.stage, self.rows = stage, 0
        names = [work.stage for work in self.expected]
        if stage in names:
            # Stages before it were resumed or skipped.
            index = names.index(stage)
            self.done += sum(work.tokens for work in self.expected[:index])
            self.current, self.expected = self.expected[index], self.expected[index + 1 :]

    def _end(self) -> None:
        """Count the current stage as whole."""
        if self.current is not None:
            if self.rows < EARLY * self.current.rows:
                note(f"{self.stage}: ended early, {self.rows:,} of {self.current.rows:,} expected rows were needed")
            self.done += self.current.tokens
        self.current = None

    def close(self) -> None:
        """Restore the terminal."""
        self._end()
        self.bar.stop()


@contextmanager
def progress(expected: Sequence[Work] = ()) -> Iterator[Progress]:
    """Show progress while the context is active."""
    shown = Progress(expected)
    try:
        yield shown
    finally:
        shown.close()


# -- text -------------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line on standard output as it is."""
    out.print(text, markup=False, highlight=False)


def note(text: str) -> None:
    """Print a line of progress on standard error."""
    err.print(f"[dim]{escape(text)}[/]")


LONGEST_FAULT = 2_000
"""Characters of an error that are printed. A name from a file can have any length."""


def fault(text: str, label: str = "rhumbline:") -> None:
    """Print an error on standard error. Without highlighting, whose time is quadratic in the length of a word."""
    shown = text if len(text) <= LONGEST_FAULT else f"{text[: LONGEST_FAULT // 2]} ... {text[-LONGEST_FAULT // 2 :]}"
    err.print(f"[bold red]{label}[/] {escape(shown)}", soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Print a record, or a JSON value, on standard output."""
    text = json.dumps(to_json(value), ensure_ascii=False)
    print(CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def print_lines(record: JsonObject) -> None:
    """Print the fields of a JSON object, one line for each item of a list."""
    for name, value in record.items():
        out.print(f"[bold]{name}[/]")
        for line in value if isinstance(value, list) else [value]:
            say(f"  {line}")


def number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    """A number with fixed digits and without a negative zero."""
    return f"{value:{'+' if signed else ''}z.{digits}f}" if is_number(value) else NOT_MEASURED


def interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """A number with its interval."""
    is_known = is_number(value) and is_number(low) and is_number(high)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]" if is_known else NOT_MEASURED


def ends(low: float | None, high: float | None) -> str:
    """The ends of an interval."""
    return f"{low:.2f} - {high:.2f}" if is_number(low) and is_number(high) else NOT_MEASURED


def table_of(texts: Sequence[str], numbers: Sequence[str] = (), title: str | None = None) -> Table:
    """An empty table with columns of texts, folded if they are long, and columns of numbers."""
    table = Table(title=title, title_justify="left", box=None)
    for column in texts:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def print_entries(title: str, entries: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Print names with lines about each; a name is whole on its line, so that it can be copied."""
    if title:
        out.print(f"[bold]{escape(title)}[/]", highlight=False)
    for name, about in entries:
        out.print(f"[bold]{escape(name)}[/]", highlight=False)
        for line in about:
            out.print(Padding(escape(line), (0, 0, 0, 4), expand=False), highlight=False, soft_wrap=False)


# -- a run ------------------------------------------------------------------------------------------------------------


def note_neutral(contrast: Any, protocol: Any = None) -> None:
    """Print that the neutral prompts of a contrast are not used, unless the protocol has a judge that reads them."""
    if contrast.neutral and (protocol is None or not protocol.is_continuous):
        note(
            f"{len(contrast.neutral)} neutral prompts of the contrast are not used: only `run` with a continuous "
            "score measures them, such as --behaviour style"
        )


def note_responses(contrast: Any, protocol: Any) -> None:
    """Print how many responses of a contrast are not read, and what to do."""
    from rhumbline.stages.run_plan import splits_of

    if (text := splits_of(contrast, protocol, protocol.seeds[0]).record().warning) is not None:
        note(text)


def print_plan(contrast: Any, protocol: Any) -> None:
    """Print the effects that the planned sample can detect, and whether its null draws can show a gap."""
    from rhumbline.evidence.compared_arms import EFFECTS
    from rhumbline.evidence.detectable_effects import detectable
    from rhumbline.stages.run_plan import splits_of

    sizes = splits_of(contrast, protocol, protocol.seeds[0]).sizes()
    effects = detectable(ByLabel(**sizes["test"]), protocol.rule.min_drop, protocol.nulls.wide)
    for effect in EFFECTS:
        label = effect.label
        change, passing = effects.any[label], effects.rule[label]
        detects = "detects no change" if change is None else f"detects a true change of {change:.2f}"
        passes = (
            "no effect reaches the margin of the rule"
            if passing is None
            else f"an effect below {passing:.2f} is unlikely to pass the rule"
        )
        n, power = sizes["test"][label], round(100 * effects.power)
        note(f"{effect.name}: with {n} test {label}s the run {detects} with {power} % power; {passes}")
    note_neutral(contrast, protocol)
    note_responses(contrast, protocol)
    if protocol.rule.reads == "interval" and protocol.rule.families and protocol.nulls.draws == 1:
        note(
            "one draw of each null family completes prompts, so the spread between draws is unknown and no gap to a "
            "null family can be shown; use --nulls 2 or more"
        )


def print_results(results: Results) -> None:
    """Print the verdict with its claims, the warnings, and the arms and the selection of every seed."""
    if results.claims:
        out.print(f"[bold]{results.verdict}[/]")
        out.print(_claims_table(results))
        if (note := beyond_one(results.claims)) is not None:
            out.print(f"[dim]{note}[/]")
    else:  # a run that a rule up to version 4 decided
        out.print(f"[bold]{results.verdict}[/]{escape(f' ({results.reason})' if results.reason else '')}")
        for seed in results.seeds:
            out.print(f"seed {seed.seed}: {escape(seed.sentence)}", highlight=False)
    for warning in results.warnings:
        out.print(f"[yellow]warning:[/] {escape(warning)}")
    for seed in results.seeds:
        out.print(_arms_table(seed))
        train, val = seed.n.train, seed.n.val
        tokens = ", ".join(repr(token.text) for token in seed.refusal_tokens) or "none"
        tokens += f" (metric 0 at log-odds {seed.threshold:.2f})" if seed.threshold is not UNSET else ""
        out.print(
            f"[dim]prompts (positive/negative, after the filter): train {train.positive}/{train.negative}, validation "
            f"{val.positive}/{val.negative}; survivors: {seed.survivors}, tied: {len(seed.tied)}; refusal tokens: "
            f"{escape(tokens)}[/]"
        )


def _claims_table(results: Results) -> Table:
    """The claims of the run, and for several seeds their state in each."""
    seeds = results.seeds if len(results.seeds) > 1 else ()
    table = table_of(("claim", "state", *(f"seed {seed.seed}" for seed in seeds), "number [95 %]", "why"))
    for claim, reason in zip(results.claims, reasons_once(results.claims), strict=True):
        states = (claim_of(claim.kind, seed.claims).state.text for seed in seeds)
        table.add_row(claim.kind.text, f"[bold]{claim.state.text}[/]", *states, claim.number, escape(reason))
    return table


def _arms_table(seed: SeedResult) -> Table:
    cell = seed.selected
    site = seed.reason if cell is None else f"position {cell.position}, layer {cell.layer}, norm {cell.norm:.3g}"
    # The report uses the same word: a continuous score is shown as a level.
    value = "level" if seed.style else "rate"
    table = Table(title=escape(f"seed {seed.seed}: {site}"), title_justify="left", title_style="bold", box=None)
    table.padding = (0, 1)
    for column in ("arm", "set"):
        table.add_column(column)
    for column in ("n", value, "95 % interval", "degenerate"):
        table.add_column(column, justify="right")
    for row in [*map(_arm_row, (r for r in seed.arms if not r.arm.is_null)), *_null_rows(seed.arms)]:
        table.add_row(*row)
    return table


def _arm_row(row: ArmRate) -> tuple[str, ...]:
    interval_ends, broken = ends(row.low, row.high), number(row.degenerate)
    return str(row.arm), row.side, str(row.n), number(row.rate), interval_ends, broken


def _null_rows(arms: Sequence[ArmRate]) -> Iterator[tuple[str, ...]]:
    """One row for all arms of a null family with one intervention on a set: mean and range of their rates."""
    families: dict[tuple[str, Label, ArmKind], list[ArmRate]] = {}
    for row in arms:
        if row.arm.family is not None:
            families.setdefault((row.arm.family, row.side, row.arm.kind), []).append(row)
    for (family, side, kind), members in families.items():
        rates = [m.rate for m in members if m.rate is not None]
        broken = [m.degenerate for m in members if m.degenerate is not None]
        span = f"range {min(rates):.2f} .. {max(rates):.2f}" if rates else NOT_MEASURED
        draws = f"{len(members)} draw{'s' if len(members) > 1 else ''} of {members[0].n}"
        # A null has no sign: on positives its addition is the null of the subtraction.
        act = ArmKind.SUBTRACTION if (kind, side) == (ArmKind.ADDITION, "positive") else kind
        yield f"{family} nulls, {act}", side, draws, _mean(rates), span, _mean(broken)


def _mean(values: Sequence[float]) -> str:
    return number(sum(values) / len(values) if values else None)
