"""Content by sentence embeddings: a tiny model of sentence-transformers, and directories that are none."""

import json
import sys

import numpy as np
import pytest

from rhumbline.errors import InputError
from rhumbline.judging.embeddings import SentenceEmbeddings

TEXT = "the tea is in a tin bread box dog barks at night".split()  # noqa: SIM905
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TEXT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random BERT with mean pooling, written by sentence-transformers."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("embeddings")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(path / "vocab.txt")).save_pretrained(path / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(path / "bert")
    bert = Transformer(str(path / "bert"))
    SentenceTransformer(modules=[bert, Pooling(16)], device="cpu").save(str(path / "tiny"))
    return path / "tiny"


def test_equal_texts_have_the_cosine_one_and_order_counts_for_little(folder):
    model = SentenceEmbeddings.load(folder)
    texts = ["the tea is in a tin", "the bread is in a box", "dog barks at night", ""]
    same = model.similarity(texts, texts)
    assert same[:3] == pytest.approx(1, abs=1e-5)
    assert same[3] == 0  # nothing is kept in an empty text
    other = model.similarity([texts[0]] * 2, texts[1:3])
    assert other[1] < other[0] < 1  # shared words
    vectors = model.encode(texts[:3])
    cosines = vectors @ vectors.T
    assert model.by_chance(texts[:3]) == pytest.approx(cosines[np.triu_indices(3, 1)].mean(), abs=1e-5)
    assert model.by_chance(texts[:1]) == 0
    assert model.name == "tiny"


def test_a_directory_that_is_no_such_model_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"local directory with modules\.json"):
        SentenceEmbeddings.load(tmp_path / "none")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "modules.json").write_text((folder / "modules.json").read_text())
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="could not be loaded"):
        SentenceEmbeddings.load(broken)
    for parts in ([{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}], [], {}, [{"type": 3}]):
        (broken / "modules.json").write_text(json.dumps(parts))
        with pytest.raises(InputError, match="without code of its own"):
            SentenceEmbeddings.load(broken)


def test_without_the_library_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install 'rhumbline\[embeddings\]'"):
        SentenceEmbeddings.load(tmp_path)
