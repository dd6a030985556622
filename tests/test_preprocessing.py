"""A cascade whose members have preprocessing of their own, texts in and tokens out; and inputs that do not fit."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refused, run
from numpy.typing import NDArray
from serving_toys import connect, serving
from torch import Tensor, nn

import eenet
from eenet.bundle import LoadedBundle, load
from eenet.errors import FileFormatError, InvalidInputError
from eenet.experiments.data._files import decode
from eenet.models import MultiExitModel
from eenet.predict import open_items, predict
from eenet.preprocessing import (
    ArrayPreprocessing,
    CascadePreprocessing,
    ImagePreprocessing,
    TextPreprocessing,
    preprocessing_from,
)
from eenet.runtime import TensorSpec, TorchBackend
from networks import conv_model

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["good", "bad", "dull", "fine", "film", "plot", "a", "the"]


class Bag(nn.Module):
    """The mean of the words' vectors, scaled, so that one member is surer than the other."""

    def __init__(self, words: int, scale: float) -> None:
        super().__init__()
        torch.manual_seed(words)
        self.table = nn.Embedding(words, 8)
        self.out = nn.Linear(8, 3)
        self.scale = scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None]
        logits: Tensor = self.out((self.table(input_ids) * mask).sum(1) / mask.sum(1)) * self.scale
        return logits


