"""`python -m eenet`: the command line."""

from eenet.cli import main

try:
    main()
finally:
    # A KeyboardInterrupt that passed through code run from text, as dataclasses are made, is remembered by Python. It
    # then ends a module by SIGINT whatever exit code that chose, unless such code ran without one since.
    exec("")
