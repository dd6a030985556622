"""What the server takes and how the engine forms batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eenet.errors import EENetError, InvalidInputError


@dataclass(frozen=True)
class Limits:
    """Limits on what one request may cost the server.

    Parameters
    ----------
    max_body, max_json : int
        The largest body, in bytes, of any content type and of JSON, which takes longer to read.
    max_uploads : int
        Bytes of all bodies that are being received at the same time.
    max_samples : int
        Samples of a request.
    max_pixels, max_aspect : int, float
        Pixels of an image, and the ratio of its longer side to its shorter one.
    max_text : int
        Characters of a text.
    max_head : int
        Bytes of the head of a request.
    head_timeout, body_timeout : float
        Seconds after which an incomplete head or body is given up.
    timeout : float
        Seconds until an answer, where the client names no limit of its own.
    """

    max_body: int = 32 * 1024 * 1024
    max_json: int = 4 * 1024 * 1024
    max_uploads: int = 256 * 1024 * 1024
    max_samples: int = 256
    max_pixels: int = 16_000_000
    max_aspect: float = 50.0
    max_text: int = 20_000
    max_head: int = 64 * 1024
    head_timeout: float = 10.0
    body_timeout: float = 10.0
    timeout: float = 30.0


@dataclass(frozen=True)
class EngineOptions:
    """How the engine forms batches.

    Parameters
    ----------
    max_batch : int
        Samples in a batch.
    max_wait : float
        Seconds that a request waits for others while no stage runs.
    max_delay : float
        The batching delay at the deep stages, in seconds: samples that have waited there for longer go first, in a full
        batch or not, so that none waits forever on a saturated machine. `LocalService` learns a shorter delay where a
        call of a stage costs little beyond its samples (`BatchingDelay`).
    max_samples : int
        Samples that may be inside at the same time.
    merge : bool
        Whether samples of several requests are merged before each stage. If not, a batch goes through its stages
        alone, as without an engine.

    Raises
    ------
    InvalidInputError
        For a value out of range.
    """

    max_batch: int = 16
    max_wait: float = 0.002
    max_delay: float = 1.0
    max_samples: int = 1024
    merge: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_samples"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected 1 or more")
        for name in ("max_wait", "max_delay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInputError(f"{name} is {getattr(self, name)!r}, expected seconds, 0 or more")


class RefusedError(EENetError):
    """A request that cannot be served; `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
