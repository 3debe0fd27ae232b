"""Low-rank adapters in a run from the command line: which layers get them, and weights with and without them."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lean3r.attention import ATTENTION
from lean3r.compress.plan import FROM_MODEL, CompressionPlan, Step
from lean3r.errors import UsageError, WeightsError
from lean3r.train.checkpoints.state import write_atomically
from lean3r.train.config import TrainConfig
from lean3r.train.distributed import current_world, is_main_process
from lean3r.train.loop import BatchFn, LossFn
from lean3r.train.lora import Adapted, add_lora, merge_tensors, require_peft, save_adapters
from lean3r.train.probe import BATCHES, Unit, gradient_scores, strongest, units_of
from lean3r.train.students import take_over

FILE = "adapters.json"  # in the folder of a phase: the layers that were chosen
KEY = "adapters"  # in the settings of a config
How = Literal["gradient", "all", "last", "random"]


@dataclass(frozen=True)
class AdapterChoice:
    """Adapters of `rank` in a `share` of the blocks of each role: those with the largest gradients (Aletheia's probe,
    train/probe.py), the last, or random ones; or in all blocks. Their `alpha` is twice the rank."""

    how: How
    rank: int = 16
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"--adapter-rank is {self.rank}; expected at least 1.")
        if not 0 < self.share <= 1:
            raise UsageError(f"--adapter-share is {self.share}; expected a number above 0 and at most 1.")
        require_peft()


def with_adapters(
    configs: Sequence[TrainConfig],
    plans: Sequence[CompressionPlan | None],
    choice: AdapterChoice,
    also: tuple[str, ...] = (),
) -> list[TrainConfig]:
    """The configs of a run's phases, in which adapters train instead of whole layers; the optimiser is AdamW.

    Parameters of attention mechanisms and those with the roles `also` train too. A phase that quantises cannot have
    adapters, because rounding would erase them: there mechanisms, norms and `also` train. Phases that train mechanisms
    alone stay as they are. UsageError if no phase is left for adapters.
    """
    changed = []
    for config, plan in zip(configs, plans, strict=True):
        stages, settings, optim = config.stages, config.settings, config.optim
        if any(stage.train != ("mechanisms",) for stage in stages):
            rounds = plan is not None and bool(plan.quantizes)
            first = "norms" if rounds else "adapters"
            mechanisms = ("mechanisms",) if plan is not None and any(map(_learns, plan.exchanges)) else ()
            train = tuple(dict.fromkeys((first, *mechanisms, *also)))
            if not rounds:
                skipped = sorted({prefix for stage in stages for prefix in stage.frozen})
                settings = settings | {KEY: asdict(choice) | {"alpha": 2.0 * choice.rank, "skipped": skipped}}
                optim = replace(optim, muon_lr=0.0)
            stages = tuple(replace(stage, train=train, frozen=()) for stage in stages)
        changed.append(replace(config, stages=stages, settings=settings, optim=optim))
    if not any(KEY in config.settings for config in changed):
        raise UsageError(
            "no phase of the recipe can have adapters: each quantises, or trains attention mechanisms alone. Use a "
            "recipe or a --student-plan that does not quantise, or leave --adapters out."
        )
    return changed


def adapt(
    model: nn.Module,
    config: TrainConfig,
    folder: Path,
    batch: BatchFn,
    objective: LossFn,
    device: torch.device | str,
    *,
    resume: bool,
) -> None:
    """Add the adapters of a phase to its network, in place, and write FILE in its folder; nothing if it has none.

    The probe computes the objective on the first five batches of the phase. A resumed phase takes the layers of its
    file, and a network that has adapters keeps them: those of the previous phase train on.
    """
    if KEY not in config.settings:
        return
    stage = config.stages[0]

    def loss(network: nn.Module, number: int) -> Tensor:
        return objective(network, batch(number, stage, 0, 1).to(device), 0.0, **stage.loss)[0]

    chosen = read_choice(folder) if resume else None
    before = isinstance(model, Adapted)
    if before:
        chosen = read_choice(folder.parent / config.settings["after"][-1])
    elif chosen is None:
        # The first process decides: on GPUs, gradients of the others may differ in the last digits.
        chosen = current_world().gather(choose(model.to(device), config, loss))[0]
    assert chosen is not None
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(chosen, indent=2)
        write_atomically(folder / FILE, lambda temporary: temporary.write_text(text))
    if not before:
        add_to(model, chosen)


def choose(model: nn.Module, config: TrainConfig, loss: Callable[[nn.Module, int], Tensor]) -> dict[str, Any]:
    """What FILE holds: the targets of the adapters, with the scores of the probe, which computes `loss` on batches 0 to
    4."""
    asked = config.settings[KEY]
    skipped = tuple(asked["skipped"])
    units = [unit for unit in units_of(model) if not (skipped and f"{unit.path}.".startswith(skipped))]
    scores = {}
    if asked["how"] == "gradient":
        found = gradient_scores(model, range(BATCHES), loss, units=units)
        taken = strongest(found, asked["share"])
        scores = {score.unit.target: score.score for score in found}
    elif asked["how"] == "all":
        taken = units
    else:
        taken = _by_role(units, asked["share"], config.seed if asked["how"] == "random" else None)
    return asked | {"targets": [unit.target for unit in taken], "scores": scores}


def choose_all(model: nn.Module, config: TrainConfig) -> dict[str, Any] | None:
    """As `choose`, with all blocks, for checks without weights; None if the phase has no adapters."""
    if KEY not in config.settings:
        return None
    return config.settings[KEY] | {"targets": [unit.target for unit in units_of(model)]}


def add_to(model: nn.Module, chosen: dict[str, Any]) -> None:
    """Add adapters with the content of FILE to a network; what trained before can train still."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    add_lora(model, chosen["targets"], rank=chosen["rank"], alpha=chosen["alpha"])
    for parameter in trained:
        parameter.requires_grad_(True)


