"""Texts to tokens, by the tokenizer of a network of Hugging Face."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eenet._extras import require
from eenet._files import read_json
from eenet._values import array_value
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.preprocessing._base import EXTRA, Flags, Input, Inputs, Preprocessing, require_names

TOKENIZER_FILE = "preprocessing/tokenizer.json"

_TOKEN_ARRAYS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

# Networks whose positions are counted from behind the padding token's number.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")


@array_value
@dataclass(frozen=True)
class TextPreprocessing(Preprocessing):
    """Texts to int64 arrays (N, T) of tokens, masks and, where the network takes them, token types.

    Parameters
    ----------
    tokenizer
        A fast tokenizer of transformers, a `tokenizers.Tokenizer`, a folder or file with a tokenizer.json, or the
        content of one.
    max_length
        Texts are truncated to this many tokens.
    pad_to
        Texts are padded to the longest of their batch, or to this many tokens; `eenet.export` sets it where the network
        takes one length only.
    inputs
        The arrays to make, of "input_ids", "attention_mask" and "token_type_ids"; by default those that the network
        takes, and the first two where no network is known.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "film": 3}, unk_token="[UNK]"))
    >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> prepare = TextPreprocessing(tokenizer, max_length=8, inputs=("input_ids",))
    >>> prepare(["good film", "film"])["input_ids"].tolist()
    [[2, 3], [3, 0]]
    """

    tokenizer: Any
    max_length: int = 128
    pad_to: int | None = None
    inputs: tuple[str, ...] | None = None
    kind: str = field(default="text", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokenizer", _tokenizer_file(self.tokenizer))
        if self.inputs is not None:
            object.__setattr__(self, "inputs", tuple(self.inputs))
        unknown = [name for name in self._names if name not in _TOKEN_ARRAYS]
        if unknown or not self._names:
            raise InvalidInputError(f"inputs are {self.inputs}, expected some of {sorted(_TOKEN_ARRAYS)}")
        if self.max_length < 1 or (self.pad_to is not None and self.pad_to < self.max_length):
            raise InvalidInputError(
                f"max_length is {self.max_length} and pad_to {self.pad_to}; expected 1 or more, and pad_to not below"
            )

    @property
    def _names(self) -> tuple[str, ...]:
        return ("input_ids", "attention_mask") if self.inputs is None else self.inputs

    @classmethod
    def from_pretrained(
        cls,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        pad_to: int | None = None,
        inputs: Sequence[str] | None = None,
    ) -> TextPreprocessing:
        """What a tokenizer of Hugging Face does, as far as its files or attributes say and no argument says otherwise.

        Parameters
        ----------
        tokenizer
            A fast tokenizer of transformers, a `tokenizers.Tokenizer`, a folder with a tokenizer.json, or that file.
            tokenizer_config.json and config.json beside it are read too: the padding token and side, the longest text,
            and which arrays the network takes.
        max_length
            By default the least of `model_max_length` and the positions of the network, where neither is known that of
            the tokenizer's own truncation, and else 128.
        pad_to, inputs
            As of the class.

        Raises
        ------
        InvalidInputError
            For what is no fast tokenizer, and where no padding token is known.
        FileFormatError
            For a damaged file.

        Examples
        --------
        >>> import tokenizers
        >>> from eenet.preprocessing import TextPreprocessing
        >>> words = tokenizers.models.WordLevel({"[PAD]": 0, "good": 1, "film": 2}, unk_token="[PAD]")
        >>> preprocessing = TextPreprocessing.from_pretrained(tokenizers.Tokenizer(words), max_length=8)
        >>> preprocessing(["good", "film"])["attention_mask"].shape
        (2, 1)
        """
        known = _Pretrained.of(tokenizer)
        length = min(known.length or 128, pad_to or sys.maxsize) if max_length is None else max_length
        return cls(known.tokenizer, length, pad_to, known.inputs if inputs is None else tuple(inputs))

    def fitted(self, inputs: Sequence[Input]) -> TextPreprocessing:
        """With the names and the length that the network takes; raises `InvalidInputError` where it takes others."""
        names = tuple(one.name for one in inputs)
        made = replace(self, inputs=names) if self.inputs is None or set(names) < set(self.inputs) else self
        require_names(made._names, inputs)
        length = inputs[0].shape[1]
        if isinstance(length, int) and self.pad_to is None:
            return replace(made, pad_to=length, max_length=min(self.max_length, length))
        if isinstance(length, int) and self.pad_to != length:
            raise InvalidInputError(
                f"the network takes texts of {length} tokens only, and pad_to is {self.pad_to}; leave pad_to out, or "
                "cut the network with dynamic={1: 'sequence'}"
            )
        return made

    @cached_property
    def _tokenizer(self) -> Any:
        library = require("tokenizers", EXTRA)
        try:
            tokenizer = library.Tokenizer.from_buffer(self.tokenizer)
        except ValueError as error:
            raise FileFormatError(f"the tokenizer cannot be read: {error}") from error
        padding, truncation = tokenizer.padding or {}, tokenizer.truncation or {}
        pad = {"pad_id": padding.get("pad_id"), "pad_token": padding.get("pad_token")}
        if pad["pad_id"] is None:
            token = next((t for t in ("[PAD]", "<pad>", "<|endoftext|>") if tokenizer.token_to_id(t) is not None), None)
            if token is None:
                raise InvalidInputError("the tokenizer has no padding token; enable padding in it before exporting")
            pad = {"pad_id": tokenizer.token_to_id(token), "pad_token": token}
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if self.max_length < special:  # then the tokenizer would cut nothing, unsaid
            raise InvalidInputError(
                f"max_length is {self.max_length}, and the tokenizer adds {special} special tokens to each text; "
                "expected room for them and for words"
            )
        tokenizer.enable_truncation(self.max_length, direction=truncation.get("direction", "right"))
        tokenizer.enable_padding(**pad, length=self.pad_to, direction=padding.get("direction", "right"))
        return tokenizer

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The tokens of some strings; raises `InvalidInputError` naming the item that is none."""
        return self.with_flags(items)[0]

    def with_flags(self, items: Sequence[Any]) -> tuple[Inputs, Flags]:
        """As a call, and which of the texts were "truncated", and which were "empty": no token but special ones."""
        for n, item in enumerate(items):
            if not isinstance(item, str):
                raise InvalidInputError(f"item {n} is {kind_of(item)}, expected a string")
        encoded = self._tokenizer.encode_batch(list(items))
        empty = next((n for n, one in enumerate(encoded) if not any(one.attention_mask)), None)
        if empty is not None:
            raise InvalidInputError(f"item {empty} ({items[empty][:40]!r}) has no token; give a text that is not empty")
        shape = len(encoded), len(encoded[0]) if encoded else self.pad_to or 0
        made = {
            name: np.array([getattr(one, _TOKEN_ARRAYS[name]) for one in encoded], np.int64).reshape(shape)
            for name in self._names
        }
        flags = {
            "truncated": np.array([bool(one.overflowing) for one in encoded], dtype=np.bool_),
            "empty": np.array([all(one.special_tokens_mask) for one in encoded], dtype=np.bool_),
        }
        return made, flags

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description; the tokenizer is a file beside it."""
        return {
            "kind": self.kind,
            "max_length": self.max_length,
            "pad_to": self.pad_to,
            "inputs": list(self._names),
            "tokenizer": TOKENIZER_FILE,
        }

    def files(self) -> dict[str, bytes]:
        """The tokenizer."""
        return {TOKENIZER_FILE: self.tokenizer}


def _tokenizer_file(tokenizer: Any) -> bytes:
    """The content of a tokenizer.json."""
    if isinstance(tokenizer, bytes):
        return tokenizer
    if isinstance(tokenizer, (str, Path)):
        path = Path(tokenizer)
        if path.is_dir() and not (path / "tokenizer.json").is_file():
            raise InvalidInputError(
                f"{str(path)!r} holds no tokenizer.json; write one there with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise InvalidInputError(
                f"there is no {str(path)!r}; give a folder that holds a tokenizer.json, or a tokenizer: nothing is "
                "downloaded here"
            )
        return path.read_bytes()
    fast = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(fast, "to_str"):
        raise InvalidInputError(
            f"the tokenizer is {kind_of(tokenizer)}, expected a fast tokenizer of transformers, one of "
            "tokenizers, or the folder of a tokenizer.json"
        )
    content: str = fast.to_str()
    return content.encode()


@dataclass(frozen=True)
class _Pretrained:
    """What Hugging Face keeps of a tokenizer: its file with padding and truncation, the longest text, the arrays."""

    tokenizer: bytes
    length: int | None
    inputs: tuple[str, ...] | None

    @classmethod
    def of(cls, tokenizer: Any) -> _Pretrained:
        content = _tokenizer_file(tokenizer)
        network: dict[str, Any] = {}
        if isinstance(tokenizer, (str, Path)):
            folder = Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent
            said, network = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
            pad = said.get("pad_token")
            said["pad_token"] = pad.get("content") if isinstance(pad, dict) else pad
        else:
            keys = ("pad_token", "padding_side", "truncation_side", "model_max_length", "model_input_names")
            said = {key: getattr(tokenizer, key, None) for key in keys}
        library = require("tokenizers", EXTRA)
        try:
            made = library.Tokenizer.from_buffer(content)
        except ValueError as error:
            raise FileFormatError(f"the tokenizer cannot be read: {error}") from error
        pad_id = made.token_to_id(said["pad_token"]) if said.get("pad_token") else None
        side = {"direction": said["padding_side"]} if said.get("padding_side") else {}
        if pad_id is not None:
            made.enable_padding(pad_id=pad_id, pad_token=said["pad_token"], **side)
        elif side and made.padding:
            made.enable_padding(**{**made.padding, **side})
        length = cls._length(said, network) or (made.truncation or {}).get("max_length")
        if said.get("truncation_side"):
            made.enable_truncation(length or 128, direction=said["truncation_side"])
        names = said.get("model_input_names")
        if names is None and network.get("type_vocab_size", 0) > 1:
            names = list(_TOKEN_ARRAYS)
        inputs = None if names is None else tuple(name for name in _TOKEN_ARRAYS if name in names)
        return cls(made.to_str().encode(), length, inputs or None)

    @staticmethod
    def _length(said: Mapping[str, Any], network: Mapping[str, Any]) -> int | None:
        """The longest text; transformers writes 1e30 where it does not know."""
        positions = network.get("max_position_embeddings")
        if positions and network.get("model_type") in _OFFSET_POSITIONS:
            positions -= network.get("pad_token_id", 1) + 1
        known = [int(n) for n in (said.get("model_max_length"), positions) if n and 0 < n < 1e9]
        return min(known, default=None)


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    return read_json(path, "get it again") if path.is_file() else {}
