"""Text to the token ids that a text encoder takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from quark_jax.errors import UserError, optional_import
from quark_jax.files import read_json


class TextTokeniser:
    """The tokeniser in a Hugging Face folder (its tokenizer.json), by the `tokenizers` library.

    Raises UserError where the library or the file is missing, or the file cannot be read.
    """

    def __init__(self, folder: str | Path):
        tokenizers = optional_import("tokenizers", use=f"tokenise text with {folder}", extra="text")
        path = epath.Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{path}: missing; save it with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{path}: not a tokeniser ({error}); download it again") from error
        self._tokenizer.no_padding()
        self._pad = (
            read_json(epath.Path(folder) / "config.json", "give a Hugging Face folder").get(
                "pad_token_id"
            )
            or 0
        )

    def __call__(
        self, texts: Sequence[str], *, max_tokens: int | None = None, length: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`texts` as ids int32 [batch, tokens] and mask bool [batch, tokens], padded on the right.

        `max_tokens` cuts each text, its special tokens kept; `length` fixes the number of tokens
        of the arrays (otherwise that of the longest text). UserError where a text does not fit.
        """
        if max_tokens is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(max_tokens)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        longest = max((len(row) for row in rows), default=0)
        length = longest if length is None else length
        if longest > length:
            raise UserError(
                f"text of {longest} tokens does not fit {length}; shorten it or set max_tokens"
            )
        ids = np.full((len(rows), length), self._pad, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, True
        return ids, mask
