"""Backbones, by name; and students of theirs whose weights may come with the package."""

from typing import NamedTuple

from lean3r.registry import Registry

MODELS = Registry(
    "model",
    {
        "nano": "lean3r.models.nano:Nano",
        "nano-looped": "lean3r.models.nano_looped:NanoLooped",
        "vggt": "lean3r.models.vggt:Vggt",
        "da3-small": "lean3r.models.da3:Da3Small",
        "da3-base": "lean3r.models.da3:Da3Base",
        "da3-large": "lean3r.models.da3:Da3",
        "da3-giant": "lean3r.models.da3:Da3Giant",
        "da3mono-large": "lean3r.models.da3_mono:Da3Mono",
        "da3metric-large": "lean3r.models.da3_mono:Da3Metric",
        "da3nested-giant-large": "lean3r.models.da3_nested:Da3Nested",
        "pi3": "lean3r.models.pi3:Pi3",
        "pi3x": "lean3r.models.pi3x:Pi3X",
        "speed3r-pi3": "lean3r.models.speed3r:Speed3rPi3",
    },
)


class Student(NamedTuple):
    """Weights with a plan of their own: the row of MODELS that they belong to, and what they are good for."""

    model: str
    about: str


STUDENTS = {
    "nano-gsa-fp8": Student("nano", "nano with coarse-to-fine sparse attention and FP8 weights: for many views."),
    "nano-sla-fp8": Student("nano", "nano with sparse-linear attention and FP8 weights: for many views."),
}
"""Names that `load` takes where lean3r/weights has NAME.safetensors, or with weights given."""
