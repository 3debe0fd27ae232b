"""What `train` and `distill` share: options that change a recipe, validation on held-out scenes, pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lean3r.cli.options import check_seed, option

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from lean3r.data.base import SceneBatch
    from lean3r.data.world.synthetic import SyntheticWorld
    from lean3r.train.config import Stage, TrainConfig
    from lean3r.train.recipes.overrides import Overrides
    from lean3r.train.recipes.sources import Source

RECIPE_FILE = "recipe.json"
SETS = ((2, 10, 40), (8, 4, 40))  # views of a scene, scenes in a batch, scenes in all
FEW = ((2, 2, 8), (8, 1, 4))


@dataclass
class Changes:
    """Options of a training run; what is not given stays as the recipe has it."""

    lr: Annotated[list[float], option("RATE [RATE ...]")] = field(default_factory=list)
    """Highest learning rate: one for all phases, or one for each."""

    steps: Annotated[list[int], option("N [N ...]")] = field(default_factory=list)
    """Steps: one number for all phases, or one for each."""

    views: Annotated[list[int], option("N [N ...]")] = field(default_factory=list)
    """Numbers of views that a scene has, by turns."""

    train: Annotated[list[str], option("ROLE [ROLE ...]")] = field(default_factory=list)
    """What trains: all, mechanisms, encoder, trunk, heads, norms, or layers as a plan names them."""

    batch: Annotated[int | None, option("VIEWS")] = None
    """Pictures that each process sees in a batch."""

    accumulate: Annotated[int | None, option("N")] = None
    """Batches of each process in a step; by default the recipe's step is shared among the processes."""

    seed: Annotated[int | None, option("N")] = None
    """Of everything random, scenes included."""

    workers: Annotated[int | None, option("N")] = None
    """Processes that prepare batches ahead."""

    validate_every: Annotated[int | None, option("STEPS")] = None
    """How often to judge the weights on held-out scenes, and at the end of each phase; 0: never."""

    validate_scenes: Annotated[int | None, option("N")] = None
    """Scenes of each number of views in a validation; by default 40, with large teachers 8 and 4."""

    validate_data: Annotated[tyro.conf.UseAppendAction[list[str]], option("NAME=ROOT[:WEIGHT]")] = field(
        default_factory=list
    )
    """A data set to judge the weights on, and its folder; may be repeated. By default the synthetic world."""

    checkpoint_every: Annotated[int | None, option("STEPS")] = None
    """How often to write a checkpoint; 0: at the end."""

    pictures_every: Annotated[int | None, option("STEPS")] = None
    """How often to draw what the model predicts; 0: never."""

    keep_last: Annotated[int | None, option("N")] = None
    """Checkpoints that are kept."""

    precision: Annotated[str | None, option("NAME")] = None
    """bf16 or fp32."""

    shard: Annotated[str | None, option("NAME")] = None
    """full spreads parameters over the processes, none copies them, auto decides by memory."""

    explode_factor: Annotated[float | None, option("FACTOR")] = None
    """Skip steps whose gradient norm is so many times the running median; 0: none."""

    skip_limit: Annotated[int | None, option("STEPS")] = None
    """End the run after so many skipped steps in all."""

    skip_limit_in_row: Annotated[int | None, option("STEPS")] = None
    """End the run after so many skipped steps in a row."""

    textures: Annotated[Path | None, option("DIR")] = None
    """Folder of photo crops (.jpg) that join the synthetic world's textures."""

    processes: Annotated[int | None, option("N")] = None
    """Processes on this CPU that share each step; by default the recipe's. torchrun has its own number."""

    device: Annotated[str, option("NAME")] = "cpu"
    """cpu or cuda."""

    resume: Annotated[bool, option()] = False
    """Go on where the run in the folder stopped."""

    dry_run: Annotated[bool, option()] = False
    """Print the whole config as JSON and train nothing."""

    verbose: Annotated[bool, option(None, "-v")] = False
    """Show the traceback of an unexpected error."""

    def overrides(self) -> Overrides:
        """The options that change configs."""
        from lean3r.train.recipes.overrides import Overrides

        check_seed(self.seed)
        lists = {name: tuple(getattr(self, name)) for name in ("steps", "lr", "views", "train")}
        others = {f.name: getattr(self, f.name) for f in fields(Overrides) if f.name not in lists}
        return Overrides(**lists, **others)

    def held_out(self) -> HeldOut:
        """The scenes for validation; UsageError or InputError where they cannot be."""
        from lean3r.errors import UsageError
        from lean3r.train.recipes.sources import Source

        if self.validate_scenes is not None and self.validate_scenes < 1:
            raise UsageError(f"--validate-scenes is {self.validate_scenes}; for no validation: --validate-every 0.")
        return HeldOut(tuple(Source.parse(text) for text in self.validate_data), self.validate_scenes)

    def processes_for(self, recipe: int) -> int:
        """How many processes train, of a recipe that is written for so many."""
        from lean3r.train.distributed import processes_of

        return processes_of(self.processes or (recipe if self.device == "cpu" else 1))


