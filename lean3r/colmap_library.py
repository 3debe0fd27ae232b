"""pycolmap, for all of lean3r: `from lean3r.colmap_library import pycolmap`. It takes time: import it when used."""

from __future__ import annotations

# pycolmap brings a zlib of its own. Whatever loads the system's zlib afterwards ends up with half of each, and the
# process aborts when it compresses (PNG, npz); loaded before, both live side by side.
import zlib as zlib  # isort: skip

import PIL.Image  # noqa: F401  # isort: skip

import pycolmap as pycolmap  # isort: skip

__all__ = ["pycolmap"]
