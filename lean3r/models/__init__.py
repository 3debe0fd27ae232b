"""Backbones, by name."""

from lean3r.registry import Registry

MODELS = Registry(
    "model",
    {
        "nano": "lean3r.models.nano:Nano",
        "vggt": "lean3r.models.vggt:Vggt",
    },
)
