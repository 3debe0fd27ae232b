"""The fit of cameras to positions that are repeated or have no height."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lean3r.errors import InputError
from lean3r.geometry.align import Similarity
from lean3r.geometry.rotation import so3_exp
from lean3r.refine.place_fit import fit_places

COUNT = 24
ROUND = np.linspace(0, 2 * np.pi, COUNT, endpoint=False)
FLIGHTS = {  # x east, y down, z north, in metres
    "helix": np.stack([30 * np.cos(2 * ROUND), -np.linspace(20, 80, COUNT), 30 * np.sin(2 * ROUND)], 1),
    "rings": np.stack([30 * np.cos(ROUND), -np.tile([20.0, 60.0], 12), 30 * np.sin(ROUND)], 1),
    "front": np.stack([np.tile(np.linspace(-20, 20, 6), 4), -np.repeat([5.0, 15, 25, 35], 6), np.sin(5 * ROUND)], 1),
}
LEVEL = np.stack([np.tile(np.linspace(-30, 30, 6), 4), np.zeros(COUNT), np.repeat([-15.0, -5, 5, 15], 6)], 1)


def scene_of(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cameras in a world of their own, 20 times as small, and the rotation that leads back."""
    turn = so3_exp(torch.tensor([0.3, -0.8, 0.2]).double()).numpy()
    return 0.05 * (places - places.mean(axis=0)) @ turn + 3.0, turn


def off(fit: Similarity, turn: np.ndarray) -> tuple[float, float]:
    """The scale found, of the true one, and by how many degrees down is off."""
    down = fit.rotation.numpy() @ turn.T @ [0, 1, 0]
    return float(fit.scale) * 0.05, float(np.degrees(np.arccos(min(1.0, down[1]))))


@pytest.mark.parametrize("noise_m", [0.0, 1.0])
@pytest.mark.parametrize("name", FLIGHTS)
def test_cameras_tell_their_heights_where_positions_do_not(name: str, noise_m: float) -> None:
    """Held level, their heights made the scale too small by a quarter to two fifths, and tilted the world."""
    centres, turn = scene_of(FLIGHTS[name])
    given = FLIGHTS[name] + np.random.default_rng(0).normal(0, noise_m, (COUNT, 3))
    for unknown in (np.ones(COUNT, bool), np.arange(COUNT) == 3):
        places = given.copy()
        places[unknown, 1] = 0.0
        fit, used, found = fit_places(centres, places - places.mean(axis=0), np.ones(COUNT, bool), ~unknown)
        scale, tilt_deg = off(fit, turn)
        assert abs(scale - 1) < 0.04 * noise_m + 1e-3 and tilt_deg < 3 * noise_m + 0.1
        assert used.sum() >= COUNT - 1 and np.ptp(found[:, 1]) > 25


def test_level_cameras_stay_level_in_the_noise_of_positions() -> None:
    centres, turn = scene_of(LEVEL)
    for seed in range(20):
        places = LEVEL + np.random.default_rng(seed).normal(0, 3.0, (COUNT, 3)) * [1, 0, 1]
        fit, _, found = fit_places(centres, places, np.ones(COUNT, bool), np.zeros(COUNT, bool))
        assert found is places and off(fit, turn)[1] < 1.0


@pytest.mark.parametrize(("count", "stale"), [(8, 4), (10, 6), (10, 7), (20, 14)])
def test_a_position_that_is_repeated_counts_once(count: int, stale: int) -> None:
    """A receiver that is slower than the camera: the scene shrank to a point, where those fit best."""
    places = 20 * FLIGHTS["helix"][:count] / 30
    centres, turn = scene_of(places)
    places = places - places.mean(axis=0)
    places[1 : stale + 1] = places[1]
    fit, _, _ = fit_places(centres, places, np.ones(count, bool), np.ones(count, bool))
    assert 0.5 < off(fit, turn)[0] < 1.5


@pytest.mark.parametrize("certain", [2, 3])
def test_one_position_for_all_certain_cameras_gives_no_scale(certain: int) -> None:
    centres, _ = scene_of(FLIGHTS["rings"][:6])
    places = FLIGHTS["rings"][:6].copy()
    places[:3] = places[0]
    with pytest.raises(InputError, match="have one position, which does not determine the scale"):
        fit_places(centres, places, np.arange(6) < certain, np.ones(6, bool))
