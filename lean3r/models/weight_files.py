"""Read tensors from safetensors files, indexed shards and torch files, memory-mapped one piece at a time.

No pickle is ever executed; every error says what is wrong with the file.
"""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lean3r.errors import WeightsError
from lean3r.json_text import parse_json
from lean3r.models import lite3r
from lean3r.models.writing import CODES

TYPES = {code: dtype for dtype, code in CODES.items()}
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
PIECE_BYTES = 1 << 22  # mapped pages of a file count as memory of the process
PIECES = 32  # each reads the file's table again: a tenth of a second for the largest torch files
MAX_STEP = 10**12
INDEX_SUFFIX = ".index.json"
WRAPPERS = ("module.", "_orig_mod.")  # in front of all names: of a model within DistributedDataParallel, compiled


@dataclass(frozen=True)
class WeightFiles:
    """Contents of a checkpoint without the values: file, shape and number type of each name, and the total bytes.

    `inside` has the names that differ inside the file: files of releases get the names of our own files.
    """

    path: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, torch.Size]
    dtypes: Mapping[str, torch.dtype]
    total_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) file by file. A tensor is a view of the mapped file: copy it before the next one. Little
        more than a 32nd of the checkpoint is mapped at any time; torch files in the format from before 2020
        cannot be mapped and are read whole."""
        names_in: dict[Path, list[str]] = {}
        for name in names:
            names_in.setdefault(self.files[name], []).append(name)
        for file, rest in names_in.items():
            limit = max(PIECE_BYTES, self.total_bytes // PIECES) if _can_be_mapped(file) else self.total_bytes
            while rest:
                with _Mapped(file) as mapped:
                    size = 0
                    while rest and size < limit:
                        tensor = mapped.tensor(self.inside.get(rest[0], rest[0]))
                        size += tensor.nbytes
                        yield rest.pop(0), tensor
                        del tensor


def open_weights(path: Path) -> WeightFiles:
    """Read the table of a `.safetensors`, `.pt` or `.pth` file, a `.index.json`, or a folder with one of these.

    Names in files of the Lite3R release are translated (models/lite3r.py); the metadata then have its stage. WRAPPERS
    are left out.
    WeightsError names the file and the fault: absent, empty, a Git LFS pointer, truncated, not weights, a missing
    shard.
    """
    if path.is_dir():
        path = weights_in(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _open_shards(path)
    with _Mapped(path) as mapped:
        shapes, dtypes, metadata = mapped.shapes, mapped.dtypes, mapped.metadata
        inside = _unwrapped(shapes)
        if stage := lite3r.stage_of(shapes):
            inside = lite3r.our_names(shapes)
            metadata = {**metadata, lite3r.RELEASE: stage}
        shapes = {ours: shapes[name] for ours, name in inside.items()}
        dtypes = {ours: dtypes[name] for ours, name in inside.items()}
        files, size = dict.fromkeys(shapes, path), path.stat().st_size
        return WeightFiles(path, files, shapes, dtypes, size, metadata, inside)


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names without the WRAPPERS that all of them have -> the names."""
    inside = {name: name for name in names}
    while wrapper := next((w for w in WRAPPERS if inside and all(name.startswith(w) for name in inside)), None):
        inside = {name.removeprefix(wrapper): wrapped for name, wrapped in inside.items()}
    return inside


