"""`lean3r distill`: train a sparse or quantised student of a dense teacher by a recipe."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lean3r.cli.options import DataSets, Out, Plan, Weights, option
from lean3r.cli.running import Changes, run_quietly, show
from lean3r.train import DISTILLATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lean3r.compress.plan import CompressionPlan
    from lean3r.models.base import Backbone
    from lean3r.train.held_out import HeldOut, Sets
    from lean3r.train.recipes.distilled import Distillation

logger = logging.getLogger("lean3r")


@dataclass
class Distill(Changes):
    """Train a sparse or FP8 student of a dense model, by a recipe.

    See docs/how-to/distil.md.
    """

    recipe: Annotated[
        str | None, option("NAME", help=f"{', '.join(DISTILLATIONS)}; by default the one for the teacher and the plan.")
    ] = None

    teacher: Annotated[str | None, option("NAME")] = None
    """The dense model; by default the recipe's."""

    weights: Annotated[Weights, option(help="Weights of the teacher; by default its own.")] = None

    student: Annotated[Weights, option(help="Weights that the student starts from; by default the teacher's.")] = None

    student_plan: Annotated[Plan, option(help="The student's plan: its name or file; by default the recipe's.")] = None
    data: DataSets = field(default_factory=list)

    gamma: Annotated[list[float], option("FROM [TO]")] = field(default_factory=list)
    """Weight of attention-output distillation at the start and at the end (by default a tenth of FROM)."""

    repeat: Annotated[int, option("STEPS")] = 0
    """Steps after which the same pictures come again, crops and colours included; 0: never."""

    teacher_cache: Annotated[Path | None, option("DIR")] = None
    """Keep the teacher's outputs in this folder; it does not run again for the same pictures (--repeat)."""

    teacher_cache_gb: Annotated[float, option("GB")] = 100.0
    """Most gigabytes in the folder of --teacher-cache."""

    out: Annotated[Out, option(help="Folder of the run: configs, logs, checkpoints, weights.")] = Path("runs/distill")

    def run(self) -> None:
        """Train all phases; print the path of the student's weights."""
        from lean3r.train.distributed import is_main_process
        from lean3r.train.runs import run_folder, train_phases

        recipe = self.resolve()
        if recipe.student == recipe.teacher and recipe.plan is None and self.student is None:
            logger.warning(
                "The student starts as a copy of its teacher, with nothing to learn. Give --student or --student-plan."
            )
        cache = self.cache(recipe)
        if self.dry_run:
            check_fit(recipe)
            show(recipe)
            return
        held_out = self.held_out()
        held_out.check(recipe.data.world, recipe.config(0).stages[-1], sets_of(recipe))
        names = [phase.config.name for phase in recipe.phases]
        phase = partial(
            run_phase,
            recipe,
            out=self.out,
            weights=self.weights,
            student_weights=self.student,
            cache=cache,
            held_out=held_out,
            resume=self.resume,
            device=self.device,
        )
        results = [f"{recipe.name}.safetensors", f"{recipe.name}-full.safetensors"]
        with run_folder(self.out, recipe.as_dict(), self.resume, [*names, *results]):
            phase = partial(run_quietly, phase) if self.quiet else phase
            if code := train_phases(phase, names, self.out, self.resume, recipe.processes):
                sys.exit(code)
            if is_main_process():
                print(publish(recipe, self.out, self.weights, self.student, self.separate_adapters))

    def resolve(self) -> Distillation:
        """The recipe with the changes of the options; UsageError if they contradict each other."""
        from lean3r.compress import resolve_plan
        from lean3r.errors import UsageError
        from lean3r.train import RECIPES
        from lean3r.train.recipes.overrides import recipe_name_for, with_configs, with_gamma, with_plan
        from lean3r.train.recipes.sources import Source

        plan = None if self.student_plan is None else resolve_plan(self.student_plan)
        name = self.recipe or recipe_name_for(self.teacher or "nano", plan)
        if name in RECIPES:
            raise UsageError(f"'{name}' has no teacher: lean3r train {name}")
        recipe: Distillation = DISTILLATIONS.get(name)(None if self.textures is None else str(self.textures))
        if self.teacher is not None and self.teacher != recipe.teacher:
            recipe = replace(recipe, teacher=self.teacher, name=f"{recipe.name}-{self.teacher}")
        if plan is not None:
            recipe = with_plan(recipe, plan)
        if self.student is not None and (done := finished_phases(recipe, self.student)):
            names = [phase.config.name for phase in recipe.phases]
            logger.warning("%s has finished %s; training starts with %s.", self.student, names[done - 1], names[done])
            recipe = replace(recipe, phases=recipe.phases[done:])
        processes = self.processes_for(recipe.processes)
        sources = tuple(Source.parse(text) for text in self.data)
        world = replace(recipe.data.world, device="cpu" if sources else self.device)
        configs = self.overrides().configs([phase.config for phase in recipe.phases], recipe.processes, processes)
        configs = self.with_adapters(configs, [phase.plan for phase in recipe.phases])
        recipe = replace(with_configs(recipe, configs), processes=processes)
        data = replace(recipe.data, sources=sources, world=world, repeat=self.repeat)
        recipe = recipe.with_data(data, processes, epochs=not self.steps)
        # If the device renders, batches from other processes would have to pass through main memory.
        if self.device != "cpu" and not sources:
            recipe = with_configs(recipe, [replace(phase.config, workers=0) for phase in recipe.phases])
        if len(self.gamma) > 2:
            raise UsageError(
                f"--gamma has {len(self.gamma)} numbers; expected one, or one for the start and one for the end."
            )
        return with_gamma(recipe, *self.gamma) if self.gamma else recipe

    def cache(self, recipe: Distillation) -> tuple[Path, float] | None:
        """The folder of the teacher's outputs and its limit in bytes; UsageError if the recipe's objective needs more
        of its teacher than a cache holds."""
        from lean3r.errors import UsageError
        from lean3r.train.recipes.distilled import OBJECTIVES

        if self.teacher_cache is None:
            return None
        if not all(OBJECTIVES.get(phase.objective).is_cacheable for phase in recipe.phases):
            raise UsageError(
                f"--teacher-cache: the recipe {recipe.name} needs the teacher's attention outputs or tokens, which are "
                "too large for a cache. It is for speed3r- recipes."
            )
        if not self.teacher_cache_gb > 0:
            raise UsageError(f"--teacher-cache-gb is {self.teacher_cache_gb:g}; expected a number above 0.")
        if not self.repeat:
            logger.warning(
                "--teacher-cache without --repeat: every step draws new pictures, so only another run with the same "
                "seed and data finds them in the cache."
            )
        return self.teacher_cache, self.teacher_cache_gb * 1e9


