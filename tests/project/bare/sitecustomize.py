"""First on PYTHONPATH: a Python in which torch, triton, numpy, safetensors and what these need are all that is there.

As on a GPU image where nothing can be installed. Packages that are installed here are not found.
"""

import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from pathlib import Path

THERE = {"torch", "triton", "numpy", "safetensors", "functorch", "torchgen"}
THEY_NEED = {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"}


class BareFinder(PathFinder):
    """Finds nothing else in site-packages."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None) -> ModuleSpec | None:
        spec = super().find_spec(fullname, path, target)
        if spec is None or path is not None or fullname in THERE | THEY_NEED:
            return spec
        return None if "site-packages" in str(spec.submodule_search_locations or spec.origin) else spec

    @classmethod
    def find_distributions(cls, *args, **kwargs) -> Iterator[Distribution]:
        """The same of what importlib.metadata knows: lean3r itself is not installed either."""
        for found in super().find_distributions(*args, **kwargs):
            if found.metadata["Name"].lower().replace("-", "_") in THERE | THEY_NEED:
                yield found


sys.meta_path[sys.meta_path.index(PathFinder)] = BareFinder  # type: ignore[arg-type]
if os.environ.get("TRITON_INTERPRET"):
    sys.path.append(str(Path(__file__).parents[2]))
    from quick_triton import make_quick

    sys.path.pop()
    make_quick()
