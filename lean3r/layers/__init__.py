"""Layers that all backbones share; none of them depends on a model's name."""
