"""One scene on the processes of a group: process 0 shares out the views and collects what the network says of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lean3r.errors import LeanError, OutOfMemoryError, UsageError
from lean3r.group import Group, Share
from lean3r.models.base import Backbone, check_views, in_order
from lean3r.models.shared import check_shares, only_read, part_of
from lean3r.pipeline.memory import is_out_of_memory
from lean3r.pipeline.predict import infer
from lean3r.types import Known, Prediction, Source, Views

PICTURES, RESULTS = "pictures", "results"
Shape = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Task:
    """What a process must know before the pictures of its share come: the model that it should have loaded, the views
    of each process, shapes of the tensors that follow, and the options of `encode`."""

    model: tuple[str, ...]
    counts: tuple[int, ...]
    shapes: dict[str, Shape]
    sources: tuple[Source, ...]
    options: dict[str, str]


def check_group(model: Backbone, group: Group, memory: object) -> None:
    """UsageError if `reconstruct` cannot share its views with these processes."""
    if group.rank:
        raise UsageError(
            f"reconstruct() ran on process {group.rank} of {group.size}; expected process 0 alone. Call "
            "lean3r.take_share(model, group) on the others."
        )
    if memory is not None:
        raise UsageError(
            f"memory is {memory!r}, which fits a run into one process; expected none with --parallel. Leave it out "
            "and start more processes."
        )
    check_shares(model)


def predict_together(model: Backbone, views: Views, reference: int | None, group: Group) -> Prediction:
    """On process 0: `predict` with the views shared out; the others call `take_share`."""
    model.eval()
    check_shares(model)
    share = Share.of(group, views.images.shape[1])
    check_views(views, model.patch)
    views, options, back = model.prepared(views, reference)
    views = only_read(model, views)
    parts = [part_of(views, share, rank) for rank in range(group.size)]
    tensors = [_tensors(part) for part in parts]
    group.tell(
        [
            Task(_signature(model), share.counts, _shapes(some), part.sources, options)
            for part, some in zip(parts[1:], tensors[1:], strict=True)
        ]
    )
    group.others_listen = False
    for other, some in enumerate(tensors[1:], start=1):
        for tensor in some.values():
            group.send(tensor, other, PICTURES)
    own = _run(model, parts[0], options)
    found = {name: value for name, value in vars(own).items() if isinstance(value, Tensor)}
    reports = group.report({})
    for name, value in found.items():
        found[name] = value.new_empty(value.shape[0], share.total, *value.shape[2:])
        found[name][:, : share.count] = value
    for other, (start, shapes) in enumerate(zip(share.starts, reports, strict=False)):
        for name, (shape, dtype) in shapes.get("shapes", {}).items():
            place = found[name][:, start : start + shape[1]]
            into = place if place.is_contiguous() else torch.empty(shape, dtype=dtype)
            group.receive(into, other, RESULTS)
            if into is not place:
                place.copy_(into)
    is_metric = own.is_metric and all(report.get("is_metric", True) for report in reports)
    return in_order(replace(own, **found, is_metric=is_metric), back)


def take_share(model: Backbone, group: Group) -> None:
    """On all processes but 0: wait for views from process 0, which calls `reconstruct`; run them and send the results.

    LeanError if process 0 fails before that, if it has loaded another model, or if a process ends.
    """
    model.eval()
    task: Task = group.hear()
    if task.model != _signature(model):
        expected, got = (", ".join(names) for names in (task.model, _signature(model)))
        raise LeanError(
            f"process {group.rank} has loaded {got}; expected {expected}, as process 0 has. Start all with the same "
            "command, and the same files on every machine."
        )
    share = Share(group, task.counts)
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in task.shapes.items()}
    for tensor in tensors.values():
        group.receive(tensor, 0, PICTURES)
    known = {f.name: tensors[f.name] for f in fields(Known) if f.name in tensors}
    views = Views(tensors["images"], tensors.get("mask"), task.sources, Known(**known) if known else None, share)
    prediction = _run(model, views, task.options)
    results = {name: value.contiguous() for name, value in vars(prediction).items() if isinstance(value, Tensor)}
    group.report({"shapes": _shapes(results), "is_metric": prediction.is_metric})
    for value in results.values():
        group.send(value, 0, RESULTS)


def _run(model: Backbone, views: Views, options: dict[str, str]) -> Prediction:
    try:
        return infer(model, lambda on_device: model.decode(model.encode(on_device, **options)), views)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)
    assert views.share is not None
    group, count, (height, width) = views.share.group, views.images.shape[1], views.images.shape[-2:]
    raise OutOfMemoryError(
        f"process {group.rank} of {group.size} has not enough memory for its {count} views of {width}x{height} pixels. "
        "Start more processes, or use fewer or smaller pictures: --max-views N, --resolution N."
    ) from failure


def _tensors(views: Views) -> dict[str, Tensor]:
    """Everything in views that process 0 sends, by name."""
    known = {} if views.known is None else {f.name: getattr(views.known, f.name) for f in fields(Known)}
    all_of = {"images": views.images, "mask": views.mask} | known
    return {name: value.cpu().contiguous() for name, value in all_of.items() if value is not None}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, Shape]:
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _signature(model: Backbone) -> tuple[str, ...]:
    plan = "no plan" if model.plan is None else str(model.plan)
    return model.name, f"{model.parameter_count:,} parameters", str(model.origin.dtype), plan
