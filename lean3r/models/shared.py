"""Models of which each process of a group runs the views of its share: which can, and what each of them gets."""

from __future__ import annotations

from dataclasses import fields, replace

from lean3r.errors import UsageError
from lean3r.group import Share
from lean3r.layers.attention import SelfAttention
from lean3r.layers.trunk import Trunk
from lean3r.models.base import KNOWN_PARTS, Backbone
from lean3r.types import Known, Views

WHAT_CAN = "Use --plan dense or gsa, or another model, with --parallel; or one process without it"


def check_shares(model: Backbone) -> None:
    """UsageError if the model cannot share its views among processes, with the reason."""
    if not model.SEES:
        raise UsageError(f"{model.name} has no network to share among processes. Leave --parallel out.")
    if model.graphs is not None:
        raise UsageError("a CUDA graph cannot wait for other processes. Leave --cuda-graphs or --parallel out.")
    for trunk in model.modules():
        if not isinstance(trunk, Trunk):
            continue
        for role, block in zip(trunk.schedule, trunk.blocks, strict=True):
            attention = getattr(block, "attn", None)
            if role != "global" or not isinstance(attention, SelfAttention):
                continue
            for mechanism in (attention.mechanism, attention.short):
                if mechanism is not None and (reason := mechanism.why_not_shared()) is not None:
                    name = type(mechanism).__name__
                    raise UsageError(f"{name} attention cannot be shared among processes: {reason}. {WHAT_CAN}.")


def only_read(model: Backbone, views: Views) -> Views:
    """The views with only those known parts that the model reads, decided for the whole scene."""
    read = model.reads(views.known)
    if views.known is None or not read:
        return replace(views, known=None)
    return replace(views, known=replace(views.known, **{part: None for part in KNOWN_PARTS if part not in read}))


def part_of(views: Views, share: Share, rank: int) -> Views:
    """The views of one process."""
    own = slice(share.starts[rank], share.starts[rank + 1])
    known = views.known
    if known is not None:
        parts = {f.name: getattr(known, f.name) for f in fields(Known)}
        known = Known(**{name: None if part is None else part[:, own] for name, part in parts.items()})
    mask = None if views.mask is None else views.mask[:, own]
    return Views(views.images[:, own], mask, views.sources[own], known, share)
