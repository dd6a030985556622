"""The two HTML pages: each one file, with nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files


def page(name: str) -> tuple[bytes, dict[str, str]]:
    """A page and the headers that keep it to itself: its own script and style, and requests to this server only."""
    html = files("eenet.serving.http").joinpath("pages").joinpath(name).read_bytes()
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    for element in ("script", "style"):
        contents = re.findall(rf"<{element}>(.*?)</{element}>".encode(), html, flags=re.DOTALL)
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in contents]
        policy.append(f"{element}-src {' '.join(hashes)}")
    return html, {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
