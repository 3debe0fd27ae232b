"""From views to a checked Prediction: number types, a retry when memory runs out, a check for NaN."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lean3r.errors import LeanError, OutOfMemoryError, UsageError
from lean3r.models.base import Backbone
from lean3r.pipeline.budget import chunk_text, suggest_options
from lean3r.pipeline.memory import chunked, is_out_of_memory
from lean3r.types import Prediction, Views

RETRY_DIVISOR = 8  # of the chunks' memory, after it ran out

logger = logging.getLogger("lean3r")


def predict(model: Backbone, views: Views, reference: int | None = None) -> Prediction:
    """Run a backbone on views: no gradients, the model's device and number type, tensors back on the CPU.

    If memory runs out, retry once with smaller chunks of views; if that fails, OutOfMemoryError says which options
    should fit.
    """
    model.eval()
    try:
        return _predict(model, views, reference)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # After the handler: inside it, the error would keep the tensors of the failed run.
    device = next(model.parameters()).device
    smaller = max(1, model.chunk_bytes // RETRY_DIVISOR)
    logger.warning("memory ran out; retrying with %s", chunk_text(smaller))
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        with chunked(model, smaller):
            return _predict(model, views, reference)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)
    count, (height, width) = views.images.shape[1], views.images.shape[-2:]
    raise OutOfMemoryError(
        f"{count} views of {width}x{height} pixels do not fit into the memory of {device_name(device)} (tried twice). "
        f"Use fewer or smaller ones: {suggest_options(model, views, model.origin.dtype)}"
    ) from failure


def _predict(model: Backbone, views: Views, reference: int | None) -> Prediction:
    options = {} if reference is None else {"reference": reference}
    return infer(model, lambda on_device: model(on_device, **options), views)


@contextlib.contextmanager
def running(model: Backbone) -> Iterator[torch.device]:
    """Inside, a model's number type holds, without gradients; its device."""
    device, dtype = next(model.parameters()).device, model.origin.dtype
    cast = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    with torch.inference_mode(), cast:
        yield device


def infer(model: Backbone, call: Callable[[Views], Prediction], views: Views) -> Prediction:
    """call(views) as a model runs: on its device, in its number type, without gradients; tensors back on the CPU.

    UsageError for a model that was converted as a whole, by half() for example.
    """
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if torch.float32 not in kinds:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise UsageError(
            f"all of the model is in {found}, but some of its parts need float32. Convert it back by .float(), or load "
            "it with dtype='bfloat16' or 'float16', which keeps these parts."
        )
    with running(model) as device:
        prediction = call(views.to(device))
    return replace(prediction, **{k: v.float().cpu() for k, v in vars(prediction).items() if isinstance(v, Tensor)})


def check_finite(prediction: Prediction, names: Sequence[str]) -> None:
    """Raise LeanError if a prediction of one scene has NaN or infinity; it names the first such quantity and view."""
    for quantity in ("cam_from_world", "intrinsics", "depth", "conf"):
        value = getattr(prediction, quantity)
        if value is None or bool(torch.isfinite(value).all()):
            continue
        bad = ~torch.isfinite(value[0]).flatten(1)
        first = int(bad.any(1).nonzero()[0, 0])
        raise LeanError(
            f"the network returned NaN or infinity: {quantity} of view {first + 1} ({names[first]}), "
            f"{int(bad[first].sum())} of {bad.shape[1]} values, {int(bad.any(1).sum())} of {len(names)} views. "
            "The weights may be damaged or the number type too small: try --dtype float32, or other --weights."
        )


def where(model: Backbone) -> str:
    """The name of the device that a model runs on: `NVIDIA H200` or `CPU, 2 threads`."""
    return device_name(next(model.parameters()).device)


def device_name(device: torch.device) -> str:
    """The name of a device: `NVIDIA H200` or `CPU, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (mps)"
    return f"CPU, {torch.get_num_threads()} threads"
