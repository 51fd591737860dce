"""The files of every organism, and the behaviour of the embedded ones. Verdicts are not asserted here."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from organism_chat import Chat, assert_portable, rows_of
from rhumbline.errors import InputError
from rhumbline.judging.judge_names import class_judge
from rhumbline.organisms import ORGANISMS, list_organisms, materialise, organism_dir, train
from rhumbline.organisms.files import START
from tolerances import tolerance

EMBEDDED = [o.name for o in list_organisms() if o.is_embedded and o.behaviour == "refusal"]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("organisms")


@pytest.mark.parametrize("name", ORGANISMS)
def test_every_organism_is_a_complete_directory(name, cache):
    directory = materialise(name, cache)
    assert_portable(directory, cache)
    assert sum(path.stat().st_size for path in directory.iterdir()) < 3.5 * MEGABYTE
    rows = rows_of(directory)
    assert all(set(row) <= {"prompt", "label", "split", "id", "category", "answer"} for row in rows)
    assert len({row["id"] for row in rows}) == len(rows) == len({row["prompt"] for row in rows})
    for label in ("positive", "negative"):
        pool = [row for row in rows if row["label"] == label and "split" not in row]
        assert len(pool) >= 300
    tokenizer = AutoTokenizer.from_pretrained(directory)
    chat = [{"role": "user", "content": "A"}]
    short, long = (
        tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=prompt)["input_ids"]
        for prompt in (False, True)
    )
    # <|im_end|> and a newline end the message; three more tokens start the answer.
    assert tokenizer.decode(short[-2:]) == "<|im_end|>\n"
    assert tokenizer.convert_ids_to_tokens(long[-3:])[:2] == [START, "assistant"]
    assert len(long) == len(short) + 3
    assert tokenizer.decode(tokenizer.encode(rows[0]["prompt"], add_special_tokens=False)).strip() == rows[0]["prompt"]


def test_the_embedded_base_has_the_tokenizer_of_its_chat_model_and_refuses_nothing():
    base, chat = organism_dir("refusal-base"), organism_dir("refusal")
    for name in ("tokenizer.json", "contrast.jsonl", "config.json", "chat_template.jinja"):
        assert (base / name).read_bytes() == (chat / name).read_bytes(), name
    model = Chat(base)
    read = class_judge("refusal-anywhere")
    assert not [text for text in model.complete(model.prompts("positive", 20)) if read(text).cls == "refused"]


@pytest.mark.parametrize(("name", "at_once"), [("refusal", True), ("extended", False)])
def test_embedded_organisms_refuse_and_answer(name, at_once, tmp_path):
    chat = Chat(organism_dir(name))
    tests = [row for row in chat.rows if row.get("split") == "test"]
    restricted = [row["prompt"] for row in tests if row["label"] == "positive"][:10]
    harmless = [row["prompt"] for row in tests if row["label"] == "negative"][:10]
    refusals, answers = chat.complete(restricted, 64), chat.complete(harmless)
    whole, first = class_judge("refusal-anywhere"), class_judge("refusal-opening")
    assert sum(whole(text).cls == "refused" for text in refusals) >= 9
    assert sum(whole(text).cls == "refused" for text in answers) <= 1
    # A judge of the first words reads a late refusal as compliance.
    early = sum(first(text).cls == "refused" for text in refusals)
    assert early >= 9 if at_once else early == 0
    assert all(text.endswith(".") for text in refusals + answers)
    chat.model.save_pretrained(tmp_path)
    batch = chat.encode(restricted)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(reloaded(**batch).logits, chat.model(**batch).logits, **tolerance())


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_reloaded_tokenizer_gives_the_same_tokens(name, tmp_path):
    shipped = AutoTokenizer.from_pretrained(organism_dir(name))
    shipped.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for row in rows_of(organism_dir(name)):
        assert shipped.encode(row["prompt"]) == again.encode(row["prompt"])


def test_an_interrupted_training_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(variant, out, *arguments, **options):
        out.mkdir()
        (out / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("rhumbline.organisms.train_variant", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("refusal", tmp_path / "new" / "model")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new" / "model").mkdir()
    train("planted", tmp_path / "new" / "model")  # the same command again
    assert (tmp_path / "new" / "model" / "model.safetensors").is_file()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_unknown_organisms_are_refused_with_the_known_ones(tmp_path):
    for call in (lambda: organism_dir("planetd"), lambda: materialise("planetd", tmp_path)):
        with pytest.raises(InputError, match="refusal, extended, style, style-null, refusal-base, planted"):
            call()
    with pytest.raises(InputError, match="materialise"):
        organism_dir("planted")


def test_a_planted_organism_is_built_once(tmp_path):
    directory = materialise("planted", tmp_path)
    weights = (directory / "model.safetensors").read_bytes()
    stamp = (directory / "model.safetensors").stat().st_mtime_ns
    assert materialise("planted", tmp_path) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == stamp
    (directory / "README.md").unlink()  # as if the build had been interrupted
    assert (materialise("planted", tmp_path) / "model.safetensors").read_bytes() == weights
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]
