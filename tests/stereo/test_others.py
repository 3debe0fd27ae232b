"""Depth of a view joined with what others measured: surer ones, other surfaces, padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stereo.rendered import scene, truth

from lean3r.geometry.consistency import Scene
from lean3r.stereo.dense import posed, sources_of
from lean3r.stereo.network import Measured
from lean3r.stereo.others import SAME, joined, surfaces
from lean3r.stereo.posed import Depths, Posed
from lean3r.train.losses.stereo import joined_windows


def views(index: int = 3) -> tuple[Posed, torch.Tensor]:
    """Pictures with true cameras, and the true log depth [S, H, W]."""
    batch = truth(index)
    whole = scene(batch, batch.depth[0])
    sources = sources_of(Scene.of(whole), whole.is_certain)
    assert all(len(others) for others in sources)
    return posed(whole, sources), batch.depth[0].clamp(min=1e-3).log()


def together(given: Posed, log_depth: torch.Tensor, log_b: torch.Tensor, view: int = 0) -> torch.Tensor:
    found = Depths(log_depth, log_b, np.ones(len(log_depth), bool))
    return joined(given, surfaces(given, found), found, view)


def test_surer_views_count_more() -> None:
    given, exact = views()
    off, b = exact.clone(), torch.full_like(exact, np.log(0.003))
    off[0] += 0.05
    b[0] = np.log(0.05)
    errors = (together(given, off, b) - exact[0]).abs()
    seen = errors < 0.049  # what no other view sees stays
    assert seen.float().mean() > 0.5 and errors[seen].median() < 0.005
    b[0] = np.log(1e-4)
    assert (together(given, off, b) - off[0]).abs().max() < 1e-3


def test_other_surfaces_and_padding_say_nothing() -> None:
    given, exact = views()
    b = torch.full_like(exact, np.log(0.01))
    off = exact.clone()
    off[0] += SAME * 0.02 + 0.01
    assert ((together(given, off, b) - off[0]).abs() < 2e-3).float().mean() > 0.9
    mask = given.mask.copy()
    mask[1:] = False
    off[0] = exact[0] + 0.02
    torch.testing.assert_close(together(replace(given, mask=mask), off, b), off[0])


def test_what_is_apart_stays_however_unsure() -> None:
    given, exact = views()
    off, b = exact.clone(), torch.full_like(exact, np.log(0.003))
    off[0] += 0.1
    b[0] = np.log(0.5)
    found = Depths(off, b, np.ones(len(off), bool))
    for apart, moves in ((0.05, False), (0.2, True)):
        change = joined(given, surfaces(given, found), found, 0, apart) - off[0]
        assert (change.abs() > 0.09).float().mean() > 0.5 if moves else change.abs().max() < 0.051


def test_pieces_join_as_a_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    given, exact = views()
    off = exact + 0.01 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0))
    whole = together(given, off, torch.full_like(exact, np.log(0.01)))
    monkeypatch.setattr("lean3r.stereo.others.PIXELS", 1_001)
    assert torch.equal(together(given, off, torch.full_like(exact, np.log(0.01))), whole)


def test_unmeasured_views_say_nothing() -> None:
    given, exact = views()
    b = torch.full_like(exact, np.log(0.01))
    off = exact.clone()
    off[0] += 0.02
    found = Depths(off, b, np.arange(len(exact)) == 0)
    torch.testing.assert_close(joined(given, surfaces(given, found), found, 0), off[0])


def test_training_sees_what_other_views_found() -> None:
    """Windows of three views whose depth is off by as much in different ways come nearer to the truth."""
    batch = truth(3)
    exact = batch.depth[0].clamp(min=1e-3).log()
    own, window = torch.tensor([0, 2, 3]), (slice(16, 112), slice(16, 144))
    off = exact[own][:, *window] + torch.tensor([0.02, -0.02, 0.01])[:, None, None]
    found = Measured(off, torch.full_like(off, np.log(0.02)), off, off)
    sources = torch.tensor([[2, 3, 1], [0, 3, 1], [0, 2, 1]])
    torch.manual_seed(0)
    cameras = batch.cam_from_world[0], batch.intrinsics[0], window, tuple(exact.shape)
    near = joined_windows(found, own, sources, *cameras)
    before, after = ((x - exact[own][:, *window]).abs().median() for x in (off, near))
    assert near.shape == off.shape and after < 0.7 * before
    alone = joined_windows(found, own, sources[:, 2:], *cameras)
    torch.testing.assert_close(alone, off)
