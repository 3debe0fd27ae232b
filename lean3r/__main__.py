"""`python -m lean3r` is the `lean3r` command."""

import sys

if __name__ == "__main__":
    here = sys.path.pop(0)  # -m puts the current folder first; code next to the photos must not run
    from lean3r.processes import module_paths

    sys.path.insert(0, here)
    sys.path[:] = module_paths()

    from lean3r.cli.main import main

    sys.exit(main())
