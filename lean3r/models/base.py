"""The contract of a backbone: encode views into tokens, decode tokens into a typed prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.errors import InputError, UsageError
from lean3r.models.encoded import Encoded
from lean3r.models.keymap import IDENTITY, KeyMap
from lean3r.models.origin import Origin
from lean3r.ops.repeats import results_of
from lean3r.tracing import is_traced, without_autocast
from lean3r.types import Known, Plan, Prediction, TokenLayout, Tokens, Views

if TYPE_CHECKING:
    from lean3r.geometry.adjustment import Pairs
    from lean3r.models.summary import Summary

logger = logging.getLogger("lean3r")

HALF_DB = 35.0
"""On CPUs `--dtype auto` takes bfloat16 if every output keeps so many decibels of float32: an RMS error of 1.8 %."""

KNOWN_PARTS = {"intrinsics": "intrinsics", "cam_from_world": "poses", "depth": "depth", "rays": "rays"}
"""Parts of Known -> their names in messages."""


class Backbone(nn.Module):
    """Base of all backbones.

    `patch` is the side of a patch in network pixels; picture sides are multiples of it. `resolution` is the default
    side of the square with the network picture's area, `licence` the licence of the published weights.
    `KEY_MAP` translates the names of official checkpoints; by default they are our own.

    `TELLTALE` is one of those names and its shape. A checkpoint without it cannot belong to this model, so the model
    need not be built to find out; None: always build it.

    `ACCEPTS` names the parts of Views.known that the model reads; with `ACCEPTS_WHOLE` it reads them only
    together and for all views. `REFERENCE` holds the arguments of `encode` that make the first view the reference,
    None if the model has no reference view.

    With `ORDERED` the order of the views counts: later views see earlier ones, not the other way round.

    `SEES` is False if cameras are those of Views.known, and depth only says where stereo may look for it.

    `STREAMS` names the engine that reconstructs its streams (lean3r/stream).

    `SIZES` are the model's configurations by name. `SMALLEST` is a tiny configuration with every part, for tests.

    `BFLOAT16`: products in bfloat16 keep HALF_DB decibels in every output (docs/models.md), so that `--dtype auto`
    chooses it on CPUs too.

    `chunk_bytes` is the working memory in bytes that the encoder and the dense heads may take for a chunk of views.
    `graphs` replays `encode` on a GPU (models/graphs.py); None: it is called.

    A model and its copies carry their history: `origin` says how it was loaded, `plan` how it was compressed
    (None: not at all), `metadata` what its checkpoints store besides its name.
    """

    name: str
    patch: int
    resolution: int
    licence: str
    KEY_MAP: KeyMap = IDENTITY
    TELLTALE: ClassVar[tuple[str, tuple[int, ...]] | None] = None
    ACCEPTS: ClassVar[frozenset[str]] = frozenset()
    ACCEPTS_WHOLE: ClassVar[bool] = False
    REFERENCE: ClassVar[Mapping[str, str] | None] = None
    ORDERED: ClassVar[bool] = False
    SEES: ClassVar[bool] = True
    STREAMS: ClassVar[str] = "windows"
    BFLOAT16: ClassVar[bool] = False
    chunk_bytes: int = 1 << 28
    graphs: Callable[..., Tokens] | None = None
    origin: Origin = Origin()
    plan: Plan | None = None
    metadata: Mapping[str, str] = MappingProxyType({})

    @classmethod
    def for_names(cls, names: Collection[str]) -> Self:
        """The model of a file with these official names: some models have heads that a file may lack as a whole."""
        return cls()

    def encode(self, views: Views) -> Tokens:
        """Views [B, S, 3, H, W] -> the tokens that the heads read."""
        raise TypeError(f"{type(self).__name__} defines no encode")

    def decode(self, tokens: Tokens, *, dense: bool = True) -> Prediction:
        """Tokens -> cameras, and depth with confidence when `dense`."""
        raise TypeError(f"{type(self).__name__} defines no decode")

    def forward(self, views: Views, reference: int | None = None) -> Prediction:
        """decode(encode(views)); pixel values on padding have no effect.

        `reference` is the index of the reference view (None: the model's own choice); UsageError if the model has no
        reference view, or if the index is out of range. Known parts that the model does not read are logged.
        """
        if not isinstance(views, Views):
            raise UsageError(f"got {type(views).__name__}, expected lean3r.Views(images).")
        self._check_type(views.images)
        views, options, back = self.prepared(views, reference)
        return in_order(self.decode(self._encode(views, **options)), back)

    def _check_type(self, images: Tensor) -> None:
        kind = next((p.dtype for p in self.parameters()), images.dtype)  # of what reads pixels, in every backbone
        if kind != images.dtype and images.is_floating_point() and not torch.is_autocast_enabled(images.device.type):
            raise UsageError(
                f"got pictures in {images.dtype}, expected {kind}, as the network. Keep both in float32, in which "
                'geometry is computed; lean3r.load(..., dtype="bfloat16") halves what half precision may halve.'
            )

    def prepared(self, views: Views, reference: int | None) -> tuple[Views, dict[str, str], list[int] | None]:
        """What `forward` encodes: views without values on padding, the reference view first; the options of `encode`;
        and the order that brings the results back."""
        self._say_unread(views.known)
        views = grey_padding(views)
        if reference is None:
            return views, {}, None
        count = views.images.shape[1]
        if self.REFERENCE is None:
            raise UsageError(self.no_reference)
        if not 0 <= reference < count:
            raise UsageError(f"got reference view {reference} of {count} views; expected 0 to {count - 1}.")
        order = [reference, *(i for i in range(count) if i != reference)]
        return _reorder(views, order), dict(self.REFERENCE), torch.tensor(order).argsort().tolist()

    def appearance(self, views: Views) -> Tensor:
        """What each picture [1, S, 3, H, W] shows, seen alone, to find its place again: mean and spread of its patch
        tokens [S, 2 C]."""
        views, seen = grey_padding(views), []
        for view in range(views.images.shape[1]):
            tokens = self.encode(_reorder(replace(views, known=None), [view]))
            seen.append(self.statistics(next(iter(tokens.layers.values())), tokens.layout))
        return torch.cat(seen)

    def matched(self, views: Views) -> Pairs | None:
        """Where the patches of views [1, S, 3, H, W] are in the other views, as the network matches them; None if it
        does not, or not all of so many views."""
        return None

    @staticmethod
    def statistics(tokens: Tensor, layout: TokenLayout) -> Tensor:
        """Mean and standard deviation [B * S, 2 C] of patch tokens [B, S, T, C], without padding."""
        patches = tokens[:, :, layout.special :].flatten(0, 1).float()
        weight = torch.ones_like(patches[..., :1]) if layout.valid is None else layout.valid.flatten(0, 1)[..., None]
        weight = weight / weight.sum(1, keepdim=True)
        mean = (weight * patches).sum(1)
        return torch.cat([mean, (weight * (patches - mean[:, None]) ** 2).sum(1).sqrt()], 1)

    def _encode(self, views: Views, **options: str) -> Tokens:
        return self.encode(views, **options) if self.graphs is None else self.graphs(self, views, **options)

    @property
    def no_reference(self) -> str:
        """The message for a reference view where the model has none to choose."""
        how = "its first views always serve as such" if self.ORDERED else "it treats all views alike"
        return f"{self.name} has no reference view; {how}. Do not choose one."

    def reads(self, known: Known | None) -> frozenset[str]:
        """Names of the parts of `known` that this model uses."""
        if known is None:
            return frozenset()
        given = frozenset(part for part in KNOWN_PARTS if getattr(known, part) is not None)
        tables = (known.has_intrinsics, known.has_pose)
        whole = given >= self.ACCEPTS and all(has is None or bool(has.all()) for has in tables)
        return frozenset() if self.ACCEPTS_WHOLE and not whole else given & self.ACCEPTS

    def _say_unread(self, known: Known | None) -> None:
        if known is None:
            return
        read = self.reads(known)
        unread = [part for part in KNOWN_PARTS if getattr(known, part) is not None and part not in read]
        if not unread:
            return
        reason = ""
        if set(unread) & self.ACCEPTS:
            accepted = " and ".join(text for part, text in KNOWN_PARTS.items() if part in self.ACCEPTS)
            reason = f" (it takes {accepted} together and for all views)" if self.ACCEPTS_WHOLE else " (too few views)"
        names = " and ".join(KNOWN_PARTS[part] for part in unread)
        # Cameras that the network never reads are still used after it: no warning. Refused or lost parts get one.
        is_plain = not reason and set(unread) <= {"intrinsics", "cam_from_world"}
        level = logging.INFO if is_plain else logging.WARNING
        logger.log(level, "the network of %s does not read the known %s%s", self.name, names, reason)

    def summary(self, views: int, height: int, width: int) -> Summary:
        """Parameters, operations and bytes of one run on `views` pictures of height x width (models/summary.py).

        UsageError if there is no view, or if a side is not a multiple of the patch.
        """
        from lean3r.models.summary import summarise  # imports parts of torch's compiler

        if views < 1 or height < 1 or width < 1 or height % self.patch or width % self.patch:
            raise UsageError(
                f"got {views} views of {width}x{height} pixels, expected at least one view, and sides that are "
                f"multiples of {self.patch} pixels."
            )
        return summarise(self, views, height, width)

    def set_chunk_bytes(self, size: int) -> None:
        """Set the working memory of the encoder and the dense heads to `size` bytes a chunk, of at least one view.

        Results stay the same. UsageError unless `size` is positive.
        """
        if size < 1:
            raise UsageError(f"got chunks of {size} bytes, expected at least 1 byte (one view at a time).")
        for part in self.modules():
            if isinstance(part, Backbone):
                part.chunk_bytes = size

    def frames_at_once(self, bytes_each: int) -> int:
        """Number of views in a chunk if each needs `bytes_each` bytes of working memory; at least one."""
        return 1 if is_traced() else max(1, self.chunk_bytes // max(1, bytes_each))  # `in_chunks` does not cut then

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write model.safetensors and a card into a folder. `options`: see ModelHubMixin of huggingface_hub."""
        on_hub = import_module("lean3r.models.hub").on_hub  # by name: hub needs this file

        on_hub(self).save_pretrained(folder, **options)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the model and a card to OWNER/NAME of the Hugging Face Hub; the address of the commit.

        `options` (private, token, branch, ...) and errors are those of huggingface_hub's ModelHubMixin.
        """
        on_hub = import_module("lean3r.models.hub").on_hub  # by name: hub needs this file

        return on_hub(self).push_to_hub(repository, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """The model of a folder that `save_pretrained` wrote, or of a repository OWNER/NAME[@REVISION], with its plan
        if it is compressed. `options` (device, dtype, ...) and errors are those of lean3r.load; UsageError if the model
        is of another class."""
        load_pretrained = import_module("lean3r.models.hub").load_pretrained  # by name: hub needs this file

        return load_pretrained(cls, source, **options)

    @property
    def loops(self) -> int | None:
        """Number of loops of the trunk; None if the trunk is not looped."""
        return None

    @property
    def parameter_count(self) -> int:
        """Number of distinct parameters, including weights stored as codes."""
        coded = sum(layer.shape.numel() for layer in self.modules() if isinstance(layer, Encoded))
        return sum(p.numel() for p in self.parameters()) + coded


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Disable autocast on the device of `x`: for geometry, and for inputs of an exponential."""
    return without_autocast(x.device.type)


def in_chunks(call: Callable[..., Sequence[Tensor]], size: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply `call` to slices of `size` along the first axis and join the results, which bounds peak memory."""
    if is_traced():
        return tuple(call(*tensors))
    parts = results_of(call, list(zip(*(t.split(size) for t in tensors), strict=True)))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def in_order(prediction: Prediction, order: Sequence[int] | None) -> Prediction:
    """The prediction with its views in another order; None: as they are."""
    if order is None:
        return prediction
    parts = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    return replace(prediction, **{name: v[:, list(order)] for name, v in parts.items() if isinstance(v, Tensor)})


def block_bytes(tokens: int, width: int) -> int:
    """Rough working memory of one transformer block on one view: input, qkv, hidden layer twice, branch."""
    return 4 * tokens * width * 14


def _reorder(views: Views, order: Sequence[int]) -> Views:
    """The same views in another order."""
    pick = list(order)
    known = None
    if views.known is not None:
        parts = {f.name: getattr(views.known, f.name) for f in fields(Known)}
        known = Known(**{name: None if part is None else part[:, pick] for name, part in parts.items()})
    mask = None if views.mask is None else views.mask[:, pick]
    sources = tuple(views.sources[i] for i in pick) if views.sources else ()
    return Views(views.images[:, pick], mask, sources, known)


def patch_mask(views: Views, patch: int) -> Tensor | None:
    """[B, S, P] bool: patches with at least one picture pixel; None if the views have no padding."""
    return None if views.mask is None else F.max_pool2d(views.mask.float(), patch).flatten(2) > 0


def grey_padding(views: Views) -> Views:
    """The same views with middle grey, the padding value of the reader, wherever the mask is False."""
    if views.mask is None:
        return views
    _check_mask(views)
    return replace(views, images=views.images.where(views.mask[:, :, None], 0.5))


def is_recorded(images: Tensor) -> bool:
    """Whether a graph is being recorded, for CUDA, a compiler or an export, in which no value can be looked at."""
    return torch.compiler.is_compiling() or (images.is_cuda and torch.cuda.is_current_stream_capturing())


def check_views(views: Views, patch: int) -> None:
    """Raise UsageError on shapes and types that no model of this patch size takes; InputError on NaN or infinite
    pixels, on views that are all padding, and on invalid known cameras."""
    shape = tuple(views.images.shape)
    if len(shape) != 5 or shape[2] != 3:
        raise UsageError(f"got images of shape {list(shape)}, expected [scenes, views, 3, height, width].")
    if min(shape[:2]) < 1:
        raise UsageError(f"got {shape[0]} scenes of {shape[1]} views, expected at least one of each.")
    height, width = shape[-2:]
    if min(height, width) < patch or height % patch or width % patch:
        raise UsageError(f"got pictures of {width}x{height} pixels, expected sides that are multiples of {patch}.")
    if not views.images.is_floating_point():
        raise UsageError(f"got pixels of type {views.images.dtype}, expected floating-point numbers from 0 to 1.")
    if is_recorded(views.images):
        return  # whoever records has checked the values, and an exported graph cannot
    broken = (~torch.isfinite(views.images)).flatten(2).any(-1).nonzero()
    if len(broken):
        raise InputError(f"view {int(broken[0, 1])} has NaN or infinite pixels; leave it out or read it again.")
    _check_mask(views)
    check_known(views)


def check_known(views: Views) -> None:
    """Raise UsageError on known parts whose shape does not fit the views, InputError on invalid cameras."""
    if views.known is None:
        return
    batch, count, _, height, width = views.images.shape
    shapes = {
        "intrinsics": (3, 3),
        "cam_from_world": (4, 4),
        "depth": (height, width),
        "rays": (height, width, 3),
        "has_intrinsics": (),
        "has_pose": (),
        "has_depth": (),
    }
    for name, shape in shapes.items():
        part = getattr(views.known, name)
        if part is not None and tuple(part.shape) != (batch, count, *shape):
            raise UsageError(f"got known {name} of shape {list(part.shape)}, expected {[batch, count, *shape]}.")
    for name, has in (("intrinsics", views.known.has_intrinsics), ("cam_from_world", views.known.has_pose)):
        part = getattr(views.known, name)
        if part is None:
            continue
        bad = ~torch.isfinite(part).flatten(2).all(-1)
        if name == "intrinsics":
            bad |= (part[..., [0, 1], [0, 1]] <= 0).any(-1)
        for _, view in (bad if has is None else bad & has).nonzero()[:1]:
            raise InputError(f"the known {KNOWN_PARTS[name]} of view {int(view)} are not valid; leave them out.")


def _check_mask(views: Views) -> None:
    images, mask = views.images.shape, views.mask
    if mask is None or len(images) != 5:
        return
    expected = [*images[:2], *images[3:]]
    if list(mask.shape) != expected or mask.dtype != torch.bool:
        raise UsageError(f"got a mask of shape {list(mask.shape)}, {mask.dtype}; expected {expected}, torch.bool.")
    for _, view in (~mask.flatten(2).any(-1)).nonzero()[:1]:
        raise InputError(f"view {int(view)} is all padding; leave it out.")
