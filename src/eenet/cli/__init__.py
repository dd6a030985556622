"""The command line: `eenet demo`, `collect`, `profile`, `fit`, `evaluate`, `compare`, `export`, `serve` and others."""

from eenet.cli._app import app as app
from eenet.cli._app import main as main
