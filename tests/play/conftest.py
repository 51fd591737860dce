"""A session of a finished run of the planted organism."""

import pytest

import rhumbline
from rhumbline.models.sources import Source
from rhumbline.play.opening import DirectionOptions, open_session


@pytest.fixture(scope="package")
def opened(planted_folder, every_stage):
    """Open a session with other options."""
    model = rhumbline.load(str(planted_folder), device="cpu", dtype="float32")

    def get(**options):
        chosen = DirectionOptions(**{"direction": str(every_stage), **options})
        return open_session(model, Source(str(planted_folder)), chosen, chosen.read())

    return get


@pytest.fixture(scope="package")
def session(opened):
    return opened()


@pytest.fixture(scope="package")
def prompt(planted_folder):
    """A prompt that the organism refuses."""
    rows = rhumbline.read_contrast(planted_folder / "contrast.jsonl").prompts
    return next(row.text for row in rows if row.label == "positive")
