"""Distillation of any network: its student learns the teacher's attention outputs and results, rounded by its plan."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from lean3r.compress.distill import attention_outputs
from lean3r.compress.foreign import Adopted, ForeignAttention, map_sites
from lean3r.compress.fp8_linear import Coded
from lean3r.compress.linears import sites_of
from lean3r.compress.sparsify import plan_of
from lean3r.compress.targets import Mapped
from lean3r.errors import UsageError
from lean3r.layers.attention import SelfAttention
from lean3r.train.config import OptimConfig, Stage, TrainConfig
from lean3r.train.loop import BatchFn, fit
from lean3r.train.losses.distillation import Objective, check_weights
from lean3r.train.students import only_trains

M = TypeVar("M", bound=nn.Module)
Compare = Callable[[Any, Any], Tensor]
Data = Callable[[int], Any] | Sequence[Any]


@dataclass(frozen=True)
class NetworkRecipe:
    """How `distill` trains: `steps` steps of AdamW, with the highest learning rate `lr`, after a tenth of warm-up.

    `train` lists roles, or targets such as "global blocks", of the parameters that train (train/freeze.py; empty: all).
    The loss is `outputs` times the difference of the results plus that of the attention outputs, whose weight falls
    from `gamma_from` to `gamma_to` (0: not computed). A step has `accumulate` inputs.
    """

    steps: int = 1000
    lr: float = 1e-4
    train: tuple[str, ...] = ()
    outputs: float = 1.0
    gamma_from: float = 0.1
    gamma_to: float = 0.01
    accumulate: int = 1
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "fp32"
    checkpoint_every: int = 500

    def config(self, **settings: object) -> TrainConfig:
        """The config of the run; `settings` record what else affects the weights."""
        # Sizes of pictures and numbers of views are those of the data.
        stage = Stage(self.steps, 1, 1, views=(1,), views_per_step=1, train=self.train, accumulate=self.accumulate)
        return TrainConfig(
            name="student",
            seed=self.seed,
            stages=(stage,),
            optim=OptimConfig(lr=self.lr, muon_lr=0.0, weight_decay=0.0, warmup_steps=self.steps // 10, ema_decay=0.99),
            precision=self.precision,
            validate_every=0,
            checkpoint_every=self.checkpoint_every,
            settings={"recipe": asdict(self), **settings},
        )


@dataclass(frozen=True)
class Inputs:
    """One call of a network: its arguments. The loop reads the other fields of a batch of scenes too."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]
    ids: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    unknown: int = 0

    @classmethod
    def of(cls, value: object) -> Inputs:
        """A tuple or list holds arguments, a dict keyword arguments; anything else is the only argument."""
        if isinstance(value, Mapping):
            return cls((), value)
        return cls(tuple(value) if isinstance(value, tuple | list) else (value,), {})

    @property
    def views(self) -> int:
        """Pictures, as far as known: the first axes of the first tensor up to its last three."""
        first = next(iter(tensors_of((self.args, self.named))), torch.ones(1))
        return first.shape[:-3].numel() if first.ndim > 3 else len(first)

    def to(self, device: torch.device | str) -> Inputs:
        """The same arguments with everything that can move on `device`, in lists, tuples and dicts too."""

        def move(value: Any) -> Any:
            if hasattr(value, "to"):
                return value.to(device)
            if isinstance(value, Mapping):
                return {name: move(part) for name, part in value.items()}
            if isinstance(value, list | tuple):
                parts = map(move, value)
                return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
            return value

        args, named = tuple(map(move, self.args)), {name: move(value) for name, value in self.named.items()}
        return dataclasses.replace(self, args=args, named=named)


