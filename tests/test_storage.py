"""Files: whole or not at all, of a known schema, and never able to run code."""

from __future__ import annotations

import json
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import full_disk, read_arrays, write_arrays
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save_file

import eenet
from eenet import ExitRecords
from eenet._files import atomic_folder  # private: what writes folders whole is tested by itself
from eenet.errors import FileFormatError, InvalidInputError, OutOfSpaceError
from eenet.testing import toy_costs, toy_records

LOADERS: list[Callable[[Path], Any]] = [eenet.load_scheduler, ExitRecords.load]


def saved(folder: Path, loader: Callable[[Path], Any]) -> Path:
    path = folder / "file.safetensors"
    records = toy_records(samples=30)
    if loader is eenet.load_scheduler:
        eenet.MaxProbability().fit(records, toy_costs(), "60%").save(path)
    else:
        records.save(path)
    return path


@pytest.fixture(params=LOADERS, ids=["scheduler", "records"])
def loader(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    chosen: Callable[[Path], Any] = request.param
    return chosen


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, loader: Callable[[Path], Any], keep: float) -> None:
    path = saved(tmp_path, loader)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(FileFormatError, match=r"file.safetensors' is not a whole safetensors file .*may be truncated"):
        loader(path)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, loader: Callable[[Path], Any], protocol: int) -> None:
    path, trace = tmp_path / "file.safetensors", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Evil(trace), protocol=protocol))
    with pytest.raises(FileFormatError, match=r"looks like a pickle|is not a whole safetensors file"):
        loader(path)
    assert not trace.exists()


def test_a_torch_save_archive_is_refused(tmp_path: Path, loader: Callable[[Path], Any]) -> None:
    path = tmp_path / "file.pt"
    torch.save({"thresholds": torch.zeros(2)}, path)
    with pytest.raises(FileFormatError, match=r"looks like a pickle or an archive such as torch.save writes"):
        loader(path)


def test_a_foreign_safetensors_file(tmp_path: Path, loader: Callable[[Path], Any]) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"weights": np.zeros(3)}, path)
    with pytest.raises(
        FileFormatError, match=r"holds no eenet data, expected (exit records|a fitted scheduler) \('eenet"
    ):
        loader(path)


def test_the_other_kind_of_file(tmp_path: Path) -> None:
    records, scheduler = r"exit records \('eenet.records'\)", r"a fitted scheduler \('eenet.scheduler'\)"
    with pytest.raises(FileFormatError, match=f"holds {records}, expected {scheduler}: have two arguments been exch"):
        eenet.load_scheduler(saved(tmp_path, ExitRecords.load))
    with pytest.raises(FileFormatError, match=f"holds {scheduler}, expected {records}: have two arguments been exch"):
        ExitRecords.load(saved(tmp_path, eenet.load_scheduler))


@pytest.mark.parametrize(
    ("name", "write", "what"),
    [
        ("a.npz", lambda path: np.savez(path, probs=np.zeros(3)), r"an .npz file of arrays"),
        ("a.npy", lambda path: np.save(path, np.zeros(3)), r"a .npy file with one array"),
        ("a.json", lambda path: path.write_text(json.dumps({"values": [1, 2]})), r"JSON"),
        ("a.json", lambda path: path.write_text("[1, 2, 3, 4, 5, 6, 7]"), r"JSON"),
    ],
)
def test_a_file_of_another_format_is_named(
    tmp_path: Path, loader: Callable[[Path], Any], name: str, write: Callable[[Path], Any], what: str
) -> None:
    write(tmp_path / name)
    expected = r"(exit records|a fitted scheduler) \(.*\) in a safetensors file: have two arguments been exchanged"
    with pytest.raises(FileFormatError, match=rf"{name}' is {what}, expected {expected}"):
        loader(tmp_path / name)


@pytest.mark.parametrize("schema", ["4", "99", "", "-1", "1.0", "\u00b2"])
def test_a_newer_or_unknown_schema(tmp_path: Path, loader: Callable[[Path], Any], schema: str) -> None:
    path = tmp_path / "file.safetensors"
    for kind in ("scheduler", "records"):
        metadata = {"format": f"eenet.{kind}", "schema": schema, "header": "{}"}
        save_file({"weights": np.zeros(3)}, path, metadata=metadata)
        with pytest.raises(FileFormatError, match=r"has schema '.*', this eenet reads up to [123]: upgrade|expected"):
            loader(path)


@pytest.mark.parametrize("header", [None, "{", "[]", "3"])
def test_a_damaged_header(tmp_path: Path, header: str | None) -> None:
    path = tmp_path / "file.safetensors"
    metadata = {"format": "eenet.records", "schema": "1"} | ({} if header is None else {"header": header})
    save_file({"weights": np.zeros(3)}, path, metadata=metadata)
    with pytest.raises(FileFormatError, match=r"has a damaged header"):
        ExitRecords.load(path)


