"""`python -m bayeslora_pyro` is the command `bayeslora`."""

import sys

from bayeslora_pyro.cli import main

if __name__ == "__main__":
    sys.exit(main())
