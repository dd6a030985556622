"""What comes in over HTTP, and the server."""

from eenet.serving.http._app import make_app as make_app
from eenet.serving.http._body import form_files as form_files
from eenet.serving.http._decode import Decoder as Decoder
from eenet.serving.http._decode import npy_array as npy_array
from eenet.serving.http._server import ServerOptions as ServerOptions
from eenet.serving.http._server import is_loopback as is_loopback
from eenet.serving.http._server import make_server as make_server