def test_files_that_lack_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    header = {"name": "x", "num_classes": 3, "costs": toy_costs().to_dict(), "numbers": {"budget": 2.0}}

    def write(arrays: dict[str, Any], score: str) -> None:
        write_arrays(path, arrays, kind="scheduler", schema=1, header=header | {"score": score})

    write({"thresholds": np.zeros(2)}, "max_prob")
    with pytest.raises(FileFormatError, match=r"file.safetensors' lacks 'enabled'; save the scheduler again"):
        eenet.load_scheduler(path)
    write({}, "telepathy")
    with pytest.raises(FileFormatError, match=r"score 'telepathy' is not known to this eenet; upgrade it"):
        eenet.load_scheduler(path)
    write({}, "learned")
    with pytest.raises(FileFormatError, match=r"a learned score needs 'biases'"):
        eenet.load_scheduler(path)
    shapes: list[dict[str, tuple[int, ...]]] = [
        {},
        {"probabilities": (2, 4, 3)},
        {"probabilities": (2, 4), "predictions": (2, 4)},
        {"probabilities": (2, 4, 3), "predictions": (2, 5)},
        {"probabilities": (2, 4, 3), "predictions": (2, 4), "labels": (3,)},
        {"probabilities": (2, 4, 3), "predictions": (2, 4), "surprise": (3,)},
    ]
    for shape in shapes:
        arrays = {n: np.zeros(s, dtype=np.float32 if n == "probabilities" else np.intp) for n, s in shape.items()}
        write_arrays(path, arrays, kind="records", schema=1, header={})
        with pytest.raises(FileFormatError, match=r"holds (arrays of|no valid records: ).*shape.*; save them again"):
            ExitRecords.load(path)


@pytest.mark.parametrize(("part", "value"), [("costs", None), ("costs", [1, 2]), ("numbers", 3), ("score", ["a"])])
def test_a_scheduler_whose_header_holds_other_things(tmp_path: Path, part: str, value: Any) -> None:
    path = saved(tmp_path, eenet.load_scheduler)
    arrays, header = read_arrays(path)
    write_arrays(path, arrays, kind="scheduler", schema=2, header=header | {part: value})
    with pytest.raises(FileFormatError, match=r"has a damaged header .*; save the scheduler again"):
        eenet.load_scheduler(path)


def test_thresholds_and_costs_must_fit_together(tmp_path: Path) -> None:
    path = saved(tmp_path, eenet.load_scheduler)
    arrays, header = read_arrays(path)
    header["costs"]["values"] = [1.0, 2.0]
    write_arrays(path, arrays, kind="scheduler", schema=2, header=header)
    with pytest.raises(FileFormatError, match=r"has 2 thresholds for 2 exits; save the scheduler again"):
        eenet.load_scheduler(path)


def test_what_is_not_there_cannot_be_read(tmp_path: Path, loader: Callable[[Path], Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read '.*nowhere': it is not there; give the path of a file"):
        loader(tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match=r"it is a folder; give the path of a file"):
        loader(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "scheduler.safetensors"
    fitted = eenet.MaxProbability().fit(toy_records(samples=20), toy_costs(), "60%")
    with pytest.raises(InvalidInputError, match=r"cannot write '.*scheduler.safetensors': .*; choose a folder"):
        fitted.save(target)
    with pytest.raises(InvalidInputError, match=r"cannot write .*; choose a folder that exists and is writable"):
        toy_records(samples=20).save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(InvalidInputError, match=r"cannot write '.*target': .*; choose the path of a file, "):
        toy_records(samples=20).save(tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    write = Path.write_bytes

    def interrupted(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise RuntimeError("power cut")

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(RuntimeError, match="power cut"):
        toy_records(samples=20).save(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "records.safetensors"
    toy_records(40).save(path)
    before = path.read_bytes()
    with full_disk(2000), pytest.raises(OutOfSpaceError, match=r"records\.safetensors'.*free some space"):
        toy_records(400).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_written_to_where_a_link_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "link", marker="marker", what="bundle") as folder:
            (folder / "marker").write_text(text)
        assert (tmp_path / "there" / "marker").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"link", "there"}
    monkeypatch.chdir(tmp_path / "there")
    with (
        pytest.raises(InvalidInputError, match=r"cannot write '\.': this program runs in it"),
        atomic_folder(".", marker="marker", what="bundle"),
    ):
        pass
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["marker"]
    (tmp_path / "deleted").mkdir()
    monkeypatch.chdir(tmp_path / "deleted")
    (tmp_path / "deleted").rmdir()
    with atomic_folder(tmp_path / "there", marker="marker", what="bundle") as folder:
        (folder / "marker").write_text("third")
    assert (tmp_path / "there" / "marker").read_text() == "third"


def test_an_error_within_the_block_is_one_of_writing_where_it_is_about_the_folder(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_folder(tmp_path / "made", marker="marker", what="bundle"):
        tmp_path.read_bytes()
    with (
        pytest.raises(InvalidInputError, match="choose a folder that is writable"),
        atomic_folder(tmp_path / "made", marker="marker", what="bundle") as folder,
    ):
        (folder / "not" / "there").write_text("")
    assert not list(tmp_path.iterdir())


def test_new_files_have_the_usual_mode(tmp_path: Path) -> None:
    ordinary, ours = tmp_path / "ordinary", tmp_path / "deeper" / "ours"
    ordinary.write_text("")
    toy_records(samples=20).save(ours)
    assert stat.S_IMODE(ours.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    # 640 to 1535 bytes of header: its length starts with the byte 80 or the like for some of them.
    records = toy_records(samples=2)
    arrays = {"probabilities": records.probabilities, "predictions": records.predictions}
    path = tmp_path / "padded.safetensors"
    for padding in range(0, 1500, 8):
        write_arrays(path, arrays, kind="records", schema=1, header={"pad": "x" * padding})
        assert len(ExitRecords.load(path)) == 2


def test_records_that_were_read_outlive_the_file_and_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    records = toy_records(samples=20)
    records.save(path)
    loaded = ExitRecords.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert loaded == records
    loaded.probabilities[...] = 0


def test_a_dtype_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    metadata = {"format": "eenet.records", "schema": "1", "header": "{}"}
    torch_save_file({"probabilities": torch.zeros(3, dtype=torch.bfloat16)}, path, metadata=metadata)
    with pytest.raises(FileFormatError, match=r"'probabilities' in .* has a dtype that numpy does not know .*float32"):
        ExitRecords.load(path)
