"""One file for each recipe or family of recipes; the tables are in `lean3r/train/__init__.py`."""

from lean3r.data.world.synthetic import HELD_OUT_SEED as HELD_OUT_SEED
from lean3r.train.recipes.nano import Recipe as Recipe
from lean3r.train.recipes.nano import nano as nano
from lean3r.train.recipes.nano import picture_size as picture_size
