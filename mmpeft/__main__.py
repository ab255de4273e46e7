"""``python -m mmpeft``."""

import sys

from mmpeft.cli import main

if __name__ == "__main__":
    sys.exit(main())
