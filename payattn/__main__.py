"""``python -m payattn`` is the command ``payattn``."""

import sys

from payattn.cli import main

if __name__ == "__main__":
    sys.exit(main())
