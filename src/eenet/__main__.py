"""`python -m eenet`: the command line."""

from eenet.cli import main

main()
