"""`python -m lean3r` is the `lean3r` command."""

import sys

from lean3r.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
