"""`python -m beluga_voice` is the command `beluga-voice`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