@dataclass(frozen=True)
class HeldOut:
    """What weights are judged on: sets on disk (none: the synthetic world), and how many scenes at most."""

    sources: tuple[Source, ...] = ()
    scenes: int | None = None

    def batches(
        self, world: SyntheticWorld, stage: Stage, scale: int, views: int, scenes: int, total: int
    ) -> Iterator[SceneBatch]:
        """So many scenes at a time of `total` in all, the same ones always, in pictures of `scale` times the size of a
        stage's."""
        from lean3r.data.sampling.mixture import BatchShape
        from lean3r.train.recipes import HELD_OUT_SEED
        from lean3r.train.recipes.sources import plain_mixture

        total = min(total, self.scenes or total)
        height, width = stage.height * scale, stage.width * scale
        mixture = plain_mixture(self.sources, HELD_OUT_SEED) if self.sources else None
        world = replace(world, seed=HELD_OUT_SEED, textures=None, compile=False)
        for number, done in enumerate(range(0, total, scenes)):
            count = min(scenes, total - done)
            if mixture is None:
                yield world.batch(number, count, views=views, height=height, width=width)
            else:
                yield mixture.batch(number, BatchShape(count, views, height, width)).to(world.device)

    def check(self, world: SyntheticWorld, stage: Stage, sets: tuple[tuple[int, int, int], ...]) -> None:
        """InputError where the sets on disk have no scenes of as many views: at once, not after hours."""
        for views, _, _ in sets if self.sources else ():
            next(self.batches(world, stage, 1, views, 1, 1))


def show(recipe: Any) -> None:
    """Print the whole recipe as JSON, once however many processes there are."""
    from lean3r.train.distributed import is_main_process

    if is_main_process():
        print(json.dumps(recipe.as_dict(), indent=2))


@contextmanager
def run_folder(out: Path, recipe: Mapping[str, Any], resume: bool, writes: Sequence[str]) -> Iterator[None]:
    """Inside, OUT is this run's: its recipe is there, no other run writes to it, and of the names in `writes` none is
    anything but this run's. On one process of torchrun's; the others rely on it."""
    from lean3r.errors import UsageError
    from lean3r.train.checkpoints.state import lock_folder
    from lean3r.train.distributed import is_main_process

    if not is_main_process():
        yield
        return
    with lock_folder(out, patience_s=0):
        for leftover in out.glob(f".{RECIPE_FILE}.*.partial"):
            leftover.unlink()
        if read_recipe(out) is None and (taken := [name for name in (RECIPE_FILE, *writes) if (out / name).exists()]):
            raise UsageError(f"'{out}' has a {taken[0]} that is no training run's; choose another folder")
        keep_recipe(out, recipe, resume)
        yield


def train_phases(
    recipe: Any, names: Sequence[str], out: Path, resume: bool, run_phase: Callable[..., int], *rest: Any
) -> bool:
    """Call run_phase(recipe, number, out, *rest) on the recipe's processes for each phase, called as `names` say, that
    has no weights yet; whether this process is the one that writes what follows. Ends the program with the code of a
    phase that was stopped."""
    from lean3r.train.distributed import is_main_process, launch

    for index, name in enumerate(names):
        if resume and (out / name / "weights.safetensors").exists():
            continue
        stopped = launch(recipe.processes, run_phase, recipe, index, out, *rest)
        if stopped:
            sys.exit(stopped)
    return is_main_process()


def read_recipe(out: Path) -> dict[str, Any] | None:
    """The recipe of the run in a folder; None where there is none of ours."""
    try:
        found = json.loads((out / RECIPE_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"phases", "processes"} <= found.keys() else None


def keep_recipe(out: Path, recipe: Mapping[str, Any], resume: bool) -> None:
    """Write OUT/recipe.json; UsageError where the folder holds a run that is not to be resumed, or another recipe's.

    Other numbers of processes with the same batches in a step are the same recipe.
    """
    from lean3r.errors import UsageError
    from lean3r.train.checkpoints.state import write_atomically
    from lean3r.train.config import FREE_ON_RESUME, config_diff

    path, now = out / RECIPE_FILE, json.loads(json.dumps(recipe))
    if not resume and any(out.glob("*/checkpoints/step-*")):
        raise UsageError(f"'{out}' already holds a training run; resume it or choose another folder")
    before = read_recipe(out)
    if resume and before is not None:
        lines = config_diff(_on_one_process(before), _on_one_process(now))
        lines = [line for line in lines if line.split(":")[0].split(".")[-1] not in FREE_ON_RESUME]
        if lines:
            shown = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
            raise UsageError(f"'{out}' holds a run of another recipe; cannot resume: {shown}")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(now, indent=2)))


def _on_one_process(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as JSON, with all batches of a step on one process."""
    processes = recipe["processes"]
    phases = [
        phase | {"stages": [s | {"accumulate": s["accumulate"] * processes} for s in phase["stages"]]}
        for phase in recipe["phases"]
    ]
    return {**recipe, "processes": 1, "phases": phases}


def validate(
    world: SyntheticWorld,
    config: TrainConfig,
    scale: int,
    sets: tuple[tuple[int, int, int], ...],
    held_out: HeldOut,
    model: Any,
) -> dict[str, float]:
    """Figures on a fixed set of held-out scenes, in pictures of `scale` times the last stage's size.

    nano is judged at full size, twice that of training without the guided head, whose depth then counts on patch
    centres. "auc30" is that of the largest number of views.
    """
    from lean3r.eval.synthetic import score_scenes

    figures: dict[str, float] = {}
    for views, scenes, total in sets:
        batches = held_out.batches(world, config.stages[-1], scale, views, scenes, total)
        for name, value in score_scenes(model, batches).items():
            figures[f"{name}_{views}"] = value
    return figures | {"auc30": figures[f"auc30_{sets[-1][0]}"]}


def picture(world: SyntheticWorld, config: TrainConfig, scale: int, model: nn.Module) -> np.ndarray:
    """[H, W, 3] uint8: views of a held-out scene, the depth that the model sees in them, and the true one."""
    from lean3r.train.logs.pictures import draw_depth
    from lean3r.train.recipes import HELD_OUT_SEED

    stage = config.stages[-1]
    world = replace(world, seed=HELD_OUT_SEED, textures=None, compile=False)
    batch = world.batch(0, 1, views=4, height=stage.height * scale, width=stage.width * scale)
    return draw_depth(batch)(model)
