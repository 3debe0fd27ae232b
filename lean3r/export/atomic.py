"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lean3r.errors import UsageError

MANIFEST = "manifest.json"


@contextmanager
def atomic_folder(out: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a new folder beside `out` that becomes `out` when the block ends well.

    On any exception, Ctrl-C and a full disk included, the new folder is removed and an older result stays.
    With `overwrite` an older result (a folder with a manifest.json) is replaced once the new one is complete.
    Raises UsageError where `out` cannot be used, before any work is done, and where the disk runs full.
    """
    target = Path(out).expanduser().resolve()
    check_target(target, shown=str(out), overwrite=overwrite)
    token = secrets.token_hex(4)
    new = target.parent / f".lean3r-{token}.part"
    old = target.parent / f".lean3r-{token}.old"
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            new.mkdir()
        except OSError as error:
            raise UsageError(f"cannot write beside {out}: {error.strerror or error}. Choose another -o.") from error
        yield new
        _swap(new, target, old)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(
            f"the disk is full: {out} was not written and an older result was left as it is. "
            "Free some space or choose another -o."
        ) from error
    finally:
        for leftover in (new, old):
            if leftover.exists():
                shutil.rmtree(leftover, ignore_errors=True)


def check_target(target: Path, *, shown: str, overwrite: bool) -> None:
    """Raise UsageError unless a result may be put at `target`; `shown` is how the user wrote it."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{shown} is a file; expected a folder. Use another -o.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{shown.rstrip('/')}/ exists and is not empty. Use --overwrite, or another -o.")
    if not (target / MANIFEST).is_file():
        # --overwrite replaces results. It must never delete photographs because of a mistyped folder.
        raise UsageError(
            f"{shown.rstrip('/')}/ has no {MANIFEST}, so it is not an earlier result and is not overwritten. "
            "Empty it, or use another -o."
        )


def _swap(new: Path, target: Path, old: Path) -> None:
    """Put `new` at `target`, moving what is there to `old`; put it back if that fails."""
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