def read_choice(folder: Path) -> dict[str, Any] | None:
    """The content of FILE in the folder of a phase; None if the phase has no adapters."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.is_file() else None


def load_phase(model: nn.Module, folder: Path, *, keep: bool = False, file: str = "weights.safetensors") -> None:
    """Fill a network with the averaged weights of a finished phase: adapters merged, or added to it (`keep`).
    WeightsError if their file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / file)
    except SafetensorError as error:
        raise WeightsError(
            f"{folder / file} is damaged or truncated ({error}). Delete it and resume the run: the phase then writes "
            "it again, from its last checkpoint."
        ) from error
    chosen = read_choice(folder)
    if chosen is not None and keep:
        add_to(model, chosen)
    elif chosen is not None:
        tensors = merge_tensors(tensors, chosen["alpha"])
    take_over(model, tensors)


def save_separately(model: nn.Module, phase: Path, out: Path) -> Path:
    """Write the adapters of a finished phase, and the mechanisms that trained with them, to the folder OUT/adapters in
    the form of peft; return it. `model` is the network of the phase, without them."""
    load_phase(model, phase, keep=True)
    save_adapters(model, out / "adapters")
    return out / "adapters"


def _by_role(units: Sequence[Unit], share: float, seed: int | None) -> list[Unit]:
    """A share of the units of each role, in network order: the last, or random ones with a seed."""
    taken: list[Unit] = []
    for role in dict.fromkeys(unit.role for unit in units):
        pool = [unit for unit in units if unit.role == role]
        count = max(1, int(share * len(pool)))
        taken += pool[-count:] if seed is None else random.Random(f"{seed}/{role}").sample(pool, count)
    return sorted(taken, key=lambda unit: unit.index)


def _learns(step: Step) -> bool:
    """Whether the mechanism of a step has parameters that can train."""
    kind, sizes = ATTENTION.get(step.mechanism), {"dim": 64, "heads": 2}
    accepted = {name: sizes[name] for name in FROM_MODEL if name in inspect.signature(kind).parameters}
    mechanism = kind(**accepted, **step.settings)
    return any(parameter.requires_grad for parameter in mechanism.parameters())
