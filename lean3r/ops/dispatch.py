"""Which implementation of an operator runs, and why a Triton kernel is refused where it is."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from lean3r.errors import KernelError, UsageError

logger = logging.getLogger("lean3r")

Implementation = Literal["auto", "reference", "torch", "triton"]

_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
_OLDEST = (7, 5)  # compute capability that Triton still compiles for
OLDEST_BF16 = (8, 0)  # the first with products in bfloat16; torch emulates them on older cards
_WIDE = 163 << 10  # bytes of shared memory a block


class SharedMemory(Protocol):
    """The property of a GPU that sizes of tiles depend on, in bytes."""

    @property
    def shared_memory_per_block_optin(self) -> int:
        """The most that a block may ask for."""
        ...


def choose(
    op: str,
    wanted: Implementation,
    tensors: Sequence[Tensor],
    *,
    torch_path: bool = False,
    unsupported: str | None = None,
) -> Implementation:
    """Resolve `wanted` to "reference", "torch" or "triton" for an operator and its floating-point tensors.

    "auto" takes the kernel on CUDA tensors where it is usable, else the torch path where the operator has one
    (`torch_path`), else the reference, and warns once of the reason. `unsupported` is the operator's own reason
    against its kernel (a head_dim, say). Raises KernelError naming the reason when an explicit choice cannot run,
    UsageError for an unknown name and for tensors on several devices.
    """
    check_implementation(wanted)
    fallback: Implementation = "torch" if torch_path else "reference"
    if wanted == "auto":
        if len(devices := {str(t.device) for t in tensors}) > 1:
            raise UsageError(
                f"{op}: tensors on {', '.join(sorted(devices))}; expected one device: move them with .to()"
            )
        if not tensors[0].is_cuda:
            return fallback
        reason = unsupported or why_not_triton(tensors)
        if reason is None:
            return "triton"
        _warn(op, fallback, reason)
        return fallback
    if wanted == "torch" and not torch_path:
        raise KernelError(f"{op} has no torch path; use implementation='reference' or 'auto'")
    if wanted == "triton" and (reason := unsupported or why_not_triton(tensors)):
        raise KernelError(f"the Triton kernel of {op} cannot run: {reason}; implementation='auto' takes {fallback}")
    return wanted


def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 natively (AMX or AVX512-BF16) and torch's build makes use of it."""
    asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return torch.backends.mkldnn.is_available() and any(ask is not None and ask() for ask in asked)


@lru_cache(maxsize=256)
def _warn(op: str, fallback: str, reason: str) -> None:
    logger.warning("%s runs without its Triton kernel, more slowly (%s): %s", op, fallback, reason)


def check_implementation(wanted: Implementation) -> Implementation:
    """Return `wanted` if there is such a choice; raise UsageError otherwise."""
    if wanted not in get_args(Implementation):
        raise UsageError(f"implementation is one of {', '.join(get_args(Implementation))}, got {wanted!r}")
    return wanted


def why_not_triton(tensors: Sequence[Tensor] = ()) -> str | None:
    """Reason why Triton kernels cannot run on these tensors (without any: on this machine); None when they can.

    Triton's interpreter counts as usable for tensors on the CPU, but not in bfloat16, whose products it gets wrong.
    """
    try:
        triton = importlib.import_module("triton")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        return "triton is not installed" if missing else f"triton cannot be imported ({error})"
    devices = {t.device for t in tensors} or {torch.device("cuda" if torch.cuda.is_available() else "cpu")}
    dtypes = {t.dtype for t in tensors}
    if len(devices) > 1:
        return f"the tensors are on several devices ({', '.join(sorted(map(str, devices)))})"
    if dtypes - _DTYPES:
        return f"{', '.join(sorted(map(str, dtypes - _DTYPES)))} is not float32, float16 or bfloat16"
    (device,) = devices
    if device.type == "cpu":
        if not triton.knobs.runtime.interpret:
            return "the tensors are on the CPU" if tensors else "no CUDA device"
        if torch.bfloat16 in dtypes:
            return "Triton's interpreter multiplies bfloat16 wrongly"
        return None
    if device.type != "cuda":
        return f"the tensors are on {device}, not on a CUDA device"
    capability = torch.cuda.get_device_capability(device)
    oldest = OLDEST_BF16 if torch.bfloat16 in dtypes else _OLDEST
    if capability < oldest:
        return f"compute capability {capability[0]}.{capability[1]} is below {oldest[0]}.{oldest[1]}"
    return None


def too_large(q: Tensor, block: int = 1) -> str | None:
    """What attention kernels have against the shared memory of q's GPU, for blocks of so many rows; None if it will do.

    Compiled for sm_89, wide heads take more than its 99 KB in float32, and in half precision with blocks above 32.
    """
    if not q.is_cuda:
        return None
    return why_too_large(q.shape[-1], q.dtype, block, torch.cuda.get_device_properties(q.device))


def why_too_large(head_dim: int, kind: torch.dtype, block: int, gpu: SharedMemory) -> str | None:
    """As `too_large`, for any GPU."""
    has = gpu.shared_memory_per_block_optin
    if head_dim > 64 and (kind == torch.float32 or block > 32) and has < _WIDE:
        return f"{kind} heads of {head_dim} need {_WIDE >> 10} KB of shared memory a block, this GPU has {has >> 10}"
    return None


def describe(wanted: Implementation, *, torch_path: bool = False) -> str:
    """For a module's repr: the choice, and what "auto" comes to on this machine with the reason."""
    if wanted != "auto":
        return repr(wanted)
    reason = why_not_triton() if torch.cuda.is_available() else "no CUDA device"
    return "'auto' (triton)" if reason is None else f"'auto' ({'torch' if torch_path else 'reference'}: {reason})"
