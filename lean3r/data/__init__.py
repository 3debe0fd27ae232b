"""Where scenes with known geometry come from: the batch contract, the synthetic world."""

from lean3r.registry import Registry

DATASETS = Registry("data set", {"synthetic": "lean3r.data.synthetic:SyntheticWorld"})
