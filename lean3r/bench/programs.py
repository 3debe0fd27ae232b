"""Programs ready to run: our networks and reconstructions, one layer alone, and the official networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lean3r.bench.meter import Clock, Operations, Parts, parts_of
from lean3r.bench.official import (
    PEERS,
    PEERS_AGREE,
    Outputs,
    build_ours,
    build_peer,
    differences,
    give_weights,
    run_ours,
)
from lean3r.bench.settings import DENSE, LAYER, LAYER_PATCH, STORED, Cell, Program, Refine, Settings
from lean3r.compress import CompressionPlan, compress, resolve_plan
from lean3r.compress.plan import Step
from lean3r.errors import InputError, KernelError, LeanError, UsageError, WeightsError
from lean3r.layers.embed import SpecialTokens
from lean3r.layers.trunk import Trunk
from lean3r.layers.vit import PatchEmbed
from lean3r.models import MODELS, STUDENTS
from lean3r.models.base import Backbone
from lean3r.models.checkpoint import without_memory
from lean3r.models.execution import choose_dtype, hold
from lean3r.models.origin import Origin
from lean3r.models.summary import summarise
from lean3r.pipeline.devices import place_model, resolve_dtype
from lean3r.pipeline.load import load
from lean3r.pipeline.memory import chunk_bytes
from lean3r.pipeline.observer import Observer
from lean3r.types import Prediction, TokenLayout, Views

SDPA = CompressionPlan((Step("every attention layer", "dense", {"implementation": "sdpa"}),), "sdpa")
RANDOM = "random"
SPECIAL = 5  # tokens of a layer's views besides the patches, as in Pi3
SMALL = (3, 70, 98)  # views, height, width of the pictures on which the official program must agree
STAGES = {"reading": "decode", "refinement": "refinement"}
"""Stage of a reconstruction -> part; "network" is divided by the roles of its modules."""


@dataclass
class Ready:
    """A program in its process. `call(images [1, S, 3, H, W], cell)` gives its outputs; `weights` says whose they are;
    `flops` counts the operations of a call, None where only a watched run can."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    weights: str
    parts: Parts
    call: Callable[[Tensor, Cell], Outputs]
    flops: Callable[[Tensor], int | None] | None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all distinct parameters and buffers."""
        return sum(t.nbytes for t in {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}.values())


def prepare(program: Program) -> Ready:
    """Build a program; LeanError, or whatever a peer raises, where that fails."""
    device = torch.device(program.device)
    if program.kind == "official":
        return _official(program, device)
    if LAYER.fullmatch(program.model):
        return _layer(program, device)
    model = _load(program, device)
    device, dtype = next(model.parameters()).device, model.origin.dtype
    parts = Parts(Clock(device), "heads" if program.whole is None else "other")
    parts.watch(model, parts_of(model))

    def predict(images: Tensor, cell: Cell) -> Outputs:
        with running(device, dtype):
            if program.like_official and not program.model.startswith("da3"):  # da3 returns no more than ours
                return run_ours(model, images)
            return outputs_of(model(Views(images)))

    call = predict if program.whole is None else _Whole(program.whole, program.refine, model, parts)
    counted = None if program.whole is not None else lambda images: _count(model, images, dtype)
    return Ready(model, device, dtype, model.origin.weights, parts, call, counted)


@contextlib.contextmanager
def running(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside, no gradients, and products in `dtype`."""
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        yield


def outputs_of(prediction: Prediction) -> Outputs:
    """The tensors of a prediction by name."""
    found = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _count(model: nn.Module, images: Tensor, dtype: torch.dtype) -> int:
    views, _, height, width = images.shape[1:]
    return sum(summarise(model, views, height, width, dtype).flops.values())


def plan_of(program: Program) -> CompressionPlan | None:
    """The plan of one of our programs; None for the model as it is."""
    return None if program.plan in (DENSE, STORED) else resolve_plan(program.plan)


def check_plans(settings: Settings) -> None:
    """UsageError, before anything starts, for a plan that none of the models accepts."""
    models = [model for model in settings.models if model not in STUDENTS]
    plans = {plan: "--against" for plan in settings.against} | {plan: "--plans" for plan in settings.plans}
    named = {plan: option for plan, option in plans.items() if plan not in (DENSE, "sdpa", "official")}
    empty = {model: without_memory(partial(_empty, model)) for model in models if named}
    for plan, option in named.items():
        if not models:
            students = ", ".join(settings.models)
            raise UsageError(f"{option} {plan}: {students} already has the plan of its weights; leave the option out.")
        refused = [error for model in empty.values() if (error := _refusal(model, plan))]
        if refused and len(refused) == len(models):
            raise UsageError(f"{option} {plan}: {refused[0]}") from refused[0]


def _refusal(model: nn.Module, plan: str) -> UsageError | None:
    """Why a model does not accept a plan; of other failures the plan's own process says more, in its row."""
    try:
        compress(model, resolve_plan(plan))
    except KernelError:
        return None
    except UsageError as error:
        return error
    except Exception:
        return None
    return None


def _empty(model: str) -> nn.Module:
    match = LAYER.fullmatch(model)
    return MODELS.get(model)() if match is None else _Layer(int(match[1]), int(match[2]))


def _load(program: Program, device: torch.device) -> Backbone:
    """The model with its usual weights if they are on this machine, else with random ones."""
    plan = plan_of(program)
    try:
        model = load(
            program.model, program.weights, str(device), program.dtype, offline=program.weights is None, plan=plan
        )
    except WeightsError:
        if program.weights is not None or program.model in STUDENTS:
            raise
        model = build_ours(program.model)
        model = model if plan is None else compress(model, plan)
        dtype = resolve_dtype(program.dtype) or choose_dtype(model, device)[0]
        model = place_model(hold(model, dtype) if dtype != torch.float32 else model, device)
        model.origin = Origin(RANDOM, dtype=dtype)
        model.set_chunk_bytes(chunk_bytes(device, model.chunk_bytes))
    return compress(model, SDPA) if program.kind == "sdpa" else model


