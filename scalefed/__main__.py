"""``python -m scalefed`` is ``scalefed``."""

import sys

from scalefed.cli import main

if __name__ == "__main__":
    sys.exit(main())
