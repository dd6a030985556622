"""Random augmentation by torchvision, which belongs to the sample: the same for a seed and an epoch, in any batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._extras import require
from eenet.errors import InvalidInputError

_KINDS = {"rand": "RandAugment", "trivial": "TrivialAugmentWide"}


class Augment:
    """A policy of `torchvision.transforms.v2` with its default strength, for the pixels of a batch."""

    def __init__(self, kind: str) -> None:
        if kind not in _KINDS:
            raise InvalidInputError(f"augment is {kind!r}, expected one of {list(_KINDS)}, or None")
        self._policy = getattr(require("torchvision.transforms.v2", "train", f"augment={kind!r}"), _KINDS[kind])()

    def __call__(self, pixels: NDArray[np.uint8], u: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The uint8 images (n, channels, H, W) augmented, each by its own uniform number in `u` (n,)."""
        import torch

        image: Any = require("PIL.Image", "train", "augmenting images")
        augmented = np.empty_like(pixels)
        # The policy draws from torch's generator, of which the rest of the program must not notice anything.
        before = torch.get_rng_state()
        try:
            for n, (one, seed) in enumerate(zip(pixels, (u * 2**53).astype(np.int64).tolist(), strict=True)):
                torch.default_generator.manual_seed(seed)
                # As Pillow's image: on small images its operations are many times as fast as those on tensors.
                gray = len(one) == 1
                changed = self._policy(
                    image.fromarray(one[0] if gray else np.ascontiguousarray(one.transpose(1, 2, 0)))
                )
                values = np.asarray(changed)
                augmented[n] = values[None] if gray else values.transpose(2, 0, 1)
        finally:
            torch.set_rng_state(before)
        return augmented