class NetworkDistillation(Objective):
    """`outputs` times compare(student's result, teacher's result), and attention-output distillation of `layers`."""

    def __init__(
        self, teacher: nn.Module, layers: Sequence[str], compare: Compare, outputs: float, gamma: tuple[float, float]
    ):
        super().__init__(teacher, gamma_from=gamma[0], gamma_to=gamma[1])
        (self.outputs,) = check_weights(outputs=outputs)
        self.layers, self.compare = layers, compare

    def __call__(self, model: nn.Module, batch: Inputs, progress: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts."""
        with torch.no_grad(), attention_outputs(self.teacher, self._named(self.teacher)) as theirs:
            expected = self.teacher(*batch.args, **batch.named)
        with attention_outputs(model, self._named(model)) as ours:
            found = model(*batch.args, **batch.named)
        distance = self.compare(found, expected)
        total, terms = self.outputs * distance, {"outputs": distance.detach()}
        if self.gamma_from:
            kd, more = self.attention(ours, theirs, progress)
            total, terms = total + kd, terms | more
        return total, terms

    def _named(self, model: nn.Module) -> Callable[[nn.Module], bool]:
        layers = {model.get_submodule(name) for name in self.layers}
        return lambda module: module in layers


def distill(
    teacher: nn.Module,
    student: M,
    adapter: ForeignAttention | None,
    data: Data,
    recipe: NetworkRecipe | None = None,
    *,
    compare: Compare | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
) -> M:
    """Train a copy of `student` to do what `teacher` does; return it, in evaluation mode.

    `student` is the teacher with a plan: compress.prepare(teacher, plan, adapter=adapter) trains with rounding, for
    compress.convert; compress(...) trains sparse attention alone. The weights of neither change, whatever they share;
    the teacher moves to `device`.
    `adapter` finds the attention layers (compress/foreign.py; None for networks of lean3r). `data` is a list of inputs,
    used in turn, or a function of the number of the input: a tensor, a tuple of arguments, or a dict of keywords.
    `compare(student's result, teacher's result)` is a scalar; by default `difference`. `out` is the folder of the run
    (log, checkpoints), needed for `resume`. Attention is sparse at every length while it trains.

    UsageError if the student is converted already, if teacher and student do not have the same attention layers, and
    as in `fit`. KeyboardInterrupt if a signal stopped the run; with `resume` it continues from there.
    """
    recipe = recipe or NetworkRecipe()
    if any(isinstance(module, Coded) for module in student.modules()):
        raise UsageError("the student is quantised for deployment and cannot train; expected prepare(teacher, plan).")
    if not (callable(data) or (isinstance(data, Sequence) and data)):
        raise UsageError(f"data is {type(data).__name__}; expected a list of inputs, or a function of their number.")
    student = copy.deepcopy(student)
    if adapter is not None and not isinstance(student, Mapped):
        map_sites(student, adapter)
    layers, modules = [site.name for site in sites_of(student)], dict(teacher.named_modules())
    if absent := [name for name in layers if name not in modules]:
        raise UsageError(
            f"the teacher has no {absent[0]}, an attention layer of the student; expected the same network."
        )
    if recipe.gamma_from and not layers:
        raise UsageError("no attention layer is known to distil; pass an adapter, or set gamma_from=0.")
    plan = plan_of(student)
    config = recipe.config(plan=None if plan is None else plan.as_dict())
    trained = {name: p.requires_grad for name, p in student.named_parameters()}

    def batch(step: int, stage: Stage, rank: int, processes: int) -> Inputs:
        number = step * processes + rank
        return Inputs.of(data(number) if callable(data) else data[number % len(data)])

    with TemporaryDirectory() as scratch, as_they_were(teacher), sparse_at_every_length(student):
        gamma = (recipe.gamma_from, recipe.gamma_to)
        objective = NetworkDistillation(teacher.to(device), layers, compare or difference, recipe.outputs, gamma)
        folder = Path(out or scratch)
        only_trains(student, config)
        done = fit(student, objective, cast(BatchFn, batch), config, folder, resume=resume, device=device)
        if done.stopped_by is not None:
            raise KeyboardInterrupt(f"stopped at step {done.step} of {config.total_steps}")
        from safetensors.torch import load_file

        student.load_state_dict(load_file(folder / "weights.safetensors"))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trained[name])
    return student.eval()


def difference(found: object, expected: object) -> Tensor:
    """Mean over all floating-point tensors in two results of the squared difference, each in units of the variance of
    what is expected. UsageError if the results differ in shapes, or hold no such tensor."""
    pairs = list(zip(tensors_of(found), tensors_of(expected), strict=False))
    if not pairs or [f.shape for f, _ in pairs] != [e.shape for e in tensors_of(expected)]:
        raise UsageError(
            "the results of student and teacher have no tensors of the same shapes; pass compare=..., a loss of both."
        )
    each = [(f.float() - e.float()).square().mean() / e.float().var().clamp(min=1e-8) for f, e in pairs]
    return torch.stack(each).mean()


def tensors_of(value: object) -> list[Tensor]:
    """The floating-point tensors in a result, in order: in dicts, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and value.numel() > 1 else []
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


@contextmanager
def as_they_were(model: nn.Module) -> Iterator[None]:
    """Restores modes and gradients of a network that something else freezes."""
    modes = {module: module.training for module in model.modules()}
    needs = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, need in needs.items():
            parameter.requires_grad_(need)


@contextmanager
def sparse_at_every_length(model: nn.Module) -> Iterator[None]:
    """Ignores `dense_below`: training sequences are short, and mechanisms learn only where they run."""
    layers = {m: m.dense_below for m in model.modules() if isinstance(m, SelfAttention | Adopted)}
    try:
        for layer in layers:
            layer.dense_below = 0
        yield
    finally:
        for layer, tokens in layers.items():
            layer.dense_below = tokens
