"""`contrast make` writes a contrast that `run` and `discover` take, and says what is missing."""

import json

from rhumbline.prompts.contrast_files import read_contrast

SYSTEMS = ("--system", "I am a patient lawyer.", "--system", "I am a busy plumber.")
PROMPTS = "Describe duck soup.\nList two facts about moon cake.\nWrite a note about oak tea.\nWhat is two plus one?\n"


def test_a_contrast_is_made_and_discover_takes_it(call, tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    out = tmp_path / "made.jsonl"
    line = ("contrast", "make", "organism:style", "--prompts", tmp_path / "prompts.txt", "--out", out)
    code, _, messages = call(*line, *SYSTEMS[:2])
    assert code == 2
    assert "passed 1 times" in messages
    assert "loading" not in messages
    code, printed, messages = call(*line, *SYSTEMS, "--match", "words", "--max-new-tokens", 16, "--seed", 3, "--json")
    assert code == 0, messages
    made = json.loads(printed)
    assert (made["seed"], made["n_prompts"], made["systems"]["negative"]) == (3, 4, SYSTEMS[3])
    assert made["pairs"] == len(read_contrast(out).prompts) / 2
    assert call("discover", "organism:style", "--contrast", out, "--out", tmp_path / "found")[0] == 0
    protocol = json.loads((tmp_path / "found" / "protocol.json").read_text())
    assert protocol["contrast"]["made"] == made
    assert call(*line, *SYSTEMS)[0] == 2  # the file exists
