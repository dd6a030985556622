"""From raw inputs to a network's arrays, with numpy and, for images, Pillow, or for texts, tokenizers: no torch.

What is written into an exported bundle, so that a server can take image files and texts.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet._values import array_value
from eenet.errors import FileFormatError, InvalidInputError

__all__ = ["ArrayPreprocessing", "CascadePreprocessing", "ImagePreprocessing", "Preprocessing", "TextPreprocessing"]

Array = NDArray[Any]
Inputs = dict[str, Array]
"""A network's inputs by name, each with the samples along dimension 0."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOKENIZER_FILE = "preprocessing/tokenizer.json"

_EXTRA = "predict"
_MODES = {1: "L", 3: "RGB"}
# What Pillow raises for damaged files is not one family: PNG chunks alone give four of these.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class _Input(Protocol):
    """An input of a network: its name, and its shape with the samples first; sizes that may change are names."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int | str, ...]: ...


class Preprocessing(ABC):
    """Turns raw inputs into a network's arrays.

    Attributes
    ----------
    kind
        What an item is: "array", "image" (the bytes or path of a file) or "text" (a string).

    Examples
    --------
    >>> from eenet.preprocessing import ImagePreprocessing, Preprocessing
    >>> isinstance(ImagePreprocessing((32, 32)), Preprocessing)
    True
    """

    kind: str

    @abstractmethod
    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The network's inputs for some raw inputs, in their order; raises `InvalidInputError` naming the item."""

    @abstractmethod
    def fitted(self, inputs: Sequence[_Input]) -> Preprocessing:
        """The same for a network with these inputs; raises `InvalidInputError` where it makes something else."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON-ready description."""

    def files(self) -> dict[str, bytes]:
        """What is kept beside the description, by name in the bundle."""
        return {}


def _require_names(made: Sequence[str], inputs: Sequence[_Input]) -> None:
    expected = [one.name for one in inputs]
    if sorted(made) != sorted(expected):
        raise InvalidInputError(
            f"the preprocessing makes the inputs {list(made)}, the network takes {expected}; name them in it"
        )


