"""Backbones, by name."""

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