def sets_of(recipe: Distillation) -> Sets:
    """The scenes of a validation: fewer with a large teacher."""
    from lean3r.train.held_out import FEW, SETS

    return SETS if recipe.teacher == "nano" else FEW


def check_fit(recipe: Distillation) -> None:
    """Raise UsageError if a plan of the recipe names blocks that the teacher lacks; loads no weights."""
    from lean3r.models import MODELS
    from lean3r.models.checkpoint import without_memory
    from lean3r.train.adapting import add_to, choose_all
    from lean3r.train.students import only_trains, student_of

    start = without_memory(MODELS.get(recipe.student or recipe.teacher))
    for index, phase in enumerate(recipe.phases):
        student, config = student_of(start, phase.plan), recipe.config(index)
        if (chosen := choose_all(student, config)) is not None:
            add_to(student, chosen)
        only_trains(student, config)


def first_student(recipe: Distillation, teacher: Backbone, weights: str | None) -> Backbone:
    """What the student starts from, before its plan: the teacher, or a model with `weights`; in the student's own form,
    if it has one. WeightsError if the weights are of another model, UsageError if they cannot be trained."""
    from lean3r.compress.sparsify import plan_of
    from lean3r.errors import UsageError
    from lean3r.models.sources import find_weights
    from lean3r.models.speed3r import Speed3rPi3, from_pi3, is_speed3r
    from lean3r.models.weight_files import open_weights
    from lean3r.pipeline.load import load

    start = teacher
    if weights is not None:
        is_own = is_speed3r(open_weights(find_weights(weights)).shapes)
        name = (recipe.student if is_own else "pi3") if recipe.student else recipe.teacher
        start = load(name, weights, next(teacher.parameters()).device.type, "float32")
    plan = plan_of(start)
    if plan is not None and (recipe.student or plan.quantizes):
        raise UsageError(
            f"a student cannot start from {start.origin.weights}, which is compressed by the plan '{plan.name}'. "
            "Give dense weights, or those of a sparse student before its quantisation."
        )
    return from_pi3(start) if recipe.student and not isinstance(start, Speed3rPi3) else start


