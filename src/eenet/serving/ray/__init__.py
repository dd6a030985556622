"""Serving on a Ray cluster: each stage is a deployment of its own. Importing this needs no Ray."""

from eenet.serving.ray._app import app, start, stop, write_yaml
from eenet.serving.ray._options import RayOptions, StageScaling
from eenet.serving.ray._service import RemoteService
from eenet.serving.ray._stage import LostObjectError, ObjectReference, StageServer

__all__ = [
    "LostObjectError",
    "ObjectReference",
    "RayOptions",
    "RemoteService",
    "StageScaling",
    "StageServer",
    "app",
    "start",
    "stop",
    "write_yaml",
]
