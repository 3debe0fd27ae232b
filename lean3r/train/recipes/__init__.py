"""Recipes by name: functions that return everything a run needs."""

from lean3r.registry import Registry
from lean3r.train.recipes.nano import HELD_OUT_SEED as HELD_OUT_SEED
from lean3r.train.recipes.nano import Recipe as Recipe
from lean3r.train.recipes.nano import nano as nano
from lean3r.train.recipes.nano import picture_size as picture_size

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
        "speed3r-vggt": "lean3r.train.recipes.speed3r:speed3r_vggt",
        "lite3r-vggt": "lean3r.train.recipes.lite3r:lite3r_vggt",
        "lite3r-da3": "lean3r.train.recipes.lite3r:lite3r_da3",
    },
)
