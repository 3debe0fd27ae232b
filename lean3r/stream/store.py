"""The append-only folder of a stream: frames and keyframes are added, checkpoints replace each other.

    frames.bin       a record for each frame, with its pose in its window
    keyframes/       frame_000123.npz: picture, depth and confidence of a keyframe
    names.txt        a line for each keyframe: frame_000123 "name of its picture"
    windows.jsonl    a line for each window
    checkpoint.npz   the state of the engine, and how long the files above were then
    stream.json      the model and the settings, which a resumed stream must share

After any end of the process, what lies behind the last checkpoint is cut off and made again, the same.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np

from lean3r.errors import InputError, UsageError
from lean3r.export.atomic import check_inputs, check_target, result_files
from lean3r.export.names import unique_names
from lean3r.geometry.lens import LENSES
from lean3r.json_text import parse_json
from lean3r.scratch import DISK_FULL, LOCK, atomic_file, hold, release
from lean3r.stream import sim3
from lean3r.stream.engine import FLAGS, Estimate
from lean3r.types import Lens

FORMAT = 11  # of a store and its checkpoints: those of another are refused
STREAM, FRAMES, KEYFRAMES, WINDOWS, NAMES, CHECKPOINT = (
    "stream.json",
    "frames.bin",
    "keyframes",
    "windows.jsonl",
    "names.txt",
    "checkpoint.npz",
)
ADDED = FRAMES, WINDOWS, NAMES  # files that only grow
RECORD = np.dtype(
    [
        ("index", "<i8"),
        ("timestamp_s", "<f8"),
        ("flags", "<u4"),
        ("window", "<i4"),
        ("in_window", "<f8", (3, 4)),
        ("intrinsics", "<f8", 4),
        ("size", "<i4", 2),
        ("lens", "S15"),  # empty for a pinhole
        ("lens_params", "<f8", 12),
    ]
)
CHUNK = 4096  # records that are read at once


class Store:
    """A folder that this process alone writes. UsageError if it is in use, holds something else or one of the `inputs`,
    or (to resume) belongs to another model or other settings; a full disk raises UsageError, and leaves what was there
    at the last checkpoint.

    What `overwrite` replaces, and what lies behind the checkpoint of a store that goes on, stays until it is opened or
    the first frame is added. A store that gets no frame leaves nothing behind."""

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        inputs: Iterable[str | Path] = (),
    ) -> None:
        self.folder = Path(folder).expanduser().resolve()
        self._identity = {"format": FORMAT, **identity}
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"{folder} is a file; expected a folder. Use another -o.")
        is_new = not (resume and (self.folder / STREAM).exists())
        if is_new:
            if not (overwrite and is_stream(self.folder)):
                check_target(self.folder, shown=str(folder), overwrite=overwrite)
            check_inputs(self.folder, inputs)
        self._is_made = not self.folder.exists()  # by this process
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = hold(self.folder / LOCK, must=False)
        except OSError as error:
            raise UsageError(f"{folder} cannot be written ({error.strerror}). Use another -o.") from error
        if lock is None:
            raise UsageError(f"another run is writing {folder}. Wait for it, or use another -o.")
        self._lock: BinaryIO = lock
        self._files: list[BinaryIO] = []
        self._new: list[Path] = []  # keyframes since the last checkpoint
        self._is_new = is_new
        try:
            self.checkpoint = None if is_new else self._check()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Replace what was there before."""
        # In this order, so that the folder is at any moment one of lean3r, and never goes on with another's checkpoint.
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        with atomic_file(self.folder / STREAM) as part:
            part.write_text(json.dumps(self._identity, indent=2))
        for name in sorted({*(result_files(self.folder) or ()), *ADDED} - {STREAM}):
            (self.folder / name).unlink(missing_ok=True)
        for path in (self.folder / KEYFRAMES).glob("frame_*"):
            path.unlink()
        self._is_new = False

    def open(self) -> None:
        """Open the files of a store that is not new, and cut off what lies behind its checkpoint; once."""
        if self._files or self._is_new:
            return
        (self.folder / KEYFRAMES).mkdir(exist_ok=True)
        lengths = (self.checkpoint or {}).get("lengths", [0] * len(ADDED))
        for name, length in zip(ADDED, lengths, strict=True):
            file = (self.folder / name).open("a+b")
            self._files.append(file)
            file.truncate(length)
            file.seek(0, os.SEEK_END)
        kept = lengths[0] // RECORD.itemsize
        last = next(self.records(kept - 1))["index"][0] if kept else -1
        for path in (self.folder / KEYFRAMES).glob("frame_*"):
            if path.stem.rpartition("_")[2].isdecimal() and int(path.stem.rpartition("_")[2]) > last:
                path.unlink()

    @property
    def has_frames(self) -> bool:
        """Whether a frame was added; of a store that goes on, also before, once it is open."""
        return bool(self._files) and self._files[0].tell() > 0

    def _check(self) -> dict[str, Any] | None:
        """The checkpoint of a store, if it was written by the same model with the same settings."""
        try:
            stored = parse_json((self.folder / STREAM).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.folder / STREAM} cannot be read ({error}); start again with --overwrite."
            ) from error
        wanted = json.loads(json.dumps(self._identity))
        found = _differences(stored if isinstance(stored, dict) else {}, wanted)
        if found:
            raise UsageError(
                f"{self.folder} belongs to another stream ({'; '.join(found)}). Use the same command with --resume, or "
                "another -o."
            )
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        try:
            state = unpack(path)
            lengths = state["lengths"]
            short = [n for n, size in zip(ADDED, lengths, strict=True) if self._size(n) < size]
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise InputError(f"{path} cannot be read ({error}); start again with --overwrite.") from error
        if short:
            raise InputError(f"{self.folder / short[0]} is shorter than its checkpoint; start again with --overwrite.")
        return state

    def _size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def append(self, estimates: Sequence[Estimate], reports: Sequence[Mapping[str, Any]] = ()) -> None:
        """Add frames, keyframes, and what happened to windows."""
        records = np.zeros(len(estimates), RECORD)
        with room(self.folder):
            if self._is_new:
                self._start()
            self.open()
            for record, each in zip(records, estimates, strict=True):
                k = each.intrinsics
                record["index"], record["timestamp_s"], record["window"] = each.index, each.timestamp_s, each.window
                record["flags"] = sum(1 << FLAGS.index(flag) for flag in each.flags)
                record["in_window"], record["size"] = each.in_window[:3], (each.width, each.height)
                record["intrinsics"] = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
                if each.lens is not None:
                    record["lens"] = each.lens.model
                    record["lens_params"][: len(each.lens.params)] = each.lens.params
                if "keyframe" in each.flags and each.depth is not None:
                    self._add_keyframe(each)
            self._files[0].write(records.tobytes())
            self._files[1].write("".join(json.dumps(report) + "\n" for report in reports).encode())

    def _add_keyframe(self, each: Estimate) -> None:
        assert each.source is not None and each.image is not None and each.depth is not None and each.conf is not None
        path = self._path(each.index)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                # In the unit of its window: it follows when that is moved and scaled.
                depth=each.depth / np.float32(sim3.parts(each.placement)[0]),
                conf=each.conf,
                image=each.image,
                original_from_network=np.array(each.source.original_from_network),
            )
        os.replace(part, path)
        self._new.append(path)
        self._files[2].write(f"{path.stem} {json.dumps(each.source.name)}\n".encode())

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint: from here a killed stream goes on."""
        with room(self.folder):
            # On the disk before the checkpoint that counts on them: it may outlive a power cut that they do not.
            for file in self._files:
                file.flush()
                os.fsync(file.fileno())
            for path in self._new:
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
            self._new.clear()
            lengths = [file.tell() for file in self._files]
            with atomic_file(self.folder / CHECKPOINT) as part:
                pack({**state, "lengths": lengths}, part)

    def records(self, start: int = 0) -> Iterator[np.ndarray]:
        """The records of all frames from number `start` on, some at a time."""
        for file in self._files:
            file.flush()
        with (self.folder / FRAMES).open("rb") as file:
            file.seek(start * RECORD.itemsize)
            while len(content := file.read(CHUNK * RECORD.itemsize)) >= RECORD.itemsize:
                whole = len(content) // RECORD.itemsize * RECORD.itemsize
                yield np.frombuffer(content[:whole], RECORD)

    def windows(self) -> Iterator[dict[str, Any]]:
        """The reports of all windows."""
        self._files[1].flush()
        with (self.folder / WINDOWS).open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def names(self) -> list[str]:
        """The names of the pictures of all keyframes, each once: what a stream goes on from may have used some."""
        self._files[2].flush()
        with (self.folder / NAMES).open(encoding="utf-8") as file:
            return unique_names(json.loads(line.partition(" ")[2]) for line in file)

    def keyframe(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of a keyframe."""
        with np.load(self._path(index), allow_pickle=False) as stored:
            return dict(stored)

    def _path(self, index: int) -> Path:
        return self.folder / KEYFRAMES / f"frame_{index:06d}.npz"

    def close(self) -> None:
        """Let others write the folder."""
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        release(self._lock)
        with contextlib.suppress(OSError):
            (self.folder / LOCK).unlink()
            if self._is_made:
                self.folder.rmdir()  # if there is nothing in it


