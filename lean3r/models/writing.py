"""Write safetensors files one tensor at a time: the header is written before the values are known."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lean3r.scratch import atomic_file

CODES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Number types -> their names in the format."""

ALIGNMENT = 8


def write_stream(
    path: str | Path,
    like: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = True,
) -> None:
    """Write a safetensors file, through a temporary file beside it (`atomic_file`), one tensor in memory at a time.

    `like` gives the shape and number type of every name; its values are not read, so it may be on the meta device.
    `tensors` gives the values: every name once, in any order, on any device. ValueError if they do not match `like`.
    """
    path = Path(path)
    # Wide number types come first: every tensor is then aligned to its item size, as memory mapping needs.
    order = sorted(like, key=lambda name: (-like[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    places, end = {}, 0
    for name in order:
        places[name], begin = end, end
        end += like[name].numel() * like[name].element_size()
        header[name] = {"dtype": CODES[like[name].dtype], "shape": list(like[name].shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % ALIGNMENT)
    missing = set(like)
    with atomic_file(path, overwrite=overwrite) as partial:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for name, value in tensors:
                if name not in missing or value.shape != like[name].shape or value.dtype != like[name].dtype:
                    raise ValueError(
                        f"{name}, {list(value.shape)} {value.dtype}, has no place in the header of {path.name}."
                    )
                missing.remove(name)
                file.seek(8 + len(head) + places[name])
                _write(file, value)
        if missing:
            raise ValueError(f"{path.name} lacks values of {', '.join(sorted(missing)[:5])}.")


def _write(file: BinaryIO, value: Tensor) -> None:
    if value.numel():
        file.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