def _official(program: Program, device: torch.device) -> Ready:
    """The official network with the tensors of ours, in float32 on a CPU unless another type was asked for.

    Before anything else its outputs must be ours; LeanError if they are not, or if there is no such program.
    """
    if program.model not in PEERS:
        raise UsageError(f"no official program of {program.model} is known; there are {', '.join(PEERS)}")
    peer = PEERS[program.model]
    network = build_peer(program.model, {peer.clone: Path(program.clone)} if peer.clone and program.clone else {})
    ours = _load(replace(program, kind="lean3r", plan=DENSE, dtype="float32"), torch.device("cpu"))
    give_weights(ours, network, peer.prefix)
    ours, network = ours.to(device), network.to(device)
    images = pictures(*SMALL).to(device)
    with running(device, torch.float32), exact_products():
        errors = differences(program.model, run_ours(ours, images), peer.call(network, images))
    wrong = {name: error for name, error in errors.items() if not error <= PEERS_AGREE}
    if wrong:
        said = ", ".join(f"{name} by {error:.1e}" for name, error in wrong.items())
        raise LeanError(f"the official outputs differ from ours ({said}, relative RMS; {PEERS_AGREE:.0e} allowed)")
    dtype = resolve_dtype(program.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)

    def call(images: Tensor, cell: Cell) -> Outputs:
        with running(device, dtype):
            return peer.call(network, images)

    return Ready(network, device, dtype, ours.origin.weights, Parts(Clock(device), "network"), call, None)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Inside, a GPU multiplies float32 as such."""
    products, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32
    try:
        products.allow_tf32 = False
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        products.allow_tf32 = before


class _Layer(nn.Module):
    """One global block of a trunk over patches and SPECIAL tokens of each view, random weights."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        dim = heads * head_dim
        self.embed, self.special = PatchEmbed(dim, LAYER_PATCH), SpecialTokens(SPECIAL, dim)
        self.trunk = Trunk(("global",), dim, heads)

    def forward(self, views: Views) -> Tensor:
        """Views [B, S, 3, H, W] -> [B, S, T, C]."""
        batch, count, _, height, width = views.images.shape
        patches = self.embed(views.images.flatten(0, 1)).unflatten(0, (batch, count))
        layout = TokenLayout(count, SPECIAL, height // LAYER_PATCH, width // LAYER_PATCH)
        return self.trunk(self.special(patches), layout)[0]


def _layer(program: Program, device: torch.device) -> Ready:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _empty(program.model).eval()
        plan = SDPA if program.kind == "sdpa" else plan_of(program)
        model = model if plan is None else compress(model, plan)
    dtype = resolve_dtype(program.dtype) or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    model = hold(model, dtype).to(device)
    parts = Parts(Clock(device), "linear")
    attention = model.get_submodule("trunk.blocks.0.attn")
    kinds = {"embed": "embedding", "trunk.blocks.0.attn.mechanism": "attention"}
    short = {"trunk.blocks.0.attn.short": "attention"} if getattr(attention, "short", None) is not None else {}
    parts.watch(model, kinds | short)

    def call(images: Tensor, cell: Cell) -> Outputs:
        with running(device, dtype):
            return {"tokens": model(Views(images))}

    return Ready(model, device, dtype, RANDOM, parts, call, lambda images: _count(model, images, dtype))


class _Whole:
    """A reconstruction of photos, from decoding to files, which are thrown away."""

    def __init__(self, photos: str, refine: Refine, model: Backbone, parts: Parts) -> None:
        self.photos, self.model, self.parts = photos, model, parts
        self.refine: Refine = refine

    def __call__(self, images: Tensor, cell: Cell) -> Outputs:
        from lean3r.export import write_all
        from lean3r.inputs.frames import FrameChoice
        from lean3r.pipeline.reconstruct import reconstruct
        from lean3r.scratch import temporary_folder

        assert not isinstance(cell.size, tuple)
        choice, watcher = FrameChoice(max_views=cell.views), _Stages(self.parts)
        scene = reconstruct(
            self.model, self.photos, frames=choice, resolution=cell.size, refine=self.refine, observer=watcher
        )
        if len(scene.names) != cell.views:
            why = "".join(f" ({name}: {reason})" for name, reason in scene.skipped[-1:])
            raise InputError(f"{len(scene.names)} of {cell.views} pictures of {self.photos} could be used{why}")
        with temporary_folder("bench") as folder, self.parts.running("export"):
            write_all(scene, folder)
        arrays = {"depth": scene.depth, "cam_from_world": scene.cam_from_world}
        return {name: torch.from_numpy(value)[None] for name, value in arrays.items()}


class _Stages(Observer):
    """Counts the stages of a reconstruction as parts."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Time one stage."""
        part = "heads" if name == "network" else STAGES.get(name, "other")
        with self.parts.running(part), super().stage(name) as advance:
            yield advance


def pictures(views: int, height: int, width: int) -> Tensor:
    """[1, views, 3, height, width]: smooth noise, different in every view."""
    noise = torch.rand(1, views * 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1).unflatten(1, (views, 3))


def operations(run: Callable[[], Outputs]) -> tuple[Outputs, int]:
    """The outputs of a run that is watched, and its operations."""
    with Operations() as counter:
        found = run()
    return found, counter.total