def finished_phases(recipe: Distillation, weights: str) -> int:
    """How many phases of a recipe a student has behind it; 0 if all, or if its file does not say.

    The weights in the folder of a phase name it. Full weights of a rounded student, ours or of Lite3R's release, are
    those of the last phase that rounds to the same number formats.
    """
    from lean3r.compress.plan import resolve_plan
    from lean3r.compress.sparsify import PREPARED, STAGE_KEY, stored_plan
    from lean3r.models import lite3r
    from lean3r.models.sources import find_weights
    from lean3r.models.weight_files import open_weights
    from lean3r.pipeline.releases import trained_as

    files = open_weights(find_weights(weights))
    about, plan = files.metadata, None
    if lite3r.RELEASE in about:
        plan = resolve_plan(trained_as(files))
    elif about.get(STAGE_KEY) == PREPARED:
        plan = stored_plan(about)

    def formats(plan: CompressionPlan | None) -> set[str]:
        return set() if plan is None else {step.quantize for step in plan.quantizes}

    name = phase_of(about)
    done = [
        number
        for number, phase in enumerate(recipe.phases, start=1)
        if name == phase.config.name or (formats(plan) and formats(plan) == formats(phase.plan))
    ]
    return done[-1] % len(recipe.phases) if done else 0


def phase_of(metadata: Mapping[str, str]) -> str | None:
    """The phase of a distillation in whose folder a file of weights lies; None for other files."""
    from lean3r.json_text import parse_json

    try:
        config = parse_json(metadata.get("config", "null"))
    except ValueError:
        return None
    settings = config.get("settings") if isinstance(config, dict) else None
    return metadata.get("name") if isinstance(settings, dict) and "objective" in settings else None


def planned_student(
    recipe: Distillation, plan: CompressionPlan | None, teacher: Backbone, weights: str | None
) -> Backbone:
    """`first_student` with a plan. Of a trained student (from the folder of a phase, or full weights, ours or of
    Lite3R's release): the teacher, with all that the file has."""
    from lean3r.compress.sparsify import PREPARED, STAGE_KEY
    from lean3r.models import lite3r
    from lean3r.models.checkpoint import check_model, read_tensors
    from lean3r.models.fingerprint import fingerprint
    from lean3r.models.sources import find_weights
    from lean3r.models.weight_files import open_weights
    from lean3r.train.adapting import load_phase
    from lean3r.train.students import student_of, take_over

    path = None if weights is None else find_weights(weights)
    files = None if path is None else open_weights(path)
    full = files is not None and (lite3r.RELEASE in files.metadata or files.metadata.get(STAGE_KEY) == PREPARED)
    of_phase = files is not None and phase_of(files.metadata) is not None
    if path is None or files is None or not (full or of_phase):
        return student_of(first_student(recipe, teacher, weights), plan)
    if of_phase:
        student = student_of(first_student(recipe, teacher, None), plan)
        load_phase(student, path.parent, file=path.name)
        student.origin = replace(student.origin, hash=fingerprint(path))
        return student
    check_model(files, recipe.teacher)
    student = student_of(teacher, plan)
    keys = student.KEY_MAP
    tensors = {name: v for name, v in student.state_dict().items() if lite3r.is_left_out(keys.official(name))}
    take_over(student, tensors | keys.read(read_tensors(path)[0])[0])
    student.origin = replace(student.origin, hash=fingerprint(path))
    return student


