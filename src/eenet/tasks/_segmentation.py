"""Segmentation: one class for each pixel, with evidence that is pooled over the pixels of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError
from eenet.tasks._evidence import LOG_ODDS_LIMIT, Array, Evidence, softmax

UTILITIES = ("pixel_accuracy", "mean_iou")
_TINY = float(np.exp(-LOG_ODDS_LIMIT))


@dataclass(frozen=True)
class Segmentation:
    """One class for each pixel: logits (N, C, H, W), labels (N, H, W).

    The evidence of an image is pooled over its pixels: the mean class probabilities, mean max probability, mean
    entropy, and the share of exits so far that agree with this one.

    Parameters
    ----------
    stride : int
        The evidence is of every `stride`-th row and column.
    ignore_index : int
        Pixels with this label do not count.
    utility : {"pixel_accuracy", "mean_iou"}
        What an image's answer is worth; "mean_iou" is the mean over the classes in its labels.

    Raises
    ------
    InvalidInputError
        If the stride is below 1 or the utility is neither of the two.

    Examples
    --------
    >>> from eenet.tasks import Segmentation
    >>> task = Segmentation(utility="mean_iou")
    >>> counts = task.pixel_counts(np.zeros((2, 8, 8), dtype=int), np.zeros((2, 8, 8), dtype=int), 3)
    >>> task.utility_of(counts)
    array([1., 1.], dtype=float32)
    """

    stride: int = 4
    ignore_index: int = 255
    utility: str = "pixel_accuracy"
    name: str = "segmentation"

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise InvalidInputError(f"stride is {self.stride}, expected 1 or more")
        if self.utility not in UTILITIES:
            raise InvalidInputError(f"utility is {self.utility!r}, expected 'pixel_accuracy' or 'mean_iou'")

    def shown(self, logits: Array) -> Array:
        """Every `stride`-th row and column of the logits."""
        maps: Any = logits
        part: Array = maps[:, :, :: self.stride, :: self.stride]
        return part

    def evidence(self, shown: NDArray[np.floating], earlier: Sequence[Evidence]) -> Evidence:
        """Evidence of logits (n, C, h, w), pooled over the pixels."""
        n, classes = shown.shape[:2]
        with np.errstate(invalid="ignore", over="ignore"):
            # As float32 before the largest is sought, as `collect` takes them.
            pixels = np.ascontiguousarray(shown.reshape(n, classes, -1).transpose(0, 2, 1), dtype=np.float32)
            p = softmax(pixels)
            labels = pixels.argmax(axis=2).astype(np.int32)
            top = p.max(axis=2)
            # As in `Evidence`: the other classes summed, since 1 - max(p) is 0 where max(p) rounds to 1.
            np.put_along_axis(p, labels[:, :, None], 0.0, axis=2)
            rest = p.sum(axis=2, dtype=np.float64).mean(axis=1)
            terms = p * np.log(np.maximum(p, np.float32(1e-38)))
            nats = -terms.sum(axis=2, dtype=np.float64) - top * np.log(np.maximum(top, np.float32(1e-38)))
            np.put_along_axis(p, labels[:, :, None], top[:, :, None], axis=2)
            agreeing, unbroken, streak = np.ones(labels.shape), np.ones(labels.shape, dtype=np.bool_), 1.0
            for before in reversed(earlier):
                same = before.label_map == labels
                agreeing += same
                unbroken &= same
                streak = streak + unbroken.mean(axis=1)
            odds = np.log1p(-np.minimum(rest, 1 - _TINY)) - np.log(np.maximum(rest, _TINY))
            return Evidence.pooled(
                p.mean(axis=1, dtype=np.float64).astype(np.float32),
                max_probability=top.mean(axis=1, dtype=np.float64),
                log_odds=np.minimum(odds, LOG_ODDS_LIMIT),
                entropy=nats.mean(axis=1) / np.log(classes),
                vote_share=agreeing.mean(axis=1) / (len(earlier) + 1),
                streak=np.broadcast_to(streak, n).astype(np.float64),
                label_map=labels,
            )

    def pixel_counts(self, predictions: NDArray[Any], labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
        """For each image and class the pixels that are right, predicted and labeled: (N, C, 3).

        `predictions` and `labels` are (N, H, W) class numbers. Raises `InvalidInputError` for a prediction outside the
        classes, and for a label there that is not `ignore_index`.
        """
        if predictions.shape != labels.shape:
            raise InvalidInputError(
                f"labels have shape {labels.shape}, the predictions {predictions.shape}; expected one label for a pixel"
            )
        counted = labels != self.ignore_index
        bad = counted & ((labels < 0) | (labels >= classes))
        if bad.any():
            raise InvalidInputError(
                f"a pixel is labeled {labels[bad][0]}, expected 0 to {classes - 1} or ignore_index={self.ignore_index}"
                "; classes count from 0"
            )
        wrong = (predictions < 0) | (predictions >= classes)
        if wrong.any():
            raise InvalidInputError(
                f"a pixel is predicted as {predictions[wrong][0]}, expected 0 to {classes - 1}; of an image that is "
                "handed back give the classes that were predicted, and set its counts to 0"
            )
        image = np.broadcast_to(np.arange(len(labels))[:, None, None], labels.shape)[counted]
        truth, said = labels[counted].astype(np.intp), predictions[counted].astype(np.intp)

        def per_class(classes_of: NDArray[np.intp], where: NDArray[np.intp]) -> NDArray[np.int64]:
            flat = np.bincount(where * classes + classes_of, minlength=len(labels) * classes)
            return flat.reshape(len(labels), classes)

        right = truth == said
        return np.stack(
            [per_class(truth[right], image[right]), per_class(said, image), per_class(truth, image)], axis=2
        )

    def utility_of(self, pixel_counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """What each image's answer is worth, (N,) in [0, 1], from its pixel counts (N, C, 3).

        NaN where no pixel is labeled: nothing is known of that image.
        """
        right, said, truth = np.moveaxis(pixel_counts, 2, 0)
        with np.errstate(invalid="ignore"):
            if self.utility == "pixel_accuracy":
                worth: NDArray[np.float64] = right.sum(axis=1) / truth.sum(axis=1)
            else:
                present = truth > 0
                iou = right / np.maximum(said + truth - right, 1)
                worth = (iou * present).sum(axis=1) / present.sum(axis=1)
        return worth.astype(np.float32)


def mean_iou(pixel_counts: NDArray[np.int64]) -> float:
    """Mean over the classes that are labeled anywhere of intersection over union, from counts (N, C, 3).

    Parameters
    ----------
    pixel_counts : ndarray of shape (N, C, 3)
        For each sample and class the pixels of intersection, those labeled, and those predicted.

    Examples
    --------
    >>> counts = np.array([[[3, 4, 5], [4, 6, 5]]])  # one sample, two classes: intersection, labeled, predicted
    >>> 0 < mean_iou(counts) < 1
    True
    """
    right, said, truth = pixel_counts.sum(axis=0).T
    present = truth > 0
    return float((right[present] / (said + truth - right)[present]).mean())
