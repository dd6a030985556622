"""Survivors on their way between replicas: large ones wait in Ray's object store and are fetched from there.

What travels by way of the ingress is then a reference, and the ingress's machine does not carry the live tensors.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from eenet._extras import require

if TYPE_CHECKING:
    from eenet.runtime import Live


INLINE_BYTES = 100_000
"""Live tensors of up to this many bytes travel with a call: Ray itself sends so much along with one."""


class LostParcelError(Exception):
    """What was left in the store is gone: the replica that had left it there ended."""


@dataclass(frozen=True)
class Parcel:
    """Live tensors that lie elsewhere; only the store knows what `reference` is."""

    reference: Any


class Store(Protocol):
    """Where live tensors are left for another process to fetch."""

    async def leave(self, live: Live) -> Live | Parcel:
        """Leave them there, or give them back where that is not worth it."""
        ...

    async def fetch(self, parcel: Parcel) -> Live:
        """Those of a parcel; raises `LostParcelError` where they are gone."""
        ...


class ObjectStore:
    """Ray's; a `Store`. Live tensors of up to `inline_bytes` are not worth it; others go when nobody refers to them."""

    def __init__(self, inline_bytes: int) -> None:
        self._inline_bytes = inline_bytes
        self._ray = require("ray", "ray")
        exceptions = require("ray.exceptions", "ray")
        self._lost = exceptions.ObjectLostError
        self._full = (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)

    async def leave(self, live: Live) -> Live | Parcel:
        """See `Store`."""
        if sum(array.nbytes for array in live) <= self._inline_bytes:
            return live
        try:
            # Not in the event loop, which would stand still while they are copied, or the store makes room.
            return Parcel(await asyncio.to_thread(self._ray.put, live))
        except self._full:
            return live  # by way of the ingress then

    async def fetch(self, parcel: Parcel) -> Live:
        """See `Store`."""
        try:
            live: Live = await parcel.reference
        except self._lost as error:
            raise LostParcelError(str(error)) from error
        return live
