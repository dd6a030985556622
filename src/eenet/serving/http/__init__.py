"""The server for HTTP."""

from eenet.serving.http._server import ServerOptions, make_server

__all__ = ["ServerOptions", "make_server"]
