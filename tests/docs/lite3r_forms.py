"""The table of Lite3R's recipes and their forms, from the recipes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docs.markdown import table
from lean3r.compress.plan import CompressionPlan
from lean3r.data.sampling.lite3r import HELD_OUT
from lean3r.train import DISTILLATIONS
from lean3r.train.recipes.distilled import Distillation, Phase

FORMS = ("", "-as-released", "-lean")
DRAWN = {
    "pairs": "one of every scene an epoch, any two views, cut at the centre; the first scenes of a set, a quarter but "
    f"at most {HELD_OUT}, are left out for evaluation",
    "pairs-as-released": "the same of all scenes, also those for evaluation; the number of planes in a camera file is "
    "taken for the farthest depth",
    "mixture": "scenes at random, two views that overlap, augmented",
}
LOSSES = {
    "lite3r corrected": "L1 of the cameras after every iteration of the head, with weights 0.6 ^ age and one fitted "
    "scale; depth with a fitted scale, plain and times confidence, without the largest 5 %. True cameras relative to "
    "the first view; predictions that are not finite are left out",
    "lite3r as-released": "the same with true cameras in the world of the data set; one depth of NaN gives gradients "
    "of NaN to all",
    "lite3r-lean": "L1 of the final cameras and of depth, in units of the mean depth; true cameras relative to the "
    "first view",
}


def stages(recipe: Distillation, cell: Callable[[Phase], str]) -> str:
    """A cell of both stages, or of each if they differ."""
    first, second = map(cell, recipe.phases)
    return first if first == second else f"stage 1: {first}; stage 2: {second}"


def keys(plan: CompressionPlan) -> str:
    """How the softmax branch chooses."""
    (step,) = plan.exchanges
    mode, keep = step.settings.get("mode", "block"), step.settings.get("keep", 0.3)
    return f"{100 * keep:g} %, {'one by one' if mode == 'token' else 'in blocks of 64'}"


def rounding(plan: CompressionPlan) -> str:
    """The steps for linear layers."""
    steps = []
    for step in plan.quantizes:
        left = f" except {', '.join(f'`{t}`' for t in step.leave_out)}" if step.leave_out else ""
        steps.append(f"`{step.quantize}`: `{step.target}`{left}")
    return "; ".join(steps)


def rate(phase: Phase) -> str:
    """The schedule."""
    o = phase.config.optim
    first = 0 if o.schedule == "linear" else o.lr / o.warmup_steps
    return f"{o.lr:g}, {o.warmup_steps} steps from {first:.2g}, then {o.schedule} to {o.final_lr_ratio:g} of it"


def decay(phase: Phase) -> str:
    """Weight decay of what trains."""
    o = phase.config.optim
    return "none" if "proj_lin" in o.undecayed else f"{o.weight_decay:g}"


def pictures(phase: Phase) -> str:
    """Size and normalisation."""
    (stage,) = phase.config.stages
    raw = phase.settings.get("pictures") == "raw"
    return f"{stage.width} x {stage.height}, {'not normalised' if raw else 'as the model normalises them'}"


def loss(phase: Phase) -> str:
    """What the objective compares."""
    return LOSSES[f"{phase.objective} {phase.settings.get('form', '')}".strip()]


def guard(phase: Phase) -> str:
    """Which steps are skipped."""
    factor = phase.config.explode_factor
    large = f", and with a gradient above {factor:g} medians" if factor else ""
    return f"that are not finite{large}"


ROWS: tuple[tuple[str, str, Callable[[Distillation], str]], ...] = (
    ("attention replaced", "plan", lambda r: f"`{r.phases[-1].plan.exchanges[0].target}`"),  # type: ignore[union-attr]
    ("keys of the softmax branch", "plan", lambda r: keys(plan_of(r, 1))),
    ("stage 1 rounds", "plan", lambda r: rounding(plan_of(r, 0))),
    ("stage 2 rounds", "plan", lambda r: rounding(plan_of(r, 1))),
    ("pictures", "height pictures", lambda r: stages(r, pictures)),
    ("pairs", "data", lambda r: DRAWN[r.data.drawn]),
    ("loss", "objective form", lambda r: stages(r, loss)),
    ("learning rate", "optim.schedule optim.final_lr_ratio", lambda r: stages(r, rate)),
    ("betas of AdamW", "optim.betas", lambda r: stages(r, lambda p: "{:g}, {:g}".format(*p.config.optim.betas))),
    ("weight decay of `proj_lin`", "optim.undecayed", lambda r: stages(r, decay)),
    ("steps skipped (the release: none)", "explode_factor", lambda r: stages(r, guard)),
)
"""(title, the entries of the recipe that it covers, cell)."""


def plan_of(recipe: Distillation, phase: int) -> CompressionPlan:
    """The plan of a phase, which has one."""
    plan = recipe.phases[phase].plan
    assert plan is not None
    return plan


def lite3r_forms() -> str:
    """A column for each form; cells of VGGT and of Depth Anything 3 if they differ."""

    def cell(read: Callable[[Distillation], str], form: str) -> str:
        vggt, da3 = (read(DISTILLATIONS.get(f"lite3r-{name}{form}")(None)) for name in ("vggt", "da3"))
        return vggt if vggt == da3 else f"VGGT {vggt}; Depth Anything 3 {da3}"

    rows = [[title, *(cell(read, form) for form in FORMS)] for title, _, read in ROWS]
    return table(["", *(f"`lite3r-*{form}`" for form in FORMS)], rows)


def covered() -> set[str]:
    """Names of the entries that the rows cover."""
    return {name for _, names, _ in ROWS for name in names.split()}


def leaves(value: Any, path: str = "") -> dict[str, object]:
    """The entries of a recipe by their path, without the numbers of lists."""
    if isinstance(value, dict):
        return {k: v for key, child in value.items() for k, v in leaves(child, f"{path}.{key}").items()}
    if isinstance(value, list | tuple) and any(isinstance(child, dict) for child in value):
        return {k: v for n, child in enumerate(value) for k, v in leaves(child, f"{path}#{n}").items()}
    return {path: value}
