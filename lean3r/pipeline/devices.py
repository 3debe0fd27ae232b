"""The device and the number type that a model runs in: the user's choice, checked against the machine."""

from __future__ import annotations

import logging

import torch

from lean3r.errors import UsageError
from lean3r.models.base import Backbone
from lean3r.types import Prediction, Views

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AGREEMENT = 1e-2  # largest relative difference between mps and the CPU that rounding explains

logger = logging.getLogger("lean3r")


def resolve_device(device: str) -> torch.device:
    """The torch device for auto, cpu, cuda (cuda:1, ...) or mps; UsageError if it is unknown or not usable.

    auto is an NVIDIA GPU, else an Apple one (mps), else the CPU.
    """
    reasons = {"cuda": why_no_cuda(), "mps": why_no_mps()}
    if device == "auto":
        return torch.device(next((kind for kind, reason in reasons.items() if not reason), "cpu"))
    kind = device.split(":")[0]
    if kind not in DEVICES:
        raise UsageError(f"unknown device '{device}'. Known: {', '.join(DEVICES)}.")
    if reasons.get(kind):
        raise UsageError(f"device {kind} is not usable: {reasons[kind]}. Use --device auto or cpu.")
    return torch.device(device)


def why_no_cuda() -> str:
    """The reason why torch can use no NVIDIA GPU, in a few words; empty if it can."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    return "torch is built with CUDA, but finds no NVIDIA driver or GPU"


def why_no_mps() -> str:
    """The reason why torch can use no Apple GPU, in a few words; empty if it can."""
    if torch.backends.mps.is_available():
        return ""
    if not torch.backends.mps.is_built():
        return f"this torch ({torch.__version__}) is built without MPS, which only macOS has"
    return "torch is built with MPS, but finds no Apple GPU (macOS 14 or newer is needed)"


def place_model(model: Backbone, device: torch.device) -> Backbone:
    """Move a model to a device; to mps only if it gives the same result there as on the CPU, else to the CPU, with a
    warning.

    Some operators are missing on mps, and some have been wrong there. The test runs on two small pictures of noise.
    """
    if device.type != "mps":
        return model.to(device)
    noise = torch.rand(1, 2, 3, 4 * model.patch, 4 * model.patch, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected: Prediction = model(Views(noise))
        try:
            actual: Prediction = model.to(device)(Views(noise.to(device)))
            reason = _describe_difference(actual, expected)
        except (NotImplementedError, RuntimeError, TypeError) as error:  # no operator, no memory, no float64
            reason = (str(error).splitlines() or [type(error).__name__])[0]
    if reason:
        logger.warning("%s does not run on mps (%s); using the CPU", model.name, reason)
        return model.to("cpu")
    return model


def _describe_difference(actual: Prediction, expected: Prediction) -> str:
    """The first difference between two predictions, in words; empty if there is none."""
    for name in ("cam_from_world", "intrinsics", "depth"):
        value, reference = getattr(actual, name), getattr(expected, name)
        if reference is None:
            continue
        worst = float((value.cpu() - reference).abs().max() / reference.abs().max())
        if not worst <= AGREEMENT:
            return f"{name} differs from the CPU's by {worst:.0%}"
    return ""


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype for a name, None for auto (models/execution.choose_dtype); UsageError for an unknown name."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is None or dtype == "auto":
        return None
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'. Known: auto, {', '.join(DTYPES)}.")
    return DTYPES[dtype]
