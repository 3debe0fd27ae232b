"""Where scenes with known geometry come from: sets of files on disk, the synthetic world, and how they are sampled."""

from lean3r.registry import Registry

DATASETS = Registry(
    "data set",
    {
        "synthetic": "lean3r.data.synthetic:SyntheticWorld",
        "colmap": "lean3r.data.colmap:ColmapFolder",
    },
)
"""The synthetic world makes batches (`batch`); every other row is a SceneSet (lean3r/data/scenes.py) of a folder."""
