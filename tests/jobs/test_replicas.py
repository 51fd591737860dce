"""Replicas compute the results of a run in one process, from the artefacts that are sent; other weights are refused."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from finished_runs import EVERY_STAGE
from mock_engine import Mock
from rhumbline.errors import ModelError
from rhumbline.experiment import run
from rhumbline.jobs.replicas import Replica, check_code, replica_worker
from rhumbline.models.loading import fingerprint, load_source
from rhumbline.models.sources import Source, own_contrast
from rhumbline.presets.protocols import preset
from rhumbline.prompts.contrasts import Sizes
from rhumbline.records.files import read_rows
from rhumbline.settings import DoseSettings, NullSettings, SideEffectSettings, StabilitySettings
from rhumbline.stages.stage_jobs import DOCUMENTS_PER_JOB, REFITS_PER_JOB
from sampled_contrast import sampled_contrast

SMALL = replace(
    EVERY_STAGE,
    seeds=(0,),
    nulls=replace(EVERY_STAGE.nulls, wide=5, procedure=2),
    rule=preset("blog2026").rule,  # it needs no rank, so few draws suffice
    stability=replace(EVERY_STAGE.stability, refits=REFITS_PER_JOB + 1),
    side_effects=SideEffectSettings(documents=DOCUMENTS_PER_JOB + 1),
    conditions={"brief": "Be brief."},
)
STYLED = preset(
    "style",
    seeds=(0,),
    sizes=Sizes(16, 6, 6),
    nulls=NullSettings(draws=1, wide=19, prompts=6, procedure_prompts=4),
    dose=DoseSettings((), ()),
    stability=StabilitySettings(refits=0),
    max_new_tokens=16,
    judge="classifier",
    side_effects=SideEffectSettings(documents=4),
)
SOURCE = Source("organism:planted", device="cpu")


@pytest.fixture(scope="module")
def organism():
    return load_source(SOURCE), own_contrast(SOURCE.model)


def run_both(tmp_path, source, model, contrast, protocol, engine):
    """The results in this process and over the engine's replicas, which must be equal, as must the rows reported."""
    counts, begun = (Counter(), Counter()), ([], [])

    def counted(k: int, stage: str, rows: int | None) -> None:
        counts[k].update({stage: rows or 0})
        if rows is None:
            begun[k].append(stage)

    own, other = (partial(counted, k) for k in range(2))
    here = run(model, contrast, tmp_path / "here", protocol, page=False, progress=own).results
    with engine.pool(replica_worker(source, contrast, protocol, fingerprint(model))) as pool:
        options = dict(pool=pool, engine=engine.name, page=False, progress=other)
        there = run(model, contrast, tmp_path / "there", protocol, **options).results
    assert counts[0]["arms"] == counts[1]["arms"] > 0
    # A stage whose jobs start early begins when its results are read.
    assert begun[0] == begun[1] == list(dict.fromkeys(begun[0]))
    # What the jobs of a worker share is computed on each.
    assert {stage: rows for stage, rows in counts[0].items() if rows > counts[1][stage]} == {}
    for name in ("verdict", "sentence", "seeds", "pooled", "protocol_sha256"):
        assert there[name] == here[name]
    return here, there


def test_jobs_on_replicas_give_the_run_of_one_process(organism, tmp_path):
    model, contrast = organism
    here, there = run_both(tmp_path, SOURCE, model, contrast, SMALL, Mock(5, repeats=0.5))
    for name in ("outcomes.jsonl", "selection.json", "wide.json", "dose.json", "stability.json", "nulls.json",
                 "second.json", "losses-completions.jsonl", "condition-00.jsonl"):  # fmt: skip
        assert (tmp_path / "there" / "seed-0" / name).read_bytes() == (tmp_path / "here" / "seed-0" / name).read_bytes()
    assert (here["environment"]["engine"], there["environment"]["engine"]) == ("local", "mock")
    assert not list(tmp_path.rglob(".jobs"))
    known = [{stage["cpu_seconds"] is None for stage in r["timings"]["stages"]} for r in (here, there)]
    assert known == [{False}, {True}]  # the time of the command's process is not that of the run


@pytest.mark.slow
def test_a_continuous_score_on_replicas_is_that_of_one_process(tmp_path):
    """The judges are fitted once, by the run; a replica reads them from the artefacts that are sent with a job."""
    source = Source("organism:style", device="cpu")
    model, contrast = load_source(source), sampled_contrast(own_contrast(source.model))
    contrast = replace(contrast, neutral=contrast.neutral[:6])
    run_both(tmp_path, source, model, contrast, STYLED, Mock(2, repeats=0.3))
    # The order of the metadata in a safetensors file varies; the tensors must be equal.
    judges = [load_file(tmp_path / run_ / "seed-0" / "classifier.safetensors") for run_ in ("here", "there")]
    assert judges[0].keys() == judges[1].keys()
    assert all(torch.equal(judges[0][name], judges[1][name]) for name in judges[0])
    files = ("style.json", "outcomes.jsonl", "selection.json", "nulls.json", "levels.json")
    for name in files:
        assert (tmp_path / "there" / "seed-0" / name).read_bytes() == (tmp_path / "here" / "seed-0" / name).read_bytes()
    rows = read_rows(tmp_path / "there" / "seed-0" / "outcomes.jsonl")
    assert len({row["score"] for row in rows}) > 2


def test_other_weights_and_other_code_are_refused(organism):
    _, contrast = organism
    options = dict(replica_worker(SOURCE, contrast, SMALL, "0" * 64).options)
    with pytest.raises(ModelError, match="has other weights on this node"):
        Replica(options)
    with pytest.raises(ModelError, match="another rhumbline"):
        check_code("0" * 64)
    with pytest.raises(ModelError, match=r"has transformers .* \(the command has 1.0\)"):
        Replica({**options, "versions": {**options["versions"], "transformers": "1.0"}})