class _Mapped:
    """One file, mapped into memory inside the `with` block."""

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        self._safe = None
        self._found: dict[str, Tensor] = {}

    def __enter__(self) -> _Mapped:
        if not self.path.is_file():
            raise WeightsError(f"{self.path}: no such weights file.")
        try:
            with self.path.open("rb") as file:
                head = file.read(64)
        except OSError as error:
            raise WeightsError(f"{self.path} cannot be read ({error.strerror}).") from error
        if head.startswith(b"version https://git-lfs"):
            raise WeightsError(
                f"{self.path} is a Git LFS pointer, not the weights; download the real file (git lfs pull)."
            )
        if not head:
            raise WeightsError(f"{self.path} is empty; download it again.")
        if self.path.suffix == ".safetensors":
            self._safe = _open_safetensors(self.path, head)
            self.metadata = dict(self._safe.metadata() or {})
        elif head[8:9] == b"{":  # where a safetensors file has its table
            raise WeightsError(f"{self.path} is a safetensors file; give it a name that ends in .safetensors.")
        else:
            self._found, self.metadata = _load_torch(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        self._safe, self._found = None, {}

    @property
    def shapes(self) -> dict[str, torch.Size]:
        if self._safe is None:
            return {name: value.shape for name, value in self._found.items()}
        return {name: torch.Size(self._safe.get_slice(name).get_shape()) for name in self._safe.offset_keys()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        if self._safe is None:
            return {name: value.dtype for name, value in self._found.items()}
        codes = {name: self._safe.get_slice(name).get_dtype() for name in self._safe.offset_keys()}
        unknown = next((f"{name} ({code})" for name, code in codes.items() if code not in TYPES), None)
        if unknown:
            raise WeightsError(f"{self.path} has a number type that lean3r cannot read: {unknown}.")
        return {name: TYPES[code] for name, code in codes.items()}

    def tensor(self, name: str) -> Tensor:
        if self._safe is None:
            return self._found.pop(name)
        try:
            return self._safe.get_tensor(name)
        except (SafetensorError, RuntimeError) as error:
            raise WeightsError(f"{self.path} is damaged or truncated ({error}); download it again.") from error


def weights_in(folder: Path) -> Path:
    """The only weights file, or index of shards, in a folder; WeightsError if there is none or more than one."""
    for pattern in (f"*{INDEX_SUFFIX}", "*.safetensors", "*.pt", "*.pth"):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(path.name for path in files[:5])
            raise WeightsError(f"{folder} has several weights files ({names}); name one of them.")
    raise WeightsError(f"{folder} has no weights; expected a .safetensors, .index.json, .pt or .pth file.")


def shards_of(index: Path) -> dict[str, str]:
    """Tensor name -> its shard, beside or below the index; WeightsError on a bad index, or on shards elsewhere."""
    try:
        table = parse_json(index.read_bytes())["weight_map"]
        shards = {name: shard for name, shard in table.items() if isinstance(shard, str)}
        if len(shards) < len(table):
            raise TypeError("a shard's name is not a string")
    except FileNotFoundError as error:
        raise WeightsError(f"{index}: no such weights file.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is not an index of shards (no readable weight_map); download it again.") from error
    for shard in set(shards.values()):
        parts = PurePosixPath(shard.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or parts.suffix not in (".safetensors", ".pt", ".pth", ".bin"):
            raise WeightsError(f"{index} names the shard {shard!r}; expected a weights file beside or below the index.")
    return shards


def _open_shards(path: Path) -> WeightFiles:
    table = shards_of(path)
    files = {name: path.parent / table[wrapped] for name, wrapped in _unwrapped(table).items()}
    shards = sorted(set(files.values()))
    absent = [shard.name for shard in shards if not shard.is_file()]
    if absent:
        raise WeightsError(
            f"{path} needs {len(shards)} shards, {len(absent)} missing beside it: {', '.join(absent[:5])}. "
            "Download them into the same folder."
        )
    opened = [open_weights(shard) for shard in shards]
    shapes = {name: shape for part in opened for name, shape in part.shapes.items()}
    lost = [name for name in files if name not in shapes]
    if lost:
        raise WeightsError(
            f"{path} lists {lost[0]} in {files[lost[0]].name}, but the shard does not have it; download both again."
        )
    dtypes = {name: dtype for part in opened for name, dtype in part.dtypes.items()}
    metadata = {key: value for part in opened for key, value in part.metadata.items()}
    total = sum(part.total_bytes for part in opened)
    inside = {name: wrapped for part in opened for name, wrapped in part.inside.items()}
    shapes, dtypes = {n: shapes[n] for n in files}, {n: dtypes[n] for n in files}
    return WeightFiles(path, files, shapes, dtypes, total, metadata, inside)


def _open_safetensors(path: Path, head: bytes):
    size = path.stat().st_size
    header = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not 2 <= header <= MAX_HEADER_BYTES:
        raise WeightsError(f"{path} is not a safetensors file (its header claims {header:,} bytes).")
    if 8 + header > size:
        raise WeightsError(f"{path} is truncated: the header needs {8 + header:,} bytes, the file has {size:,}.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, json.JSONDecodeError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged or truncated ({error}); download it again.") from error


def _can_be_mapped(path: Path) -> bool:
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def _check_uncompressed(path: Path) -> None:
    """Refuse compressed members: torch.save writes none, and they may unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("it has compressed members")


def _load_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the number of the training step as metadata if the file has one."""
    try:
        if _can_be_mapped(path):
            _check_uncompressed(path)
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} has Python objects other than tensors; lean3r never executes pickles. "
            "If you trust the file, convert it to .safetensors."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path} is damaged, truncated or not a torch checkpoint; download it again.") from error
    step = table.get("step") if isinstance(table, Mapping) else None
    metadata = {lite3r.STEP: str(step)} if type(step) is int and 0 <= step <= MAX_STEP else {}
    for key in ("state_dict", "model"):
        if isinstance(table, Mapping) and isinstance(table.get(key), Mapping):
            table = table[key]
    if not isinstance(table, Mapping) or not all(isinstance(v, Tensor) for v in table.values()):
        raise WeightsError(f"{path} is not a state dict; expected a plain mapping of names to tensors.")
    for name, value in table.items():
        if not isinstance(name, str):
            raise WeightsError(f"{path} names a tensor {name!r}; expected a string.")
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise WeightsError(f"{path} has {name} in a form that lean3r cannot read; expected dense tensors.")
    return dict(table), metadata
