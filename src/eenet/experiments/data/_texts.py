"""SST-2 (Socher et al., 2013; GLUE) and AG News (Zhang et al., 2015): parquet, TSV and CSV; batches of tokens."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._values import array_value
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.experiments.data._dataset import (
    CorruptSample,
    Dataset,
    Draw,
    Indices,
    one,
    positions,
    require_labels,
    settle,
)
from eenet.experiments.data._files import first_folder, integers, missing, parquet_shards, read_columns

_Row: TypeAlias = "tuple[str, int] | CorruptSample"


class Texts(Dataset):
    """Labeled raw strings, kept in memory; a `TextCollator` makes batches of tokens of them.

    Both transforms read the string as it is. `empty` is the number of texts without a visible character, which are
    kept: a tokenizer gives them its special tokens alone.

    Parameters
    ----------
    texts : sequence of str
        The inputs.
    labels : ndarray of shape (N,)
        The true classes.
    classes : sequence of str
        Their names.
    name, split : str
        Which data it is.
    transform : str
        "eval" or "train"; both read a text as it is.
    skipped : sequence
        What could not be read.

    Examples
    --------
    >>> from eenet.experiments.data import Texts
    >>> data = Texts(["good", "bad"], np.array([1, 0]), ["no", "yes"], name="mine", split="train")
    >>> len(data), data.classes
    (2, ('no', 'yes'))
    """

    task = "text"
    labels: NDArray[np.int64]

    def __init__(
        self,
        texts: Sequence[str],
        labels: NDArray[Any],
        classes: Sequence[str],
        *,
        name: str,
        split: str,
        transform: str = "eval",
        skipped: Sequence[CorruptSample] = (),
    ) -> None:
        super().__init__(len(texts), labels, classes, name=name, split=split, transform=transform, skipped=skipped)
        self.texts = tuple(texts)

    @property
    def empty(self) -> int:
        """Number of texts without a visible character."""
        return sum(not text.strip() for text in self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, indices: Indices, draw: Draw = None) -> tuple[list[str], Any]:  # noqa: ARG002 - nothing to draw
        """A list of strings and int64 labels (n,)."""
        where = positions(indices, len(self))
        return [self.texts[n] for n in where], self._labels_of(where)

    def digest(self, index: int) -> bytes:
        """A hash of one text, spaces around words and case aside: GLUE's phrases end with a space, sentences do not."""
        return _hash_text(" ".join(self.texts[one(index, len(self))].lower().split()))

    def fingerprint(self) -> str:
        """A hash of all texts and labels."""
        return sha256(b"".join(map(_hash_text, self.texts)) + self.labels.astype("<i8").tobytes()).hexdigest()


