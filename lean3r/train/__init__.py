"""Training: configs, a loop that resumes exactly after being killed, checkpoints, logs, several processes.

The loop is independent of the model: it receives the model, the loss, the batches and the validator. The tables below
list the recipes: functions that return everything a run needs. The recipes in DISTILLATIONS have a teacher.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from lean3r.registry import Registry

if TYPE_CHECKING:
    from lean3r.train.networks import NetworkRecipe as NetworkRecipe
    from lean3r.train.networks import distill as distill

RECIPES = Registry(
    "recipe",
    {
        "nano": "lean3r.train.recipes.nano:nano",
        "nano-looped": "lean3r.train.recipes.looped:nano_looped",
    },
)
OBJECTIVES = Registry(
    "objective",
    {
        "nano": "lean3r.train.losses.nano:nano_loss",
        "nano-looped": "lean3r.train.losses.looped:looped_loss",
    },
)
DISTILLATIONS = Registry(
    "distillation recipe",
    {
        "nano-gsa-fp8": "lean3r.train.recipes.nano_students:nano_gsa_fp8",
        "nano-sla-fp8": "lean3r.train.recipes.nano_students:nano_sla_fp8",
        "speed3r-pi3": "lean3r.train.recipes.speed3r:speed3r_pi3",
        "speed3r-pi3x": "lean3r.train.recipes.speed3r:speed3r_pi3x",
        "speed3r-vggt": "lean3r.train.recipes.speed3r:speed3r_vggt",
        "lite3r-vggt": "lean3r.train.recipes.lite3r:lite3r_vggt",
        "lite3r-da3": "lean3r.train.recipes.lite3r:lite3r_da3",
        "lite3r-vggt-as-released": "lean3r.train.recipes.lite3r:lite3r_vggt_as_released",
        "lite3r-da3-as-released": "lean3r.train.recipes.lite3r:lite3r_da3_as_released",
        "lite3r-vggt-lean": "lean3r.train.recipes.lite3r:lite3r_vggt_lean",
        "lite3r-da3-lean": "lean3r.train.recipes.lite3r:lite3r_da3_lean",
    },
)


def __getattr__(name: str) -> object:
    """Import the functions of the room on first use: its tables need no torch."""
    if name not in ("distill", "NetworkRecipe"):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module("lean3r.train.networks"), name)
