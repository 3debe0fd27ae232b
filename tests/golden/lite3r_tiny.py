"""The tiny models of Lite3R's golden files, by the JSON beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from adapters import da3, vggt
from torch import Tensor

from lean3r.layers.embed import IMAGENET_MEAN, IMAGENET_STD
from lean3r.models import MODELS
from lean3r.models.base import Backbone

STAGE_1 = {"vggt": "lite3r-w4a16", "da3": "lite3r-w4a8"}
"""Family -> plan of its first stage."""


class Kind(NamedTuple):
    """Our model, by name, and its size."""

    model: str
    config: Any


def kind_of(case: Mapping[str, Any]) -> Kind:
    """Of a case's JSON."""
    arguments = case["constructor"]
    if case["kind"] == "vggt":
        return Kind("vggt", vggt.config(arguments))
    assert arguments["cam_enc"]["dim_out"] == arguments["vit"]["embed_dim"]
    return Kind("da3-large", da3.any_view(arguments))


def build(case: Mapping[str, Any]) -> Backbone:
    """The tiny dense model of a case."""
    model, config = kind_of(case)
    return MODELS.get(model)(config)


@contextmanager
def as_usual_size(case: Mapping[str, Any]) -> Iterator[str]:
    """Inside, the tiny model is what its name stands for; yields the name."""
    model, config = kind_of(case)
    with patch.dict(MODELS.get(model).SIZES, {model: config}):
        yield model


def pictures(case: Mapping[str, Any], images_u8: np.ndarray) -> Tensor:
    """Pictures [B, S, 3, H, W] as a model takes them; the release feeds Depth Anything 3 without mean and deviation."""
    x = torch.from_numpy(images_u8).float() / 255
    if case["kind"] == "vggt":
        return x
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return x * std + mean