def words_only() -> Any:
    """A tokenizer of whole words."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: n for n, w in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def letters() -> Any:
    """A tokenizer of letters: more tokens than words, other numbers, another padding."""
    every = sorted({letter for word in WORDS for letter in word})
    known = {token: n for n, token in enumerate([*every, *(f"##{one}" for one in every), "<pad>", "?"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(known, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return made


def prepared() -> CascadePreprocessing:
    return CascadePreprocessing(
        {"small": TextPreprocessing(words_only(), max_length=8), "big": TextPreprocessing(letters(), max_length=20)}
    )


def make() -> tuple[MultiExitModel, Any]:
    """A cascade of two bags of words with different tokenizers, and its example."""
    example = tensors(prepared()(["a good film", "the plot"]))
    members = [Bag(10, 4.0).eval(), Bag(60, 8.0).eval()]
    inputs = [{"prefix": "small"}, {"prefix": "big"}]
    return eenet.cascade(members, example, inputs=inputs, dynamic={1: "length"}), example


def tensors(arrays: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(count)]


def test_each_tokenizer_makes_its_own_inputs() -> None:
    made, some = prepared()(texts(9)), texts(9)
    assert list(made) == ["small_input_ids", "small_attention_mask", "big_input_ids", "big_attention_mask"]
    for prefix, alone in prepared().members.items():
        for name, array in alone(some).items():
            np.testing.assert_array_equal(made[f"{prefix}_{name}"], array)
    assert made["small_input_ids"].shape[1] < made["big_input_ids"].shape[1]


def test_it_is_described_and_read_again_with_the_files_of_its_members() -> None:
    one = prepared()
    described = json.loads(json.dumps(one.describe()))
    assert described["kind"] == "text"
    assert sorted(one.files()) == ["preprocessing/big/tokenizer.json", "preprocessing/small/tokenizer.json"]
    again = preprocessing_from(described, read=one.files().__getitem__)
    assert again(["a bad plot"])["big_input_ids"].tolist() == one(["a bad plot"])["big_input_ids"].tolist()
    assert again.describe() == described


def test_images_at_two_sizes() -> None:
    sizes = {"small": (8, 8), "big": (32, 16)}
    both = CascadePreprocessing({prefix: ImagePreprocessing(size) for prefix, size in sizes.items()})
    inputs = [TensorSpec(f"{prefix}_image", "float32", ("batch", 3, *size), 0) for prefix, size in sizes.items()]
    fitted = both.fitted(inputs)
    assert fitted.kind == "image"
    assert list(fitted([])) == ["small_image", "big_image"]
    assert preprocessing_from(fitted.describe(), read=lambda name: name.encode()) == fitted


def test_what_cannot_be_told_apart_is_refused() -> None:
    text = TextPreprocessing(b"{}")
    for members, message in (
        ({}, "expected a preprocessing for each of some prefixes"),
        ({"a b": text}, "the prefix 'a b' is no identifier"),
        ({"x": ArrayPreprocessing(("x",))}, "the preprocessing of 'x' is an ArrayPreprocessing, expected a Text"),
        ({"big": text, "big_one": text}, "the prefix 'big_one' starts with 'big', whose inputs it would be"),
        ({"a": text, "b": ImagePreprocessing((8, 8))}, "the members take image and text; all are given the same"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            CascadePreprocessing(members)
    small, big = (
        [TensorSpec(f"{prefix}_{name}", "int64", ("batch", "length"), 0) for name in ("input_ids", "attention_mask")]
        for prefix in ("small", "big")
    )
    other = TensorSpec("age", "float32", ("batch", 1), 0)
    with pytest.raises(InvalidInputError, match=r"input 'age' starts with none of the prefixes \['small', 'big'\]"):
        prepared().fitted([*small, *big, other])
    with pytest.raises(InvalidInputError, match="no input of the network starts with the prefix 'big'"):
        prepared().fitted(small)
    named = CascadePreprocessing({"small": text, "big": TextPreprocessing(b"{}", inputs=("token_type_ids",))})
    with pytest.raises(InvalidInputError, match="inputs of 'big': the preprocessing makes the inputs"):
        named.fitted([*small, *big])


def test_a_member_is_given_the_inputs_of_its_prefix() -> None:
    model, example = make()
    small, big = Bag(10, 4.0), Bag(60, 8.0)
    given = tensors(prepared()(texts(5)))  # other lengths than the example's, each its own
    early, last = model(**given)
    torch.testing.assert_close(early, small(given["small_input_ids"], given["small_attention_mask"]))
    torch.testing.assert_close(last, big(given["big_input_ids"], given["big_attention_mask"]))
    with pytest.raises(InvalidInputError, match="no input that starts with 'mid_', as a member's inputs say; it has "):
        eenet.cascade([small, big], example, inputs=[{"prefix": "mid"}, {"prefix": "big"}])
    for options in ({"prefix": "no name"}, {"prefix": "small", "names": {"a": "b"}}):
        with pytest.raises(InvalidInputError, match="expected one of them, and a prefix such as 'small'"):
            eenet.models.InputMap(**options)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    model, example = make()
    some = texts(80)
    batches = [(tensors(prepared()(some[n : n + 40])), torch.arange(40) % 3) for n in range(0, 80, 40)]
    records = eenet.collect(model, batches)
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 4.0]), budget=2.5)
    folder = tmp_path_factory.mktemp("two") / "bundle"
    return eenet.export(model, scheduler, folder, example=example, preprocessing=prepared(), measure=False)


def test_a_bundle_takes_texts(bundle: LoadedBundle) -> None:
    again = load(bundle.manifest.root)
    some = texts(60)
    out = again(again.preprocessing(some))
    assert set(out.exits) == {0, 1}
    model, _ = make()
    expected = eenet.AdaptiveModel(model, bundle.scheduler)(**tensors(prepared()(some)))
    np.testing.assert_array_equal(out.exits, np.asarray(expected.exits))
    np.testing.assert_allclose(out.logits, np.asarray(expected.logits), atol=1e-5)
    assert sorted(again.info["preprocessing"]["members"]) == ["big", "small"]


def test_files_of_texts_and_requests_with_texts(bundle: LoadedBundle, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    some = texts(30)
    parquet.write_table(arrow.table({"sentence": some}), tmp_path / "texts.parquet")
    predict(bundle, open_items(tmp_path / "texts.parquet", bundle.preprocessing.kind), tmp_path / "out.parquet")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pydict()
    expected = bundle(bundle.preprocessing(some))
    assert rows["prediction"] == expected.logits.argmax(1).tolist()
    assert rows["exit"] == expected.exits.tolist()
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "review"], *enumerate(some)])
    lines = [json.dumps({"review": text}) for text in some]
    (tmp_path / "texts.jsonl").write_text("\n".join([*lines[:3], '{"review": null}', "{}", *lines[3:]]))
    command = ("predict", bundle.manifest.root, "--column", "review", "--out", tmp_path / "again.parquet", "--json")
    run(*command, tmp_path / "texts.csv")
    again = parquet.read_table(tmp_path / "again.parquet").to_pydict()
    assert [again[name] for name in ("id", "exit", "prediction")] == [
        rows[name] for name in ("id", "exit", "prediction")
    ]
    done = json.loads(run(*command, tmp_path / "texts.jsonl").stdout)
    assert (done["items"], done["failed"]) == (32, 2)
    again = parquet.read_table(tmp_path / "again.parquet").to_pydict()
    assert again["prediction"][:3] + again["prediction"][5:] == rows["prediction"]
    assert again["error"][3] == again["error"][4] == "item 0 is None, expected a string"
    with serving(bundle) as url, connect(url) as client:
        answer = client.post("/predict", json={"texts": some}).json()
        assert [one["exit"] for one in answer["predictions"]] == expected.exits.tolist()
        assert client.post("/predict", content=b"a good film", headers={"Content-Type": "text/plain"}).is_success
        assert client.post("/predict", json={"texts": some[:2]}).json()["predictions"] == answer["predictions"][:2]
        listed = client.get("/info").json()["budgets"]
        rows = load(bundle.manifest.root).info["budgets"]
        assert listed == {
            key: [row[key] for row in rows] for key in ("budget", "planned_cost", "calibration_accuracy", "handed_back")
        }
        assert set(rows[0]) == set(listed)


def test_texts_that_are_cut_or_empty_are_marked_by_predict_and_the_server(bundle: LoadedBundle, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    special = words_only()  # one that gives an empty text a token, as [CLS]
    special.post_processor = tokenizers.processors.TemplateProcessing(single="[UNK] $A", special_tokens=[("[UNK]", 1)])
    again = load(bundle.manifest.root)
    again.preprocessing = CascadePreprocessing(
        {"small": TextPreprocessing(special, max_length=5), "big": TextPreprocessing(special, max_length=7)}
    )
    some = ["a film", "", "a good film a good", "a good film a", "   ", "good " * 30]
    cut, empty = [len(one.split()) > 4 for one in some], [not one.split() for one in some]
    (tmp_path / "texts.txt").write_text("\n".join(some))
    for batch_size in (1, 6):
        items = open_items(tmp_path / "texts.txt", "text")
        done = predict(again, items, tmp_path / "out.parquet", batch_size=batch_size)
        rows = parquet.read_table(tmp_path / "out.parquet").to_pydict()
        assert (rows["truncated"], rows["empty"]) == (cut, empty)
        assert "2 of 6 texts have more than 5 and 7 tokens and were cut there" in done.notes[0]
        assert "2 of 6 texts are empty" in done.notes[1]
    with serving(again) as url, connect(url) as client:
        answers = client.post("/predict", json={"texts": some}).json()["predictions"]
        assert [one["truncated"] for one in answers] == cut
        assert [one["empty"] for one in answers] == empty
        headers = {"Accept": "application/x-npy"}
        said = client.post("/predict", json={"texts": some}, headers=headers).headers
        assert (said["x-truncated"], said["x-empty"]) == ("0,0,1,0,0,1", "0,1,0,0,1,0")
        said = client.post("/predict", json={"texts": some[:1]}, headers=headers).headers
        assert not {"x-truncated", "x-empty"} & set(said)
        inputs = {name: array.tolist() for name, array in again.preprocessing(some).items()}
        (answer, *_) = client.post("/predict", json={"inputs": inputs}).json()["predictions"]
        assert not {"truncated", "empty"} & set(answer)  # of tokens that are not known


def test_a_length_without_room_for_the_special_tokens_is_refused() -> None:
    special = words_only()
    special.post_processor = tokenizers.processors.TemplateProcessing(
        single="[UNK] $A [UNK]", special_tokens=[("[UNK]", 1)]
    )
    assert TextPreprocessing(special, max_length=3)(["a good film"])["input_ids"].shape == (1, 3)
    with pytest.raises(InvalidInputError, match="max_length is 1, and the tokenizer adds 2 special tokens to each"):
        TextPreprocessing(special, max_length=1)(["a good film"])


def test_no_texts_give_empty_answers(bundle: LoadedBundle) -> None:
    inputs, flags = bundle.preprocessing.with_flags([])
    assert {array.shape[0] for array in (*inputs.values(), *flags.values())} == {0}
    assert bundle(inputs).exits.shape == (0,)
    assert TextPreprocessing(words_only(), max_length=4, pad_to=6)([])["input_ids"].shape == (0, 6)


def test_tokenizers_with_prefixes_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: LoadedBundle
) -> None:
    monkeypatch.chdir(tmp_path)
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, one in (("words", words_only()), ("letters", letters())):
        Path(name).mkdir()
        one.save(f"{name}/tokenizer.json")
    some = texts(12)
    parquet.write_table(arrow.table({"text": some, "label": [n % 3 for n in range(12)]}), "texts.parquet")
    target = f"{__name__}:make"
    words = ("collect", target, "--data", "texts.parquet", "--column", "text", "--max-length", 20)
    given = ("--tokenizer", "small=words", "--tokenizer", "big=letters")
    run(*words, *given, "--out", "records.npz")
    with np.load("records.npz") as found:
        records = eenet.ExitRecords.from_probabilities(found["probabilities"], found["labels"])
    model, _ = make()
    expected = eenet.collect(model, [(tensors(bundle.preprocessing(some)), torch.arange(12) % 3)])
    np.testing.assert_allclose(records.probabilities, expected.probabilities, atol=1e-5)
    Path("classes.txt").write_text("bad\nfair\ngood\n")
    for file, labels in (("texts.csv", ["0", "1", "2"]), ("texts.tsv", ["bad", "fair", "good"])):
        with Path(file).open("w", newline="") as handle:
            writer = csv.writer(handle, delimiter="," if file == "texts.csv" else "\t")
            writer.writerows([["label", "text"], *([labels[n % 3], text] for n, text in enumerate(some))])
        table = ("collect", target, "--data", file, "--max-length", 20, "--classes", "classes.txt", *given)
        run(*table, "--out", "again.npz")
        with np.load("again.npz") as found:
            np.testing.assert_array_equal(found["labels"], records.labels)
            np.testing.assert_allclose(found["probabilities"], records.probabilities, atol=1e-6)
    out = ("--out", "records.npz")
    assert "'letters' is one of 2 and has no prefix; give each as PREFIX=FOLDER" in refused(
        *words, "--tokenizer", "small=words", "--tokenizer", "letters", *out
    )
    assert "--tokenizer gives the prefix 'small' twice" in refused(
        *words, "--tokenizer", "small=words", "--tokenizer", "small=letters", *out
    )
    assert "there is no 'nowhere'" in refused(*words, "--tokenizer", "small=nowhere", *out)
    assert "starts with none of the prefixes ['small']" in refused(*words, "--tokenizer", "small=words", *out)


class TestInputsOfAnotherShape:
    """What a user can do with an input that does not fit comes first: resize, then cut the network for other sizes."""

    images = (
        r"resize the images to 8 x 8: .*--image-size 8, .*ImagePreprocessing\(\(8, 8\)\)\. Or, .*dynamic=\{2: 'height'"
    )

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((2, 3, 16, 12), images),
            ((2, 1, 16, 16), images),
            ((2, 1, 8, 8), "its images have 3 channels: give image files"),
            ((3, 8, 8), r"the dimension of the batch is missing: give x\[None\] in place of x"),
            ((2, 3), "give it that shape, or cut the network again with an example of yours"),
        ],
    )
    def test_images(self, shape: tuple[int, ...], message: str) -> None:
        model = conv_model(0)
        with pytest.raises(InvalidInputError, match=message):
            model(torch.zeros(shape))
        with pytest.raises(InvalidInputError, match=message):
            TorchBackend(model).enter(np.zeros(shape, np.float32))

    def test_image_files_that_are_read_at_another_size(self) -> None:
        specs = [TensorSpec("x", "float32", ("N", 3, 8, 8), 0)]
        with pytest.raises(InvalidInputError, match=rf"makes images of \(3, 16, 16\), .*; {self.images}"):
            ImagePreprocessing((16, 16)).fitted(specs)

    def test_gray_images_and_sides_that_differ(self) -> None:
        specs = [TensorSpec("x", "float32", ("N", 1, 8, 16), 0)]
        with pytest.raises(InvalidInputError, match=r"--image-size 8x16 --mean 0\.5 --std 0\.5, .*mean=\[0\.5\]"):
            ImagePreprocessing((16, 16)).fitted(specs)

    def test_texts_and_other_inputs(self) -> None:
        network = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 4), nn.Linear(4, 2)).eval()
        model = eenet.attach(network, ["2"], 2, torch.arange(12).reshape(2, 6) % 9)
        with pytest.raises(InvalidInputError, match=r"pad or cut the texts to 6 tokens, .*pad_to=6 does, or cut"):
            model(torch.zeros(2, 5, dtype=torch.long))
        plain = eenet.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ["0"], 2, torch.eye(4)[:2])
        with pytest.raises(InvalidInputError, match=r"give it that shape, or cut .*dynamic=\{1: 'size1'\}"):
            plain(torch.zeros(2, 5))


def test_images_of_16_bits_are_brought_to_8_and_those_without_a_range_refused() -> None:
    image = pytest.importorskip("PIL.Image")
    deep = (np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64)

    def file(pixels: NDArray[Any], form: str) -> bytes:
        target = io.BytesIO()
        image.fromarray(pixels).save(target, form)
        return target.getvalue()

    expected = np.rint(deep / 257) / 255
    for channels in (1, 3):
        read = ImagePreprocessing((64, 64), mean=(0.0,) * channels, std=(1.0,) * channels)
        for form in ("PNG", "TIFF"):
            np.testing.assert_allclose(read([file(deep, form)])["x"], np.tile(expected, (1, channels, 1, 1)), atol=1e-6)
            decoded = np.asarray(decode(file(deep, form)))
            np.testing.assert_array_equal(decoded, np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, 2))
        for pixels in (deep.astype(np.int32), deep.astype(np.float32)):
            with pytest.raises(FileFormatError, match="numbers of 32 bits, of which black and white are not known"):
                read([file(pixels, "TIFF")])
            with pytest.raises(FileFormatError, match="numbers of 32 bits"):
                decode(file(pixels, "TIFF"))
