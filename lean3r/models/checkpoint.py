"""Reading and writing weights safely: no pickle is ever executed, and every refusal says what is wrong.

safetensors files are memory-mapped; `.pt`/`.pth` files are read with weights_only=True.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lean3r.errors import WeightsError

MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
SHOWN_KEYS = 5


def load_weights(model: nn.Module, path: str | Path) -> dict[str, str]:
    """Fill `model` strictly from a local file and return the file's metadata.

    Raises WeightsError naming the file and what is wrong with it: absent, a Git LFS pointer, truncated, not
    weights, keys missing or unexpected, shapes that differ, values that are not finite.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    expected = dict(model.state_dict())
    _compare(path, expected, tensors, metadata, getattr(model, "name", type(model).__name__))
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{path}: {name} holds NaN or infinite values; the file is damaged, fetch it again.")
        with torch.no_grad():
            expected[name].copy_(value)
    return metadata


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors`, `.pt` or `.pth` file; see load_weights for the errors."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file.")
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weights; download the real file (git lfs pull).")
    if not head:
        raise WeightsError(f"{path} is empty; fetch it again.")
    return _read_safetensors(path, head) if path.suffix == ".safetensors" else (_read_torch(path), {})


def save_weights(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file through a temporary file beside it."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, dict(metadata))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_hash(path: str | Path) -> str:
    """First 16 hexadecimal digits of the file's SHA-256."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read_safetensors(path: Path, head: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = path.stat().st_size
    header = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not 2 <= header <= MAX_HEADER_BYTES:
        raise WeightsError(f"{path} is not a safetensors file (its header claims {header:,} bytes).")
    if 8 + header > size:
        raise WeightsError(f"{path} is truncated: the header needs {8 + header:,} bytes, the file has {size:,}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged or truncated ({error}); fetch it again.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds Python objects other than tensors; lean3r never executes pickles. "
            "Convert it to .safetensors where you trust it."
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise WeightsError(f"{path} is damaged, truncated or no torch checkpoint; fetch it again.") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"{path} holds no plain table of tensors; expected name -> tensor.")
    return dict(found)


def _compare(
    path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], metadata: Mapping[str, str], model: str
) -> None:
    if metadata.get("model", model) != model:
        raise WeightsError(f"{path} holds weights of '{metadata['model']}', not {model}. Use --model {metadata['model']}.")
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    shapes = [
        f"{k} is {list(found[k].shape)}, expected {list(v.shape)}"
        for k, v in expected.items()
        if k in found and found[k].shape != v.shape
    ]
    if not (missing or unexpected or shapes):
        return
    report = [f"{path} does not fit {model} ({len(expected) - len(missing)} of {len(expected)} names found)"]
    for title, rows in (("missing", missing), ("unexpected", unexpected), ("shapes", shapes)):
        if rows:
            more = f" and {len(rows) - SHOWN_KEYS} more" if len(rows) > SHOWN_KEYS else ""
            report.append(f"{title}: {', '.join(rows[:SHOWN_KEYS])}{more}")
    raise WeightsError("; ".join(report) + ".")