def is_stream(folder: Path) -> bool:
    """Whether a folder is a store of any version, with or without a result."""
    try:
        stored = parse_json((folder / STREAM).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(stored, dict) and {"format", "engine"} <= stored.keys()


def flags_of(bits: int) -> frozenset[str]:
    """The flags of a record."""
    return frozenset(flag for place, flag in enumerate(FLAGS) if bits >> place & 1)


def matrix_of(values: np.ndarray) -> np.ndarray:
    """Intrinsics [3, 3] of a record."""
    fx, fy, cx, cy = values
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def lens_of(record: np.void) -> Lens | None:
    """The lens of a record, None for a pinhole."""
    model = record["lens"].decode()
    if not model:
        return None
    focals, more = LENSES[model]
    return Lens(model, tuple(map(float, record["lens_params"][: focals + 2 + more])))


def pose_of(record: np.ndarray) -> np.ndarray:
    """The pose [4, 4] of a record in its window."""
    return np.vstack([record["in_window"], [0, 0, 0, 1]])


@contextlib.contextmanager
def room(folder: Path) -> Iterator[None]:
    """Inside, a full disk is a UsageError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (*DISK_FULL, errno.EFBIG):
            raise UsageError(
                f"the disk of {folder} is full. What was there at the last checkpoint is complete: free some room, "
                "then go on with --resume."
            ) from error
        raise


def pack(state: Mapping[str, Any], path: Path) -> None:
    """Write nested dictionaries and lists of arrays and plain values."""
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_plain(state, arrays))
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, plain=np.array(text), **arrays)
        file.flush()
        os.fsync(file.fileno())


def unpack(path: Path) -> Any:
    """What `pack` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return _whole(parse_json(str(arrays.pop("plain")).encode()), arrays)


# Not functions within: those that call themselves are cycles, which would hold the arrays until a collection.
def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Values for JSON, with numbers for the arrays, which are put into `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[f"a{len(arrays)}"] = value
        return {"array": f"a{len(arrays) - 1}"}
    if isinstance(value, Mapping):
        return {"items": {str(key): _plain(each, arrays) for key, each in value.items()}}
    if isinstance(value, list | tuple):
        return [_plain(each, arrays) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _whole(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What `_plain` was given."""
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: _whole(each, arrays) for key, each in value["items"].items()}
    return [_whole(each, arrays) for each in value] if isinstance(value, list) else value


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What two streams do not have alike, setting by setting."""
    found = []
    for key in sorted({**stored, **wanted}):
        there, now = stored.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(now, dict):
            found += _differences(there, now)
        elif there != now:
            found.append(f"{key} {there} there, {now} now")
    return found
