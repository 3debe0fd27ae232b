"""pycolmap, for all of lean3r: `from lean3r.colmap_library import pycolmap`. It takes time: import it when used."""

from __future__ import annotations

# pycolmap brings a zlib of its own. A library that loads the system's zlib afterwards ends up with half of each, and
# the process aborts when it compresses (PNG, npz). If the system's zlib is loaded first, both live side by side.
import zlib as zlib  # isort: skip

import PIL.Image  # noqa: F401  # isort: skip

import ctypes
import signal
import sys

_ROOM = 256  # bytes; a struct sigaction is smaller everywhere


def _handlers() -> dict[int, ctypes.Array]:
    """What the system does on each signal: Python's own table knows nothing of handlers that libraries install."""
    if sys.platform == "win32":
        return {}
    actions = {number: ctypes.create_string_buffer(_ROOM) for number in signal.valid_signals()}
    return {number: action for number, action in actions.items() if not _sigaction(number, None, action)}


def _sigaction(number: int, new: ctypes.Array | None, old: ctypes.Array | None) -> int:
    return ctypes.CDLL(None).sigaction(int(number), new, old)


# It also brings glog, whose handlers print a stack trace on SIGTERM: a run would no longer end cleanly.
_before = _handlers()
import pycolmap as pycolmap  # isort: skip  # noqa: E402

for _number, _action in _before.items():
    _sigaction(_number, _action, None)

__all__ = ["pycolmap"]
