import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from quark_jax.encoders import TextTokeniser
from quark_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A word tokeniser that ends each text with </s>, and pads by itself, as published ones do."""
    words = {word: i for i, word in enumerate(["</s>", "<unk>", "a", "dog", "barks", "<pad>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    tokenizer.enable_padding(length=64, pad_id=5, pad_token="<pad>")
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": 5}))
    return tmp_path


def test_ids_and_mask(folder):
    ids, mask = TextTokeniser(folder)(["a dog barks", "cat"])
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[2, 3, 4, 0], [1, 0, 5, 5]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1], [1, 1, 0, 0]])


def test_cut_keeps_the_end_and_length_is_fixed(folder):
    tokenise = TextTokeniser(folder)
    ids, mask = tokenise(["a dog barks"], max_tokens=3, length=5)
    np.testing.assert_array_equal(ids, [[2, 3, 0, 5, 5]])
    assert mask.sum() == 3
    assert tokenise([], length=5)[0].shape == (0, 5)
    with pytest.raises(UserError, match="4 tokens does not fit 3"):
        tokenise(["a dog barks"], length=3)


def test_what_is_missing_is_named(folder, monkeypatch):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokeniser"):
        TextTokeniser(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: missing"):
        TextTokeniser(folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[text\]'"):
        TextTokeniser(folder)
