"""The command line: `eenet demo`, `profile`, `fit`, `evaluate`, `compare`, `version`."""

from eenet.cli._app import app as app
from eenet.cli._app import main as main