def _hash_text(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@array_value
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
        if not samples:
            batch = {name: torch.empty(0, 0, dtype=torch.int64) for name in encoded}
        else:
            pad = require("transformers", "train", "padding texts").DataCollatorWithPadding
            batch = dict(pad(self.tokenizer, pad_to_multiple_of=self.multiple_of)(encoded))
        batch["labels"] = torch.tensor([int(label) for _, label in samples], dtype=torch.int64)
        return batch

    def survey(self, texts: Sequence[str]) -> TextSurvey:
        """Tokenize texts once and count; the lengths serve `loader`."""
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
                raise InvalidInputError(f"text {n} of the batch is {kind_of(text)}, expected a string")
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


def _lists(encoding: Mapping[str, Any]) -> dict[str, list[list[int]]]:
    return {name: list(rows) for name, rows in encoding.items() if name != "overflow_to_sample_mapping"}


@dataclass(frozen=True)
class _TextData:
    title: str
    classes: tuple[str, ...]
    text_column: str
    table: str  # the other format
    table_folders: tuple[str, ...]
    table_files: dict[str, str]
    elsewhere: dict[str, tuple[str, str]] = field(default_factory=dict)  # a split that is one of another folder


_DATA = {
    "sst2": _TextData(
        "SST-2",
        ("negative", "positive"),
        "sentence",
        "GLUE's TSV with a header that names 'sentence' and 'label'",
        ("", "SST-2", "sst2", "sst2/SST-2", "glue/SST-2"),
        {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv", "phrases": "train.tsv"},
        {"phrases": ("sst2-phrases", "train")},
    ),
    "ag_news": _TextData(
        "AG News",
        ("World", "Sports", "Business", "Sci/Tech"),
        "text",
        "CSV without a header: class 1 to 4, title, description",
        ("", "ag_news_csv", "ag_news", "ag_news/ag_news_csv"),
        {"train": "train.csv", "test": "test.csv", "more-train": "more-train.csv"},
    ),
}


def load_texts(
    name: str, root: Path, split: str, *, transform: str, on_corrupt: str, limit: int | None, remedy: str
) -> Texts:
    """The texts of a split, or of several that are joined by "+"."""
    data = _DATA[name]
    rows = chain.from_iterable(_rows_of(name, root, one_split, limit, remedy) for one_split in split.split("+"))
    texts: list[str] = []
    labels: list[int] = []
    corrupt: list[CorruptSample] = []
    for row in rows:
        if isinstance(row, CorruptSample):
            corrupt.append(row)
        else:
            texts.append(row[0])
            labels.append(row[1])
    settle(corrupt, len(texts), on_corrupt)
    codes = np.array(labels, np.int64)
    return Texts(texts, codes, data.classes, name=name, split=split, transform=transform, skipped=corrupt)


def _rows_of(name: str, root: Path, split: str, limit: int | None, remedy: str) -> Iterator[_Row]:
    """The rows of one split."""
    data = _DATA[name]
    folder_name, stem = data.elsewhere.get(split, (name, split))
    own_folder = (folder_name, f"{folder_name}/data")
    shards = parquet_shards(root, own_folder if split in data.elsewhere else ("", "data", *own_folder), stem)
    if shards:
        return _parquet_rows(shards, data, limit)
    file_name = data.table_files[split]
    folder = first_folder(root, data.table_folders, holding=(file_name,))
    if folder is None:
        where = f"{folder_name}/" if split in data.elsewhere else ""
        raise missing(
            f"{data.title} split {split!r}",
            root,
            f"{where}{stem}-*.parquet (Hugging Face: columns {data.text_column!r}, 'label'), or {file_name} "
            f"({data.table})",
            remedy,
        )
    return (_tsv_rows if name == "sst2" else _csv_rows)(folder / file_name, data, limit)


def _parquet_rows(shards: Sequence[Path], data: _TextData, limit: int | None) -> Iterator[_Row]:
    columns_of_role = {"text": (data.text_column,), "label": ("label",)}
    for path, first, columns in read_columns(shards, columns_of_role, limit):
        texts = columns["text"].to_pylist()
        labels = integers(columns["label"], path, first)
        require_labels(np.array([0 if n is None else n for n in labels], np.int64), data.classes, str(path), first)
        for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=first):
            if text is not None and not isinstance(text, str):
                raise InvalidInputError(
                    f"{str(path)!r}: column {data.text_column!r} holds {kind_of(text)} in row {row}, expected strings"
                )
            if text is None or label is None:
                yield CorruptSample(f"{path.name} row {row}", "has no text" if text is None else "has no label")
            else:
                yield text, label


def _tsv_rows(path: Path, data: _TextData, limit: int | None) -> Iterator[_Row]:
    lines = _records(path, csv.reader, delimiter="\t", quoting=csv.QUOTE_NONE)
    _, header = next(lines, (1, []))
    if "sentence" not in header or "label" not in header:
        unlabeled = " GLUE's test split has no labels: use split='validation'." if "index" in header else ""
        raise InvalidInputError(
            f"{str(path)!r} starts with the columns {header}, expected a header with 'sentence' and 'label'.{unlabeled}"
        )
    sentence, label = header.index("sentence"), header.index("label")
    for line, cells in _first(lines, limit):
        if len(cells) == len(header):
            yield cells[sentence], _label(cells[label], data, path, line)
        else:
            yield _wrong_fields(path, line, cells, len(header))


def _csv_rows(path: Path, data: _TextData, limit: int | None) -> Iterator[_Row]:
    for line, cells in _first(_records(path, csv.reader, skipinitialspace=True), limit):
        if len(cells) == 3:
            yield f"{cells[1]} {cells[2]}", _label(cells[0], data, path, line, first=1)
        else:
            yield _wrong_fields(path, line, cells, 3)


def _wrong_fields(path: Path, line: int, cells: Sequence[str], expected: int) -> CorruptSample:
    return CorruptSample(f"{path.name} line {line}", f"has {len(cells)} fields, expected {expected}")


def _first(lines: Iterator[tuple[int, list[str]]], limit: int | None) -> Iterator[tuple[int, list[str]]]:
    for count, item in enumerate(lines):
        if count == limit:
            return
        yield item


def _records(path: Path, reader: Any, **dialect: Any) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = reader(file, **dialect)
            for cells in rows:
                if cells:
                    yield rows.line_num, cells
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{str(path)!r} is not UTF-8 text ({error.reason}); convert it, or download it again"
        ) from error
    except csv.Error as error:
        raise FileFormatError(f"{str(path)!r} line {rows.line_num}: {error}; download the file again") from error


def _label(cell: str, data: _TextData, path: Path, line: int, first: int = 0) -> int:
    last = first + len(data.classes) - 1
    if not cell.strip().isdecimal() or not first <= int(cell) <= last:
        raise InvalidInputError(
            f"{str(path)!r} line {line} has label {cell!r}, outside the {len(data.classes)} classes {first} to {last}"
        )
    return int(cell) - first
