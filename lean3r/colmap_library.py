"""Import pycolmap safely: `from lean3r.colmap_library import pycolmap`, in functions, because it is slow to import."""

from __future__ import annotations

# pycolmap contains its own zlib. A library that loads the system's zlib afterwards gets a mixture of both, and the
# process aborts when it compresses (PNG, npz). If the system's zlib is loaded first, the two do not interfere.
import zlib as zlib  # isort: skip

import PIL.Image  # noqa: F401  # isort: skip

import ctypes
import signal
import sys

_SIGACTION_BYTES = 256  # at least the size of struct sigaction on any system


def _handlers() -> dict[int, ctypes.Array]:
    """The system's action for each signal; Python's own table misses the handlers that libraries install."""
    if sys.platform == "win32":
        return {}
    actions = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in signal.valid_signals()}
    return {number: action for number, action in actions.items() if not _sigaction(number, None, action)}


def _sigaction(number: int, new: ctypes.Array | None, old: ctypes.Array | None) -> int:
    return ctypes.CDLL(None).sigaction(int(number), new, old)


# It also contains glog, whose handlers print a stack trace on SIGTERM; a run would no longer end cleanly.
_before = _handlers()
import pycolmap as pycolmap  # isort: skip  # noqa: E402

for _number, _action in _before.items():
    _sigaction(_number, _action, None)

__all__ = ["pycolmap"]
