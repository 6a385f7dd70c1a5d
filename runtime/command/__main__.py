"""Runs `python -m runtime.command`."""

import sys

from runtime.command.main import main

sys.exit(main(sys.argv[1:]))
