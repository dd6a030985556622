"""Serving on a Ray cluster: each stage a deployment of its own."""

from eenet.serving.ray._app import RayOptions as RayOptions
from eenet.serving.ray._app import StageScaling as StageScaling
from eenet.serving.ray._app import app as app
from eenet.serving.ray._app import start as start
from eenet.serving.ray._app import stop as stop
from eenet.serving.ray._app import write_yaml as write_yaml
from eenet.serving.ray._parcels import LostParcelError as LostParcelError
from eenet.serving.ray._parcels import Parcel as Parcel
from eenet.serving.ray._runner import RayRunner as RayRunner
from eenet.serving.ray._stage import StageCall as StageCall
from eenet.serving.ray._stage import StageReplica as StageReplica
from eenet.serving.ray._stage import StageReply as StageReply
from eenet.serving.ray._stage import StageServer as StageServer
from eenet.serving.ray._stage import reply as reply
