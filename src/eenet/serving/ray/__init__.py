"""Serving on a Ray cluster: each stage is a deployment of its own. Importing this needs no Ray."""

from eenet.serving.ray._app import app, start, stop, write_yaml
from eenet.serving.ray._options import RayOptions, StageScaling
from eenet.serving.ray._service import RemoteService as RemoteService
from eenet.serving.ray._stage import LostObjectError as LostObjectError
from eenet.serving.ray._stage import ObjectReference as ObjectReference
from eenet.serving.ray._stage import StageServer as StageServer

__all__ = ["RayOptions", "StageScaling", "app", "start", "stop", "write_yaml"]
