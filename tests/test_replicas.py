"""Replicas: what a worker is told suffices to answer as the run would; what is not the run's is refused."""

import json

import pytest

from rhumbline.chat import ChatOptions
from rhumbline.contrasts import Sizes
from rhumbline.engines.mock import Mock
from rhumbline.errors import ModelError
from rhumbline.experiment import run
from rhumbline.loading import fingerprint
from rhumbline.protocol import PRESETS, Dose, Nulls, Stability, preset
from rhumbline.replicas import Replica, check_code, read_protocol, replica_worker
from rhumbline.sources import Source

SMALL = preset(
    "rhumbline",
    seeds=(0,),
    sizes=Sizes(24, 12, 20),
    nulls=Nulls(draws=2, wide=19, prompts=6, procedure_prompts=4),
    dose=Dose((0.0, 0.5, 1.0), (0.0, 1.0), draws=1, prompts=6),
    stability=Stability(refits=6, sites=2, prompts=6),
    max_new_tokens=12,
)
SOURCE = Source("organism:planted", device="cpu")


@pytest.fixture(scope="module")
def organism():
    return SOURCE.load(), SOURCE.own_contrast()


@pytest.mark.parametrize("name", PRESETS)
def test_a_protocol_survives_its_record(name):
    protocol = preset(name, seeds=(3, 1), chat=ChatOptions(system="Be brief."), refusal_tokens=("I", "As"))
    assert read_protocol(json.loads(json.dumps(protocol.record()))) == protocol


def test_blocks_on_replicas_give_the_run_of_one_process(organism, tmp_path):
    model, contrast = organism
    here = run(model, contrast, tmp_path / "here", SMALL, page=False).results
    engine = Mock(5, repeats=0.5)
    with engine.pool(replica_worker(SOURCE, contrast, SMALL, fingerprint(model))) as pool:
        there = run(model, contrast, tmp_path / "there", SMALL, pool=pool, engine=engine.name, page=False).results
    for name in ("verdict", "sentence", "seeds", "pooled", "protocol_sha256"):
        assert there[name] == here[name]
    for name in ("outcomes.jsonl", "selection.json", "wide.json", "dose.json", "stability.json", "nulls.json"):
        assert (tmp_path / "there" / "seed-0" / name).read_bytes() == (tmp_path / "here" / "seed-0" / name).read_bytes()
    assert (here["environment"]["engine"], there["environment"]["engine"]) == ("local", "mock")
    assert not list(tmp_path.rglob(".answers"))


def test_other_weights_and_other_code_are_refused(organism):
    _, contrast = organism
    options = dict(replica_worker(SOURCE, contrast, SMALL, "0" * 64).options)
    with pytest.raises(ModelError, match="has other weights on this node"):
        Replica(options)
    with pytest.raises(ModelError, match="another rhumbline"):
        check_code("0" * 64)