@dataclass(frozen=True)
class ArrayPreprocessing(Preprocessing):
    """None: an item is an array, or a mapping of arrays by the names `inputs`, without the batch dimension.

    Parameters
    ----------
    inputs : tuple of str
        The names of the network's inputs.

    Examples
    --------
    >>> from eenet.preprocessing import ArrayPreprocessing
    >>> prepare = ArrayPreprocessing(("x",))
    >>> prepare([np.zeros(3, dtype=np.float32)] * 2)["x"].shape
    (2, 3)
    """

    inputs: tuple[str, ...]
    kind: str = field(default="array", init=False)

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The items stacked; raises `InvalidInputError` where they have different shapes or names."""
        rows = [dict(item) if isinstance(item, Mapping) else {self.inputs[0]: item} for item in items]
        for n, row in enumerate(rows):
            if set(row) != set(self.inputs):
                raise InvalidInputError(f"item {n} has the inputs {sorted(row)}, expected {sorted(self.inputs)}")
        try:
            return {name: np.stack([row[name] for row in rows]) for name in self.inputs}
        except ValueError as error:
            raise InvalidInputError(f"the items cannot be one batch ({error}); give arrays of one shape") from error

    def fitted(self, inputs: Sequence[_Input]) -> ArrayPreprocessing:
        """Itself; raises `InvalidInputError` where the inputs have other names."""
        _require_names(self.inputs, inputs)
        return self

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"kind": self.kind, "inputs": list(self.inputs)}


@dataclass(frozen=True)
class ImagePreprocessing(Preprocessing):
    """Image files to float32 (N, channels, height, width): resized, cropped, scaled to 0..1, normalized.

    Parameters
    ----------
    size
        (height, width) of what the network takes, in pixels.
    resize
        The shorter side is brought to this many pixels and the center is cropped, as in the evaluation of ImageNet
        networks (256 for 224); without it the whole image is stretched to `size`.
    mean, std
        One number for each channel, of which there are 3 (RGB) or 1 (gray), at a scale of 0..1.
    input
        The name of the network's input; `eenet.export` sets it where the network has one input.
    max_pixels
        A larger image is refused before it is decoded.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> from eenet.preprocessing import ImagePreprocessing
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (300, 200)).save(file, "PNG")
    >>> ImagePreprocessing((224, 224), resize=256)([file.getvalue()])["x"].shape
    (1, 3, 224, 224)
    """

    size: tuple[int, int]
    resize: int | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input: str = "x"
    max_pixels: int = 50_000_000
    kind: str = field(default="image", init=False)

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.size) != 2 or min(self.size) < 1 or (self.resize is not None and self.resize < max(self.size)):
            raise InvalidInputError(
                f"size is {self.size} and resize {self.resize}; expected (height, width), and resize not below them"
            )
        if len(self.mean) not in _MODES or len(self.std) != len(self.mean) or min(self.std) <= 0:
            raise InvalidInputError(
                f"mean is {self.mean} and std {self.std}; expected one number for each of 1 or 3 channels, std above 0"
            )

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The images, each given as the bytes or the path of a file; raises `FileFormatError` naming the item."""
        height, width = self.size
        pixels = np.empty((len(items), len(self.mean), height, width), np.uint8)
        for n, item in enumerate(items):
            pixels[n] = self._pixels(item, n)
        scale = np.array([1 / (255 * s) for s in self.std], np.float32).reshape(1, -1, 1, 1)
        shift = np.array([-m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32).reshape(1, -1, 1, 1)
        return {self.input: pixels.astype(np.float32) * scale + shift}

    def _pixels(self, item: Any, n: int) -> NDArray[np.uint8]:
        pillow = require("PIL.Image", _EXTRA)
        if not isinstance(item, (bytes, bytearray, str, Path)):
            raise InvalidInputError(f"item {n} is a {type(item).__name__}, expected the bytes or path of an image file")
        source = io.BytesIO(item) if isinstance(item, (bytes, bytearray)) else item
        what = f"item {n}" if isinstance(item, (bytes, bytearray)) else repr(str(item))
        try:
            with pillow.open(source) as image:
                if image.width * image.height > self.max_pixels:
                    raise FileFormatError(
                        f"{what} has {image.width} x {image.height} pixels, more than the {self.max_pixels} that are "
                        "accepted; send a smaller image"
                    )
                return self._cut(image.convert(_MODES[len(self.mean)]), pillow.Resampling.BILINEAR)
        except FileFormatError:
            raise
        except (*_DAMAGED, pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
            # Pillow names its in-memory stream by address, which helps no reader.
            text = str(error) or type(error).__name__
            reason = "not an image format that Pillow knows" if "cannot identify image file" in text else text
            raise FileFormatError(f"{what} does not decode as an image ({reason})") from error

    def _cut(self, image: Any, bilinear: Any) -> NDArray[np.uint8]:
        height, width = self.size
        if self.resize is None:
            image = image.resize((width, height), bilinear)
        else:
            shorter, (w, h) = self.resize, image.size
            w, h = (shorter, int(shorter * h / w)) if w <= h else (int(shorter * w / h), shorter)
            if w * h > self.max_pixels:  # a strip of a few pixels' width would become billions of them
                raise FileFormatError(
                    f"the image is {image.width} x {image.height} and would be {w} x {h} with its shorter side at "
                    f"{shorter}, more than the {self.max_pixels} pixels that are accepted; send a squarer one"
                )
            left, top = round((w - width) / 2), round((h - height) / 2)
            image = image.resize((w, h), bilinear).crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def fitted(self, inputs: Sequence[_Input]) -> ImagePreprocessing:
        """With the name of the network's input; raises `InvalidInputError` where it takes other images."""
        made = replace(self, input=inputs[0].name) if len(inputs) == 1 else self
        _require_names((made.input,), inputs)
        shape, sizes = inputs[0].shape, (len(self.mean), *self.size)
        if len(shape) != 4 or any(isinstance(w, int) and w != s for w, s in zip(shape[1:], sizes, strict=True)):
            raise InvalidInputError(f"the preprocessing makes images of {sizes}, the network takes {shape[1:]}")
        return made

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {**asdict(self), "size": list(self.size), "mean": list(self.mean), "std": list(self.std)}


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

    def fitted(self, inputs: Sequence[_Input]) -> TextPreprocessing:
        """With the names and the length that the network takes; raises `InvalidInputError` where it takes others."""
        names = tuple(one.name for one in inputs)
        made = replace(self, inputs=names) if self.inputs is None or set(names) < set(self.inputs) else self
        _require_names(made._names, inputs)
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
        library = require("tokenizers", _EXTRA)
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
        tokenizer.enable_truncation(self.max_length, direction=truncation.get("direction", "right"))
        tokenizer.enable_padding(**pad, length=self.pad_to, direction=padding.get("direction", "right"))
        return tokenizer

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The tokens of some strings; raises `InvalidInputError` naming the item that is none."""
        for n, item in enumerate(items):
            if not isinstance(item, str):
                raise InvalidInputError(f"item {n} is a {type(item).__name__}, expected a string")
        encoded = self._tokenizer.encode_batch(list(items))
        empty = next((n for n, one in enumerate(encoded) if not any(one.attention_mask)), None)
        if empty is not None:
            raise InvalidInputError(f"item {empty} ({items[empty][:40]!r}) has no token; give a text that is not empty")
        return {
            name: np.array([getattr(one, _TOKEN_ARRAYS[name]) for one in encoded], np.int64).reshape(len(items), -1)
            for name in self._names
        }

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


@array_value
@dataclass(frozen=True)
class CascadePreprocessing(Preprocessing):
    """What the members of a cascade make of the same raw inputs, each by a preprocessing of its own.

    Parameters
    ----------
    members : mapping of str to Preprocessing
        For each member with inputs of its own their prefix, and what makes them: the arrays of "small" are
        "small_input_ids" and so on, which `eenet.models.InputMap(prefix="small")` gives to the member. All take texts,
        or all take images. A cascade makes all inputs of a sample when it comes in, whichever members it reaches.

    Raises
    ------
    InvalidInputError
        Where a prefix is no identifier or starts another one, there are none, or they take different raw inputs.

    Examples
    --------
    >>> from eenet.preprocessing import CascadePreprocessing, TextPreprocessing
    >>> from tokenizers import Tokenizer, models
    >>> few = Tokenizer(models.WordLevel({"[PAD]": 0, "good": 1}, unk_token="[PAD]"))
    >>> more = Tokenizer(models.WordLevel({"good": 0, "bad": 1, "[PAD]": 2}, unk_token="[PAD]"))
    >>> small, big = (TextPreprocessing(one, inputs=("input_ids",)) for one in (few, more))
    >>> prepare = CascadePreprocessing({"small": small, "big": big})
    >>> {name: array.tolist() for name, array in prepare(["good", "bad"]).items()}
    {'small_input_ids': [[1], [0]], 'big_input_ids': [[0], [1]]}
    """

    members: Mapping[str, Preprocessing]
    kind: str = field(default="text", init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.members, Mapping) or not self.members:
            raise InvalidInputError(f"members is {self.members!r}, expected a preprocessing for each of some prefixes")
        for prefix, one in self.members.items():
            if not isinstance(prefix, str) or not prefix.isidentifier():
                raise InvalidInputError(f"the prefix {prefix!r} is no identifier; expected a name such as 'small'")
            if not isinstance(one, (ImagePreprocessing, TextPreprocessing)):
                raise InvalidInputError(
                    f"the preprocessing of {prefix!r} is a {type(one).__name__}, expected a TextPreprocessing or an "
                    "ImagePreprocessing"
                )
            other = next((name for name in self.members if name.startswith(f"{prefix}_")), None)
            if other is not None:
                raise InvalidInputError(
                    f"the prefix {other!r} starts with {prefix!r}, whose inputs it would be; call one by another name"
                )
        kinds = sorted({one.kind for one in self.members.values()})
        if len(kinds) > 1:
            raise InvalidInputError(f"the members take {' and '.join(kinds)}; all are given the same raw inputs")
        object.__setattr__(self, "members", dict(self.members))
        object.__setattr__(self, "kind", kinds[0])

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The inputs of all members, each name after its prefix; raises as the members do."""
        return {f"{prefix}_{name}": array for prefix, one in self.members.items() for name, array in one(items).items()}

    def fitted(self, inputs: Sequence[_Input]) -> CascadePreprocessing:
        """Each member's for its inputs; raises `InvalidInputError` for an input of no member, or another shape."""
        own: dict[str, list[_Input]] = {prefix: [] for prefix in self.members}
        for one in inputs:
            prefix = next((prefix for prefix in own if one.name.startswith(f"{prefix}_")), None)
            if prefix is None:
                raise InvalidInputError(
                    f"the network's input {one.name!r} starts with none of the prefixes {list(own)}; it takes "
                    f"{[one.name for one in inputs]}"
                )
            own[prefix].append(_Renamed(one.name.removeprefix(f"{prefix}_"), one.shape))
        without = next((prefix for prefix, given in own.items() if not given), None)
        if without is not None:
            raise InvalidInputError(
                f"no input of the network starts with the prefix {without!r}; it takes {[one.name for one in inputs]}"
            )
        made = {prefix: _fitted(prefix, member, own[prefix]) for prefix, member in self.members.items()}
        return replace(self, members=made)

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description; what the members keep beside theirs is in files of their own."""
        members = {}
        for prefix, member in self.members.items():
            members[prefix] = member.describe()
            if "tokenizer" in members[prefix]:
                members[prefix]["tokenizer"] = _member_file(prefix, members[prefix]["tokenizer"])
        return {"kind": self.kind, "members": members}

    def files(self) -> dict[str, bytes]:
        """The files of the members, by names that have their prefixes."""
        return {
            _member_file(prefix, name): content
            for prefix, member in self.members.items()
            for name, content in member.files().items()
        }


@dataclass(frozen=True)
class _Renamed:
    """An input as its member calls it."""

    name: str
    shape: tuple[int | str, ...]


def _fitted(prefix: str, member: Preprocessing, inputs: Sequence[_Input]) -> Preprocessing:
    try:
        return member.fitted(inputs)
    except InvalidInputError as error:
        raise InvalidInputError(f"inputs of {prefix!r}: {error}") from error


def _member_file(prefix: str, name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{prefix}/{file}"


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
            f"the tokenizer is a {type(tokenizer).__name__}, expected a fast tokenizer of transformers, one of "
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
        library = require("tokenizers", _EXTRA)
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


# Networks whose positions are counted from behind the padding token's number.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet")


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{str(path)!r} is not JSON ({error}); get it again") from error
    if not isinstance(found, dict):
        raise FileFormatError(f"{str(path)!r} holds a {type(found).__name__}, expected an object; get it again")
    return found


_TOKEN_ARRAYS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def preprocessing_from(description: Mapping[str, Any], *, read: Callable[[str], bytes]) -> Preprocessing:
    """The preprocessing of what `describe` gave; `read` gives the files beside it.

    Raises `InvalidInputError`, KeyError or TypeError for what is no description.
    """
    options = dict(description)
    kind = options.pop("kind")
    if "members" in options:
        members = {prefix: preprocessing_from(one, read=read) for prefix, one in options["members"].items()}
        return CascadePreprocessing(members)
    if kind == "array":
        return ArrayPreprocessing(tuple(options["inputs"]))
    if kind == "image":
        return ImagePreprocessing(**options)
    if kind == "text":
        return TextPreprocessing(**{**options, "tokenizer": read(options["tokenizer"])})
    raise InvalidInputError(f"preprocessing of the kind {kind!r} is not known")
