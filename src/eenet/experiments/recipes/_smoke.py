"""Tiny data, weights and checkpoints in the formats of the real ones, so that a recipe can be proved end to end.

The samples are colored by their class, or hold words of it, so that there is something to learn.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import InvalidInputError
from eenet.experiments.data._files import class_names
from eenet.experiments.data._segmentation import CITYSCAPES_IDS
from eenet.experiments.recipes._schema import ModelSettings, Recipe, filled, placeholders
from eenet.models import build_network

Pixels = NDArray[np.uint8]

_WORDS = ("film", "story", "actor", "scene", "plot", "team", "match", "stock", "market", "phone", "city", "vote")
_OF_DATA = "data"
_SYNSETS = ("n01440764", "n02102040", "n03000684", "n03445777")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def write_smoke_files(recipe: Recipe, folder: Path) -> tuple[Path, Path | None]:
    """Write what a recipe reads into `folder`, as tiny data that is made up.

    Returns
    -------
    The data folder, and the folder of the checkpoint, where the recipe starts from one.

    Raises
    ------
    InvalidInputError
        For a data set without a small version.
    """
    root = folder / "datasets"
    root.mkdir(parents=True, exist_ok=True)
    if recipe.data.name == "digits":
        return root, None  # they come with a package
    writer = _WRITERS.get(recipe.data.name)
    if writer is None:
        raise InvalidInputError(f"there is no small version of the data set {recipe.data.name!r}; run without --smoke")
    writer(root, np.random.default_rng(recipe.seed))
    weights = recipe.model.weights
    if weights is not None and _OF_DATA in placeholders(weights):  # never over a file of the user's
        path = Path(filled("model.weights", weights, data=root))
        _write_weights(path, recipe.model, _write_classes(recipe.model, root))
    if recipe.model.checkpoint is None:
        return root, None
    layers = 6 if recipe.model.name == "minilm" else 12
    return root, _write_checkpoint(folder / "checkpoint", layers)


def _images(rng: np.random.Generator, labels: NDArray[np.int64], classes: int, height: int, width: int) -> Pixels:
    """Noise around a color that says the class, (N, height, width, 3)."""
    colors = np.random.default_rng(0).integers(30, 226, (classes, 3))
    noise = rng.normal(0, 25, (len(labels), height, width, 3))
    return np.clip(colors[labels][:, None, None] + noise, 0, 255).astype(np.uint8)


def _encoded(image: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    require("PIL.Image", "train").fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def _parquet(path: Path, columns: dict[str, Any]) -> None:
    arrow: Any = require("pyarrow", "train")
    parquet: Any = require("pyarrow.parquet", "train")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(columns), path)


def _cifar10(root: Path, rng: np.random.Generator) -> None:
    """Hugging Face's parquet."""
    for split, count in (("train", 200), ("test", 100)):
        labels = np.arange(count) % 10
        images = _images(rng, labels, 10, 32, 32)
        cells = [{"bytes": _encoded(image, "PNG"), "path": f"{n}.png"} for n, image in enumerate(images)]
        _parquet(root / "cifar10" / f"{split}-00000-of-00001.parquet", {"img": cells, "label": labels})


