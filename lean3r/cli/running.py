"""The options that `train` and `distill` share, and their changes to a recipe."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from lean3r.cli.options import DataSets, Quiet, Verbose, option
from lean3r.options import check_seed

if TYPE_CHECKING:
    from lean3r.compress.plan import CompressionPlan
    from lean3r.train.config import TrainConfig
    from lean3r.train.held_out import HeldOut
    from lean3r.train.recipes.overrides import Overrides


class Shown(Protocol):
    """A recipe of any kind, which can be printed."""

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        ...


@dataclass
class Changes:
    """Options of a training run; the recipe sets those that are not given."""

    lr: Annotated[list[float], option("RATE [RATE ...]")] = field(default_factory=list)
    """Highest learning rate: one for all phases, or one for each."""

    steps: Annotated[list[int], option("N [N ...]")] = field(default_factory=list)
    """Steps: one number for all phases, or one for each."""

    views: Annotated[list[int], option("N [N ...]")] = field(default_factory=list)
    """Numbers of views in a scene, used in turn."""

    train: Annotated[list[str], option("ROLE [ROLE ...]")] = field(default_factory=list)
    """What to train: all, mechanisms, encoder, trunk, heads, norms, or layers as a plan names them."""

    adapters: Annotated[Literal["gradient", "all", "last", "random"] | None, option()] = None
    """Train low-rank adapters (LoRA) instead of whole layers, with what --train names: in the blocks with the largest
    gradients, in all, in the last, or in random ones."""

    adapter_rank: Annotated[int | None, option("N")] = None
    """Rank of the adapters; 16 by default."""

    adapter_share: Annotated[float | None, option("SHARE")] = None
    """Share of the blocks of each role that get adapters; 0.5 by default."""

    separate_adapters: Annotated[bool, option()] = False
    """Write the adapters to OUT/adapters, in the form of peft, instead of merging them into weights."""

    batch: Annotated[int | None, option("VIEWS")] = None
    """Pictures in a batch of each process."""

    accumulate: Annotated[int | None, option("N")] = None
    """Batches of each process in a step; by default the processes share the recipe's step."""

    seed: Annotated[int | None, option("N")] = None
    """Random seed, also for the scenes."""

    workers: Annotated[int | None, option("N")] = None
    """Workers that prefetch batches: threads up to 4, processes above."""

    validate_every: Annotated[int | None, option("STEPS")] = None
    """Validate on held-out scenes after so many steps, and at the end of each phase; 0: never."""

    validate_scenes: Annotated[int | None, option("N")] = None
    """Scenes for each number of views in a validation; by default 40, with large teachers 8 and 4."""

    validate_data: Annotated[DataSets, option(help="A data set to validate on, in the form of distill's --data.")] = (
        field(default_factory=list)
    )

    checkpoint_every: Annotated[int | None, option("STEPS")] = None
    """Steps between checkpoints; 0: only at the end."""

    pictures_every: Annotated[int | None, option("STEPS")] = None
    """Steps between pictures of predictions; 0: never."""

    keep_last: Annotated[int | None, option("N")] = None
    """Number of checkpoints to keep."""

    precision: Annotated[str | None, option("NAME")] = None
    """bf16 or fp32."""

    shard: Annotated[str | None, option("NAME")] = None
    """full: split parameters among the processes; none: copy them; auto: decide by memory."""

    explode_factor: Annotated[float | None, option("FACTOR")] = None
    """Skip steps whose gradient norm exceeds this multiple of the running median; 0: never."""

    skip_limit: Annotated[int | None, option("STEPS")] = None
    """End the run after this many skipped steps in total."""

    skip_limit_in_row: Annotated[int | None, option("STEPS")] = None
    """End the run after this many skipped steps in a row."""

    textures: Annotated[Path | None, option("DIR")] = None
    """Folder of photo crops (.jpg) to add to the textures of the synthetic world."""

    processes: Annotated[int | None, option("N")] = None
    """Processes on this CPU that share each step; by default the recipe's. torchrun sets its own number."""

    device: Annotated[str, option("NAME")] = "cpu"
    """cpu or cuda."""

    resume: Annotated[bool, option()] = False
    """Resume the run in the folder."""

    dry_run: Annotated[bool, option()] = False
    """Print the whole config as JSON, and do not train."""

    verbose: Verbose = False
    quiet: Quiet = False

    def overrides(self) -> Overrides:
        """The options that change the configs of phases."""
        from lean3r.train.recipes.overrides import Overrides

        check_seed(self.seed)
        lists = {name: tuple(getattr(self, name)) for name in ("steps", "lr", "views", "train")}
        if self.adapters is not None:
            lists["train"] = ()  # see with_adapters
        others = {f.name: getattr(self, f.name) for f in fields(Overrides) if f.name not in lists}
        return Overrides(**lists, **others)

    def with_adapters(self, configs: list[TrainConfig], plans: Sequence[CompressionPlan | None]) -> list[TrainConfig]:
        """The configs of the phases with these plans, with adapters if they are asked for; UsageError if the options
        contradict each other or the phases."""
        from lean3r.errors import UsageError
        from lean3r.train.adapting import KEY, AdapterChoice, with_adapters

        details = {"rank": self.adapter_rank, "share": self.adapter_share}
        given = {name: value for name, value in details.items() if value is not None}
        if self.adapters is None:
            if given or self.separate_adapters:
                raise UsageError("options of adapters need --adapters; expected --adapters gradient, for example.")
            return configs
        configs = with_adapters(configs, plans, AdapterChoice(self.adapters, **given), tuple(self.train))
        others = sorted(set(self.train) - {"adapters", "mechanisms"})
        if self.separate_adapters and others:
            raise UsageError(
                f"--separate-adapters writes adapters and mechanisms only, and --train {' '.join(others)} changes more "
                "of the network. Leave one of them out."
            )
        if self.separate_adapters and KEY not in configs[-1].settings:
            raise UsageError(
                f"the last phase, {configs[-1].name}, quantises: its weights contain the adapters of earlier phases. "
                "Leave --separate-adapters out, or choose a --student-plan that does not quantise."
            )
        return configs

    def held_out(self) -> HeldOut:
        """The scenes for validation; UsageError or InputError if they are not available."""
        from lean3r.errors import UsageError
        from lean3r.train.held_out import HeldOut
        from lean3r.train.recipes.sources import Source

        if self.validate_scenes is not None and self.validate_scenes < 1:
            raise UsageError(
                f"--validate-scenes is {self.validate_scenes}; expected at least 1 (no validation: --validate-every 0)."
            )
        return HeldOut(tuple(Source.parse(text) for text in self.validate_data), self.validate_scenes)

    def processes_for(self, recipe: int) -> int:
        """The number of training processes, given the recipe's number."""
        from lean3r.errors import UsageError
        from lean3r.train.distributed import processes_of

        if self.processes is not None and self.processes < 1:
            raise UsageError(f"--processes is {self.processes}; expected at least 1.")
        return processes_of(self.processes or (recipe if self.device == "cpu" else 1))


def run_quietly(run_phase: Callable[[int], int], index: int) -> int:
    """Run a phase without output on standard error; the caller reports errors."""
    with redirect_stderr(io.StringIO()):
        return run_phase(index)


def show(recipe: Shown) -> None:
    """Print the whole recipe as JSON, in the main process only."""
    from lean3r.train.distributed import is_main_process

    if is_main_process():
        print(json.dumps(recipe.as_dict(), indent=2))
