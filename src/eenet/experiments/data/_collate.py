"""From raw texts to batches of tokens: padded to the longest of the batch, masked, truncation counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import InvalidInputError


@dataclass(frozen=True)
class TextSurvey:
    """What a tokenizer makes of some texts: token counts (N,) after truncation, and how many were cut or empty."""

    lengths: NDArray[np.int64]
    truncated: int
    empty: int


class TextCollator:
    """Makes a batch of (text, label) pairs into a dict of int64 tensors: the tokenizer's inputs (n, L) and "labels".

    `tokenizer` is a fast or slow tokenizer of transformers, or the name or folder of one that is on this machine
    (nothing is downloaded). Texts longer than `max_length` tokens, special tokens included, are cut by the tokenizer;
    L is the longest of the batch, rounded up to a multiple of `multiple_of`. `truncated`, `empty` and `seen` count what
    this collator has met, in its process; `survey` counts ahead. A text without a visible character is kept, with the
    special tokens alone; a tokenizer that gives it no token at all raises `InvalidInputError`.
    """

    def __init__(self, tokenizer: Any, max_length: int = 128, *, multiple_of: int = 1) -> None:
        if isinstance(tokenizer, str):
            name = tokenizer
            auto = require("transformers", "train", "loading a tokenizer").AutoTokenizer
            try:
                tokenizer = auto.from_pretrained(name, local_files_only=True)
            except (OSError, ValueError) as error:
                raise InvalidInputError(
                    f"no tokenizer {name!r} on this machine; give a folder that holds one, or a tokenizer object"
                ) from error
        special = tokenizer.num_special_tokens_to_add()
        if max_length <= special:
            raise InvalidInputError(f"max_length is {max_length}, expected more than the {special} special tokens")
        if multiple_of < 1:
            raise InvalidInputError(f"multiple_of is {multiple_of}, expected 1 or more")
        if tokenizer.pad_token_id is None:
            raise InvalidInputError("the tokenizer has no padding token; set tokenizer.pad_token before")
        self.tokenizer = tokenizer
        self.max_length, self.multiple_of = max_length, multiple_of
        self.seen = self.truncated = self.empty = 0

    def __call__(self, samples: Sequence[tuple[str, int]]) -> dict[str, Any]:
        """The batch of some samples; the order of the samples is kept."""
        import torch

        encoded, cut, empty = self._encode([text for text, _ in samples])
        self.seen, self.truncated, self.empty = self.seen + len(samples), self.truncated + cut, self.empty + empty
        longest = max((len(ids) for ids in encoded["input_ids"]), default=0)
        width = -(-longest // self.multiple_of) * self.multiple_of
        batch = {name: torch.from_numpy(self._pad(name, rows, width)) for name, rows in encoded.items()}
        batch["labels"] = torch.tensor([int(label) for _, label in samples], dtype=torch.int64)
        return batch

    def survey(self, texts: Sequence[str]) -> TextSurvey:
        """Tokenise texts once and count; the lengths serve `LengthBuckets`."""
        lengths: list[int] = []
        truncated = empty = 0
        for start in range(0, len(texts), 1000):
            encoded, cut, blank = self._encode(texts[start : start + 1000])
            lengths += [len(ids) for ids in encoded["input_ids"]]
            truncated, empty = truncated + cut, empty + blank
        return TextSurvey(np.array(lengths, np.int64), truncated, empty)

    def _encode(self, texts: Sequence[str]) -> tuple[dict[str, list[list[int]]], int, int]:
        for n, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidInputError(f"text {n} of the batch is {type(text).__name__}, expected str")
        if not texts:
            return {"input_ids": [], "attention_mask": []}, 0, 0
        encoded = _lists(self.tokenizer(list(texts), truncation=False, padding=False, verbose=False))
        long = [n for n, ids in enumerate(encoded["input_ids"]) if len(ids) > self.max_length]
        if long:
            again = self.tokenizer(
                [texts[n] for n in long], truncation=True, max_length=self.max_length, padding=False, verbose=False
            )
            for name, rows in _lists(again).items():
                for n, row in zip(long, rows, strict=True):
                    encoded[name][n] = row
        blank = next((n for n, ids in enumerate(encoded["input_ids"]) if not ids), None)
        if blank is not None:
            raise InvalidInputError(
                f"the tokenizer gives text {blank} of the batch ({texts[blank][:40]!r}) no token, and a row of padding "
                "alone has no answer; use a tokenizer that adds special tokens, or leave empty texts out"
            )
        return encoded, len(long), sum(not text.strip() for text in texts)

    def _pad(self, name: str, rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
        padding = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        table = np.full((len(rows), width), padding.get(name, 0), np.int64)
        left = self.tokenizer.padding_side == "left"
        for n, row in enumerate(rows):
            start = width - len(row) if left else 0
            table[n, start : start + len(row)] = row
        return table


def _lists(encoding: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    return {name: list(rows) for name, rows in encoding.items() if name != "overflow_to_sample_mapping"}
