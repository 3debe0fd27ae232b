"""A cache of a teacher's outputs on disk: for pictures that it has seen, the teacher does not run again.

FOLDER/TEACHER/NN/PICTURES.safetensors, where TEACHER is a hash of the teacher's weights and of how it runs, PICTURES
one of the pictures, and NN its first two digits. Several processes and runs may share a folder: they write one file at
a time, under a lock, through a temporary neighbour.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lean3r.errors import LeanError, UsageError
from lean3r.train.checkpoints.disk import write_atomically
from lean3r.train.checkpoints.state import lock_folder

logger = logging.getLogger("lean3r")

FORMAT = 1  # a new one whenever the same weights and pictures give other outputs
RESERVE_SHARE, RESERVE_BYTES = 0.05, 20e9  # of the disk stay free for checkpoints: the smaller of both
PATIENCE_S = 60.0  # for other processes to write their file

Outputs = dict[str, Tensor]
Buffer = bytes | memoryview


class TeacherCache:
    """Outputs of one teacher, at most `limit_bytes` in the folder, those of other teachers included.

    `about` is what else determines the outputs. Nothing is ever evicted: epochs read in the same order, so the oldest
    output is the next to be needed. If the folder or the disk is full, or cannot be written, a warning says so once,
    and pictures that are not in the cache ask the teacher. UsageError if the folder cannot be made or locked.
    """

    def __init__(self, folder: Path, limit_bytes: float, teacher: nn.Module, about: str = ""):
        self.folder, self.limit_bytes = folder, limit_bytes
        self.teacher = _digest(_describe(teacher, about))[:16]
        self.is_open = True
        self._counter = folder / ".bytes"
        try:
            with lock_folder(folder, PATIENCE_S):
                for left in folder.glob("*/*/.*.partial"):  # of a killed process: only the holder of the lock writes
                    left.unlink()
                self._count(self._scan())
        except OSError as error:
            raise UsageError(f"the teacher cache '{folder}' cannot be used ({error}); name another folder.") from error

    def recall(self, pictures: Iterable[Tensor | None], ask: Callable[[], Outputs]) -> tuple[Outputs, bool]:
        """The outputs for these pictures, on their device, from the cache or from `ask`; whether the cache had them.

        Outputs of other number types and devices than those of this call are kept apart.
        """
        tensors = [t for t in pictures if t is not None]
        device = tensors[0].device
        number_type = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        name = _digest([f"{device.type} {number_type}".encode(), *chain.from_iterable(map(_bytes, tensors))])
        path = self.folder / self.teacher / name[:2] / f"{name[2:]}.safetensors"
        outputs = self._read(path)
        if outputs is not None:
            return {key: value.to(device) for key, value in outputs.items()}, True
        outputs = ask()
        if self.is_open:
            self._write(path, outputs)
        return outputs, False

    def _read(self, path: Path) -> Outputs | None:
        """The outputs in a file; None if there is none, or a damaged one."""
        try:
            with safe_open(path, "pt") as file:
                outputs = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
                if file.metadata()["crc32"] == _checksum(outputs):
                    return outputs
                why = "its checksum is wrong"
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            why = str(error)
        logger.warning("%s is damaged (%s); the teacher is asked again.", path, why)
        return None

    def _write(self, path: Path, outputs: Outputs) -> None:
        outputs = {key: value.detach().cpu().contiguous() for key, value in outputs.items()}
        content = safetensors.torch.save(outputs, {"crc32": _checksum(outputs)})
        try:
            with lock_folder(self.folder, PATIENCE_S):
                used, disk = self._used(), shutil.disk_usage(self.folder)
                if used + len(content) > self.limit_bytes:
                    return self._close(f"it has its {self.limit_bytes / 1e9:.3g} GB{self._others()}")
                if disk.free - len(content) < min(RESERVE_SHARE * disk.total, RESERVE_BYTES):
                    return self._close(f"its disk is nearly full, {disk.free / 1e9:.1f} GB are free")
                path.parent.mkdir(parents=True, exist_ok=True)
                self._count(used + len(content))  # first: a process that is killed now leaves too high a number
                write_atomically(path, lambda temporary: temporary.write_bytes(content))
        except OSError as error:
            self._close(f"it cannot be written ({error})")
        except LeanError as error:  # another process holds the lock
            logger.warning("an output of the teacher is not cached: %s", error)

    def _close(self, why: str) -> None:
        """Write nothing more."""
        self.is_open = False
        logger.warning("nothing more goes into the teacher cache '%s': %s. Training goes on.", self.folder, why)

    def _others(self) -> str:
        size = self._scan() - self._scan(self.teacher)
        return f", of which {size / 1e9:.3g} GB are of other teachers than {self.teacher}" if size else ""

    def _scan(self, teacher: str = "*") -> int:
        return sum(path.stat().st_size for path in self.folder.glob(f"{teacher}/*/*.safetensors"))

    def _used(self) -> int:
        """Bytes of all outputs in the folder, as its last writer counted them."""
        try:
            return int(self._counter.read_text())
        except (OSError, ValueError):  # removed, or its writer was killed
            return self._scan()

    def _count(self, used: int) -> None:
        self._counter.write_text(str(used))


def _describe(teacher: nn.Module, about: str) -> Iterator[Buffer]:
    """Everything about a teacher that determines its outputs."""
    yield f"{FORMAT} {getattr(teacher, 'config', '')} {about} {teacher}".encode()
    for name, value in teacher.state_dict().items():
        yield name.encode()
        yield from _bytes(value)


def _bytes(tensor: Tensor) -> tuple[Buffer, Buffer]:
    flat = tensor.detach().cpu().contiguous()
    return f"{list(flat.shape)} {flat.dtype}".encode(), flat.reshape(-1).view(torch.uint8).numpy().data


def _digest(parts: Iterable[Buffer]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _checksum(outputs: Outputs) -> str:
    checksum = 0
    for key in sorted(outputs):
        checksum = zlib.crc32(outputs[key].reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
