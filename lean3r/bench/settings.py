"""What a benchmark runs: programs and sizes of pictures, read from text and checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from lean3r.bench.official import PEERS, check_clone
from lean3r.compress import resolve_plan
from lean3r.compress.plan import split_at_commas
from lean3r.errors import UsageError
from lean3r.models import CARDS, MODELS, STUDENTS, model_of
from lean3r.models.sources import find_weights
from lean3r.models.weight_files import open_weights
from lean3r.pipeline.devices import resolve_device, resolve_dtype

Kind = Literal["lean3r", "sdpa", "official"]
Size = int | tuple[int, int] | None
Refine = Literal["auto", "on", "off"]

DENSE, STORED = "dense", "stored"
SETTING = re.compile(r"\w+\s*=")
LAYER = re.compile(r"layer-([1-9]\d*)x([1-9]\d*)")
LAYER_PATCH, LAYER_RESOLUTION = 14, 224
MOST_VIEWS = 1 << 16


@dataclass(frozen=True)
class Program:
    """One program: a model with a plan, on a device, in a number type as it was asked for ("auto" included).

    `kind`: "lean3r"; "sdpa", ours with torch's fused attention in every layer; or "official", the authors' own code,
    from the package or the folder `clone`. `weights`: a file (None: the usual ones if they are on this machine, else
    random ones). `like_official`: everything is computed that the official program returns. `whole`: reconstruct these
    photos, refined as `refine` says, instead of running the network alone.
    """

    model: str
    plan: str
    kind: Kind
    device: str
    dtype: str
    weights: str | None = None
    clone: str | None = None
    like_official: bool = False
    whole: str | None = None
    refine: Refine = "auto"

    def __str__(self) -> str:
        what = self.plan if self.kind == "lean3r" else self.kind
        return f"{self.model} {what}, {self.device}, {self.dtype}"


@dataclass(frozen=True)
class Cell:
    """One size of input: views, and the side or the height and width of their pictures (None: the model's own)."""

    views: int
    size: Size = None

    def pixels(self, model: str) -> tuple[int, int]:
        """Height and width for a model, the nearest multiples of its patch; UsageError if they are below a patch."""
        patch, own = shape_of(model)
        sides = self.size if isinstance(self.size, tuple) else (own if self.size is None else self.size,) * 2
        if min(sides) < patch:
            raise UsageError(f"--resolution is {size_text(self.size)}; {model} needs at least {patch} pixels.")
        height, width = (patch * max(1, round(side / patch)) for side in sides)
        return height, width


@dataclass(frozen=True)
class Settings:
    """A benchmark. `plans` are texts for `resolve_plan`, "dense" for none; `against` holds "sdpa", "official" and more
    plans; `clones` are (name, folder), `weights` (model, file). `limit_s` is the longest that one run may take."""

    models: tuple[str, ...] = ("nano",)
    plans: tuple[str, ...] = (DENSE,)
    against: tuple[str, ...] = ()
    views: tuple[int, ...] = (2, 4, 8)
    sizes: tuple[Size, ...] = (None,)
    devices: tuple[str, ...] = ("auto",)
    dtypes: tuple[str, ...] = ("auto",)
    weights: tuple[tuple[str, str], ...] = ()
    clones: tuple[tuple[str, str], ...] = ()
    whole: str | None = None
    refine: Refine = "auto"
    repeats: int = 5
    threads: int | None = None
    limit_s: float = 600.0
    profile: bool = False

    def __post_init__(self) -> None:
        for model in self.models:
            if not LAYER.fullmatch(model) and model not in STUDENTS:
                MODELS.check(model)
        for plan in {*self.plans, *self.against} - {DENSE, "sdpa", "official"}:
            resolve_plan(plan)
        for device in self.devices:
            resolve_device(device)
        for dtype in self.dtypes:
            resolve_dtype(dtype)
        for model, file in self.weights:
            if model not in self.models:
                raise UsageError(f"--weights names {model}, which is not among --models {','.join(self.models)}.")
            open_weights(find_weights(file))
        for name, folder in self.clones:
            check_clone(name, Path(folder))
        for name, least in (("repeats", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UsageError(f"--{name} is {value}; expected at least {least}.")
        if not self.limit_s > 0:
            raise UsageError(f"--limit is {self.limit_s:g}; expected seconds, more than 0.")
        for cell in self.cells():
            for model in self.models:
                cell.pixels(model)
        if self.whole is not None:
            self._check_whole(self.whole)
        elif self.refine != "auto":
            raise UsageError(f"--refine {self.refine} is for --whole; the network alone is never refined.")

    def _check_whole(self, photos: str) -> None:
        if {"sdpa", "official"} & set(self.against) or any(LAYER.fullmatch(model) for model in self.models):
            raise UsageError("--whole times reconstructions by lean3r; leave out sdpa, official and --layer.")
        if any(isinstance(size, tuple) for size in self.sizes):
            raise UsageError("--whole takes the shape of the photos; give --resolution as one number, not HxW.")
        if not Path(photos).exists():
            raise UsageError(f"--whole is {photos}, which does not exist; expected a folder of photos or a video.")

    def cells(self) -> Iterator[Cell]:
        """Sizes, and the numbers of views of each, ascending."""
        for size in self.sizes:
            for views in self.views:
                yield Cell(views, size)

    def programs(self, model: str) -> list[Program]:
        """The programs of one model; the dense one of the first number type, if there is one, comes first."""
        files, clones = dict(self.weights), dict(self.clones)
        peer = PEERS.get(model)
        base = Program(model, DENSE, "lean3r", "", "", files.get(model), whole=self.whole, refine=self.refine)
        base = replace(base, like_official="official" in self.against and peer is not None)
        kinds: list[Program] = []
        plans = [*self.plans, *(name for name in self.against if name not in ("sdpa", "official"))]
        plans = [STORED] if model in STUDENTS else sorted(dict.fromkeys(plans), key=DENSE.__ne__)
        kinds += [replace(base, plan=plan) for plan in plans]
        kinds += [replace(base, kind="sdpa")] if "sdpa" in self.against else []
        official = replace(base, kind="official", clone=clones.get(peer.clone or "") if peer else None)
        kinds += [official] if "official" in self.against else []
        return [
            replace(kind, device=str(resolve_device(device)), dtype=dtype)
            for device in self.devices
            for dtype in self.dtypes
            for kind in kinds
        ]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        found = asdict(self) | {"sizes": [size_text(size) for size in self.sizes]}
        return found | {"weights": dict(self.weights), "clones": sorted(dict(self.clones))}


def shape_of(model: str) -> tuple[int, int]:
    """Patch and usual resolution of a model, in pixels."""
    if LAYER.fullmatch(model):
        return LAYER_PATCH, LAYER_RESOLUTION
    card = CARDS[model_of(model)]
    return card.patch, card.resolution


def parse_views(text: str) -> tuple[int, ...]:
    """Numbers of views, ascending, of "2,8,32" or "2..64" (doubling) or both; UsageError for anything else."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= MOST_VIEWS:
            raise UsageError(
                f"--views has '{part}'; expected numbers from 1 to {MOST_VIEWS}, such as 2,8,32 or 2..64 (doubling)."
            )
        while first <= last:
            found.add(first)
            first *= 2
    return tuple(sorted(found))


def parse_sizes(text: str | None) -> tuple[Size, ...]:
    """Sides or (height, width) of "240,168x224"; None alone for None. UsageError for anything else."""
    return (None,) if text is None else tuple(_size(part) for part in text.split(","))


def _size(part: str) -> Size:
    match = re.fullmatch(r"\s*(\d+)(?:x(\d+))?\s*", part)
    if match is None:
        raise UsageError(f"--resolution has '{part}'; expected a side or HEIGHTxWIDTH in pixels: 240 or 168x224.")
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])


def size_text(size: Size) -> str:
    """ "240", "168x224", or "own"."""
    return "own" if size is None else f"{size[0]}x{size[1]}" if isinstance(size, tuple) else str(size)


def split_plans(texts: str | Sequence[str]) -> tuple[str, ...]:
    """Plans of "dense,gsa:special=pooled,regions=64,fp8": a piece that is only a setting belongs to the plan before."""
    found: list[str] = []
    for text in [texts] if isinstance(texts, str) else texts:
        for piece in split_at_commas(text):
            if SETTING.match(piece) and found:
                found[-1] += f",{piece}"
            else:
                found.append(piece)
    return tuple(dict.fromkeys(found))


def parse_layers(text: str) -> tuple[str, ...]:
    """Models of "16x64,4x32": one global block each of so many heads of so many channels; UsageError otherwise."""
    names = [f"layer-{part.strip()}" for part in filter(None, text.split(","))]
    for name in names:
        match = LAYER.fullmatch(name)
        if match is None or int(match[2]) % 4:
            raise UsageError(
                f"--layer has '{name[6:]}'; expected HEADSxCHANNELS, channels a multiple of 4, such as 16x64."
            )
    return tuple(names)