def student_at(recipe: Distillation, phase: int, teacher: Backbone, weights: str | None, out: Path) -> Backbone:
    """The student at the start of a phase: as `planned_student`, or with the averages of the previous phase, and its
    adapters if this phase has adapters too."""
    from lean3r.train.adapting import KEY, load_phase

    student = planned_student(recipe, recipe.phases[phase].plan, teacher, weights)
    if phase:
        previous = out / recipe.phases[phase - 1].config.name
        load_phase(student, previous, keep=KEY in recipe.phases[phase].config.settings)
    return student


def run_phase(
    recipe: Distillation,
    phase: int,
    out: Path,
    weights: str | None,
    student_weights: str | None,
    cache: tuple[Path, float] | None,
    held_out: HeldOut,
    resume: bool,
    device: str,
) -> int:
    """Train one phase in this process, one of several with the same task, and return its exit code."""
    from lean3r.eval.synthetic import validate
    from lean3r.pipeline.load import load
    from lean3r.train.adapting import adapt
    from lean3r.train.held_out import picture
    from lean3r.train.loop import fit, seed_everything
    from lean3r.train.recipes.distilled import OBJECTIVES
    from lean3r.train.students import only_trains

    chosen, config = recipe.phases[phase], recipe.config(phase)
    seed_everything(config.seed)
    teacher = load(recipe.teacher, weights, device, "float32")
    config = replace(config, settings=config.settings | {"teacher_weights": teacher.origin.hash})
    student = student_at(recipe, phase, teacher, student_weights, out)
    if student_weights is not None:
        config = replace(config, settings=config.settings | {"student_weights": student.origin.hash})
    objective = OBJECTIVES.get(chosen.objective)(teacher, **chosen.settings)
    adapt(student, config, out / config.name, partial(recipe.batch, phase), objective, device, resume=resume)
    student = only_trains(student, config)
    if cache is not None:
        objective.remember(*cache)
    scale = 2 if recipe.teacher == "nano" and not config.stages[-1].loss.get("full") else 1
    world = replace(recipe.data.world, device=device)
    done = fit(
        student.train(),
        objective,
        partial(recipe.batch, phase),
        config,
        out / config.name,
        validate=partial(validate, partial(held_out.batches, world, config.stages[-1], scale), sets_of(recipe)),
        draw=partial(picture, world, config, scale),
        resume=resume,
        device=device,
    )
    return done.exit_code


def publish(
    recipe: Distillation, out: Path, weights: str | None, student_weights: str | None, separate: bool = False
) -> Path:
    """Write the student and its plan to OUT/NAME.safetensors, or its adapters to OUT/adapters; return the path. A
    quantised student is there as codes, and with its full weights, for more training or an export, in
    OUT/NAME-full.safetensors."""
    from lean3r.compress import convert
    from lean3r.models.checkpoint import save_model
    from lean3r.pipeline.load import load
    from lean3r.train.adapting import load_phase, save_separately

    teacher = load(recipe.teacher, weights, "cpu", "float32")
    student = planned_student(recipe, recipe.plan, teacher, student_weights)
    last = out / recipe.phases[-1].config.name
    if separate:
        return save_separately(student, last, out)
    load_phase(student, last)
    path, about = out / f"{recipe.name}.safetensors", {"recipe": " > ".join(p.config.name for p in recipe.phases)}
    if recipe.plan is not None and recipe.plan.quantizes:
        save_model(student, out / f"{recipe.name}-full.safetensors", about)
        student = convert(student)
    save_model(student, path, about)
    return path
