"""Cost of the plain implementation and the engine by prompts, layers, positions and arms: one table and one figure.

Selection is the full grid at the width of m8; generation is 16 prompts x 32 tokens. The plain implementation scores one
candidate, and its time is multiplied by the number of candidates, because each has the same cost.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import altair as alt
import torch

import plain
import shapes
from rhumbline.evidence.selection_rules import ARDITI2024
from rhumbline.inference.interventions import BASELINE, Ablate, Arm, Direction
from rhumbline.inference.residuals import extract
from rhumbline.inference.runner import Runner
from rhumbline.judging.metric import refusal_metric
from rhumbline.judging.scorer import Scorer
from rhumbline.records.positions import Position
from rhumbline.report.figures import LIGHT, ChartRow, draw, finished
from rhumbline.stages.candidate_scores import ScoreGrid, score_candidates

TOKENS, POSITIONS = (5, 9), (-5, -4, -3, -2, -1)
NAME = "benchmarks-growth"


def seconds(run: Callable[[], Any]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def selection(n_prompts: int = 32, n_layers: int = 8, n_positions: int = 1) -> tuple[float, float]:
    """Seconds of a full grid, plain and engine."""
    shape = shapes.Shape(n_layers, 256, 32_000, 4)
    model = shapes.random_model(shape)
    positive, negative = (shapes.prompts(n_prompts, shapes.SYSTEM, shape.vocab, seed) for seed in (3, 4))
    positions = tuple(Position(i) for i in range(-n_positions, 0))
    torch.manual_seed(0)
    candidates = torch.randn(n_positions, n_layers, model.d_model)
    one = seconds(
        lambda: plain.scores(model, candidates[-1:], (-1,), positive, negative, TOKENS, layers=[n_layers // 2])
    )
    scorer = Scorer(Runner(model), lambda x: refusal_metric(x, TOKENS))
    engine = seconds(lambda: score_candidates(ScoreGrid(scorer, candidates, positions, positive, negative, ARDITI2024)))
    return one * n_positions * n_layers, engine


def extraction(mlp: int) -> tuple[float, float]:
    """Seconds of the means of one class, plain and engine, with an MLP of this width."""
    shape = shapes.Shape(8, 256, 32_000, 4, mlp)
    model = shapes.random_model(shape)
    prompts = shapes.prompts(128, shapes.SYSTEM, shape.vocab, 1)
    runner = Runner(model)
    return (
        seconds(lambda: plain.mean_residuals(model, prompts, POSITIONS)),
        statistics.median(seconds(lambda: extract(runner, prompts, POSITIONS)) for _ in range(3)),
    )


def generation(n_arms: int) -> tuple[float, float]:
    """Seconds of one baseline and further ablations, plain (batches of 8) and engine."""
    shape = shapes.SHAPES["m8"]
    model = shapes.random_model(shape)
    prompts = shapes.prompts(16, shapes.SYSTEM, shape.vocab, 5)
    torch.manual_seed(0)
    drawn = [Direction.from_vector(torch.randn(model.d_model), -1, 4) for _ in range(n_arms - 1)]

    def slowly() -> None:
        plain.generate(model, prompts, 32)
        for direction in drawn:
            with plain.ablation(model, direction.vector):
                plain.generate(model, prompts, 32)

    arms = [BASELINE, *(Arm(f"ablation {k}", (Ablate(d),)) for k, d in enumerate(drawn))]
    return seconds(slowly), seconds(lambda: Runner(model).generate(prompts, arms, max_new_tokens=32))


AXES: dict[str, tuple[Callable[[int], tuple[float, float]], tuple[int, ...]]] = {
    "prompts per class": (lambda n: selection(n_prompts=n), (8, 16, 32, 64)),
    "layers": (lambda n: selection(n_layers=n), (4, 8, 16)),
    "positions": (lambda n: selection(n_positions=n), (1, 2, 5)),
    "arms": (generation, (1, 2, 4, 8)),
    "MLP width": (extraction, (256, 672, 1376)),
}
STAGE = {"arms": "generation", "MLP width": "extraction"}


def measure() -> Iterator[ChartRow]:
    """One row for each size and implementation."""
    for axis, (run, sizes) in AXES.items():
        for size in sizes:
            for who, took in zip(("plain", "engine"), run(size), strict=True):
                print(f"{axis} {size}: {who} {took:.2f} s", flush=True)
                yield {"axis": axis, "size": size, "who": who, "seconds": took}


def figure(rows: list[ChartRow]) -> str:
    """SVG with one panel for each quantity; both axes are logarithmic."""
    colour = alt.Color(
        "who:N",
        scale=alt.Scale(domain=["plain", "engine"], range=[LIGHT["orange"], LIGHT["direction"]]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    panels = []
    for axis, (_, sizes) in AXES.items():
        stage = STAGE.get(axis, "selection")
        x = alt.X("size:Q", title=axis, axis=alt.Axis(values=list(sizes), grid=False))
        x.scale = alt.Scale(type="log", domain=[sizes[0], sizes[-1]])
        y = alt.Y("seconds:Q", title="processor seconds" if not panels else "", scale=alt.Scale(type="log"))
        lines = alt.Chart().mark_line(point=True).encode(x=x, y=y, color=colour)
        lines = lines.transform_filter(f"datum.axis === '{axis}'")
        panels.append(lines.properties(width=150, height=170, title=stage))
    summary = "Processor seconds of plain and engine against prompts, layers, positions, arms and the width of the MLP."
    return draw(finished(NAME, summary, alt.hconcat(*panels), "How the cost grows", rows)).svg


def table(rows: list[ChartRow]) -> str:
    """Markdown with one line for each size."""
    lines = ["| axis | size | plain s | engine s | ratio |", "|---|---|---|---|---|"]
    for slow, fast in zip(rows[::2], rows[1::2], strict=True):
        took = slow["seconds"], fast["seconds"]
        lines.append(f"| {slow['axis']} | {slow['size']} | {took[0]:.2f} | {took[1]:.2f} | {took[0] / took[1]:.1f} |")
    return "\n".join(lines) + "\n"


def written(folder: Path) -> str:
    """Measure, write the figure into `folder`, and return the section of the page."""
    rows = list(measure())
    (folder / f"{NAME}.svg").write_text(figure(rows))
    return (
        "\n## How the cost grows\n\n"
        "Width 256, vocabulary 32k, with a system prompt; selection over the full grid of 32 + 32 prompts, 8 layers\n"
        "and one position, generation of 16 prompts x 32 tokens, extraction of 128 prompts; one of these varied at a\n"
        "time, once each.\n\n"
        f"![Cost against size]({NAME}.svg)\n\n{table(rows)}"
    )