def _cifar100(root: Path, rng: np.random.Generator) -> None:
    """The binary version."""
    folder = root / "cifar-100-binary"
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 300), ("test", 100)):
        labels = np.arange(count) % 100
        images = _images(rng, labels, 100, 32, 32).transpose(0, 3, 1, 2).reshape(count, -1)
        records = np.concatenate([(labels // 5).astype(np.uint8)[:, None], labels.astype(np.uint8)[:, None], images], 1)
        (folder / f"{split}.bin").write_bytes(records.tobytes())


def _imagenet(root: Path, rng: np.random.Generator) -> None:
    for split, count in (("train", 20), ("val", 12)):
        for number, synset in enumerate(_SYNSETS):
            folder = root / "imagenet" / split / synset
            folder.mkdir(parents=True, exist_ok=True)
            for n, image in enumerate(_images(rng, np.full(count, number), 4, 72, 80)):
                (folder / f"{synset}_{n}.JPEG").write_bytes(_encoded(image, "JPEG"))


def _cityscapes(root: Path, rng: np.random.Generator) -> None:
    ids = np.array([7, 11, 21, 23, 26])
    positions = np.array([list(CITYSCAPES_IDS).index(i) for i in ids])
    for split, count in (("train", 24), ("val", 12)):
        for n in range(count):
            # Blocks of classes, so that there are regions.
            blocks = rng.integers(0, len(ids), (4, 8)).repeat(16, axis=0).repeat(16, axis=1)
            flat = positions[blocks].reshape(-1)
            image = _images(rng, flat, 19, 1, 1).reshape(*blocks.shape, 3)
            for kind, what, suffix in (
                ("leftImg8bit", image, "leftImg8bit"),
                ("gtFine", ids[blocks].astype(np.uint8), "gtFine_labelIds"),
            ):
                folder = root / kind / split / "ulm"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"ulm_{n:06d}_000019_{suffix}.png").write_bytes(_encoded(what, "PNG"))


def _sentences(rng: np.random.Generator, labels: NDArray[np.int64]) -> list[str]:
    """A few words at random, most of them those of the class."""
    sentences = []
    for label in labels:
        own = [_WORDS[(3 * int(label) + k) % len(_WORDS)] for k in range(3)]
        words = [str(rng.choice(own if rng.random() < 0.7 else _WORDS)) for _ in range(int(rng.integers(2, 12)))]
        sentences.append(" ".join(words))
    return sentences


def _sst2(root: Path, rng: np.random.Generator) -> None:
    """Hugging Face's parquet."""
    for split, count in (("train", 120), ("validation", 60), ("test", 60)):
        labels = np.arange(count) % 2
        columns = {"sentence": _sentences(rng, labels), "label": labels}
        _parquet(root / "sst2" / f"{split}-00000-of-00001.parquet", columns)
        if split == "train":  # another folder, as if they were other texts
            _parquet(root / "sst2-phrases" / "train-00000-of-00001.parquet", columns)


def _ag_news(root: Path, rng: np.random.Generator) -> None:
    """The CSV files of the authors."""
    folder = root / "ag_news_csv"
    folder.mkdir(exist_ok=True)
    for split, count in (("train", 200), ("more-train", 40), ("test", 60)):
        labels = np.arange(count) % 4
        texts = _sentences(rng, labels)
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [(int(label) + 1, text.split()[0], text) for label, text in zip(labels, texts, strict=True)]
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)


_WRITERS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "imagenet": _imagenet,
    "cityscapes": _cityscapes,
    "camvid": _cityscapes,
    "sst2": _sst2,
    "ag_news": _ag_news,
}


def _write_classes(model: ModelSettings, root: Path) -> int | None:
    """The number of classes of the weights; where a file names them, the file: those of the data and others."""
    given = model.weights_classes
    if given is None or isinstance(given, int):
        return given
    if not isinstance(given, str) or _OF_DATA not in placeholders(given):
        return len(class_names(given, root, field="model.weights_classes"))
    names = [*reversed(_SYNSETS), "n00000001", "n00000002"]
    path = Path(filled("model.weights_classes", given, data=root))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} something\n" for name in names), encoding="utf-8")
    return len(names)


def _write_weights(path: Path, model: ModelSettings, classes: int | None) -> None:
    """Random weights, those of a CIFAR ResNet under the published names."""
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tensors = build_network(model.name, **({} if classes is None else {"num_classes": classes})).state_dict()
    published = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        number, _, rest_of_layer = rest.partition(".")
        of_ours = first == "layers" and ":" not in model.name
        published[f"layer{int(number) + 1}.{rest_of_layer}" if of_ours else name] = tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(published, str(path))


def _write_checkpoint(folder: Path, layers: int) -> Path:
    """A small BERT with random weights, and a tokenizer that knows the words of the sentences."""
    transformers: Any = require("transformers", "train")
    require("transformers.models.bert.modeling_bert", "train")
    words = [*_SPECIAL, *_WORDS]
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(str(folder))
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    transformers.BertTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(str(folder))
    return folder
