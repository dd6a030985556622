"""Tiny data sets in the formats in which the real ones are published, written by the tests."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def pixels(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Pixels:
    """Random images (N, H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def encode(image: Pixels, kind: str = "PNG") -> bytes:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    buffer = io.BytesIO()
    pillow.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, columns: Mapping[str, Any]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table(dict(columns)), path)
    return path


def image_cells(images: Pixels, kind: str = "PNG") -> list[dict[str, Any]]:
    """Images as Hugging Face stores them: a struct of bytes and path."""
    return [{"bytes": encode(image, kind), "path": f"{n}.png"} for n, image in enumerate(images)]


def write_cifar10_bin(folder: Path, images: Pixels, labels: Sequence[int]) -> None:
    """`cifar-10-batches-bin`: the train images over five files, the same ones again as the test file."""
    folder.mkdir(parents=True)
    records = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(images, labels, strict=True)]
    for k in range(5):
        (folder / f"data_batch_{k + 1}.bin").write_bytes(b"".join(records[k::5]))
    (folder / "test_batch.bin").write_bytes(b"".join(records))


def write_image(path: Path, image: Pixels, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, kind))
    return path


def write_imagenet(root: Path, splits: Mapping[str, Mapping[str, int]], seed: int = 0) -> None:
    """`root/<split>/<synset>/*.JPEG` with `count` images of several sizes."""
    rng = np.random.default_rng(seed)
    for split, synsets in splits.items():
        for synset, count in synsets.items():
            for n in range(count):
                height, width = rng.integers(30, 60, 2)
                image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
                write_image(root / split / synset / f"{synset}_{n}.JPEG", image, "JPEG")


def write_cityscapes(
    root: Path, split: str, ids: Sequence[Pixels], city: str = "ulm", images: Sequence[Pixels] | None = None
) -> list[tuple[Path, Path]]:
    """leftImg8bit and gtFine of a split: label maps (H, W) of ids, and images, of the same size by default."""
    pairs = []
    for n, label_map in enumerate(ids):
        stem = f"{city}_{n:06d}_000019"
        image = pixels(1, label_map.shape[0], label_map.shape[1], seed=n)[0] if images is None else images[n]
        pairs.append(
            (
                write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", image),
                write_image(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", label_map),
            )
        )
    return pairs


def write_glue(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """GLUE's TSV: tabs, no quoting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n", encoding="utf-8")
    return path


def write_ag_csv(path: Path, rows: Sequence[tuple[int, str, str]]) -> Path:
    """AG News' CSV: everything quoted, no header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path
