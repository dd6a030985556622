"""What the server accepts, and how a request that it does not is refused."""

from __future__ import annotations

from dataclasses import dataclass

from eenet.errors import EENetError


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request may cost the server. Sizes in bytes, times in seconds.

    `max_body` holds for any body, `max_json` for JSON, which is dearer to read; `max_uploads` for all bodies being
    received at once. A request has at most `max_samples` samples, an image `max_pixels` pixels and sides that differ by
    at most `max_aspect` times, a text `max_text` characters. A head that is not there after `head_timeout`, or has more
    than `max_head` bytes, is given up, and so is a body after `body_timeout`. `timeout` is how long an answer may take
    where the client does not say.
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


class RefusedError(EENetError):
    """A request that cannot be served; `status` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
