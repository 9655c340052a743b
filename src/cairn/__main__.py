"""`python -m cairn` is `cairn`: for machines where the script is not on the path."""

import sys

from cairn.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
