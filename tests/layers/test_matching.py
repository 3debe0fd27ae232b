"""Soft matches find equal patches, chunks change nothing, and true cameras leave no residual."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lean3r.geometry.pose import invert_pose, make_pose
from lean3r.geometry.rotation import so3_exp
from lean3r.layers import matching
from lean3r.layers.matching import (
    Feedback,
    Matches,
    PairMatcher,
    choose_partners,
    other_views,
    pool_values,
    query_chunks,
)
from lean3r.testing import assert_rms

VIEWS, TOKENS, DIM = 3, 12, 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grid() -> Tensor:
    return 0.4 * draw(1, VIEWS, TOKENS, 2, seed=5)


def matcher() -> PairMatcher:
    torch.manual_seed(0)
    return PairMatcher(DIM, match_dim=8, hidden=12)


def test_chunks_cover_every_view_once_and_there_is_one_chunk_with_gradients() -> None:
    rows = [view for chunk in query_chunks(7, False, 100, 35) for view in range(7)[chunk]]
    assert rows == list(range(7)) and len(list(query_chunks(7, False, 100, 35))) > 1
    assert next(iter(query_chunks(7, False, 1, 10**9))) == slice(0, 1), "one view, whatever its cost"
    assert list(query_chunks(7, True, 1, 10**9)) == [slice(0, 7)]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, chunks = draw(1, VIEWS, TOKENS, DIM), matching.query_chunks
    with torch.no_grad():
        update, found = matcher()(patches, grid(), None)
        monkeypatch.setattr(matching, "query_chunks", lambda views, graph, *_: chunks(views, graph, 1, 1))
        again, in_chunks = matcher()(patches, grid(), None)
    assert_rms(again, update, 1e-5)
    for name in ("position", "peak", "spread", "visibility"):
        assert_rms(getattr(in_chunks, name), getattr(found, name), 1e-5)
    assert found.logits is None and matcher()(patches, grid(), None)[1].logits is not None


def test_patches_match_themselves_if_descriptors_are_sharp() -> None:
    """The same patches in another order in each view, so that their positions are known."""
    model, orders = (
        matcher(),
        [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(v)) for v in range(VIEWS)],
    )
    content = draw(1, TOKENS, DIM)
    with torch.no_grad():
        model.log_sharpness.fill_(9.0)
        model.refine.weight.zero_()
        model.refine.bias.zero_()
        _, found = model(torch.stack([content[:, order] for order in orders], dim=1), grid(), None)
    for i, mine in enumerate(orders):
        for j, other in enumerate(orders):
            there = grid()[0, j, [int((other == patch).nonzero()) for patch in mine]]
            torch.testing.assert_close(found.position[0, i, j], there, atol=1e-3, rtol=0)
    assert found.peak.min() > 0.99 and found.spread.max() < 1e-3


def test_padding_is_never_matched() -> None:
    valid = torch.ones(1, VIEWS, TOKENS, dtype=torch.bool)
    valid[:, :, 4] = False
    _, found = matcher()(draw(1, VIEWS, TOKENS, DIM), grid(), valid)
    assert found.logits is not None and not found.logits.softmax(-1)[..., 4].any()


def test_a_view_gives_no_evidence_for_itself() -> None:
    model = matcher()
    update, _ = model(draw(1, 1, TOKENS, DIM), grid()[:, :1], None)
    torch.testing.assert_close(update, model.out.bias.expand_as(update))
    pair = other_views(slice(1, 3), 3, None, torch.zeros(1))
    assert pair[0, :, :, 0].tolist() == [[1, 0, 1], [1, 1, 0]]
    values = torch.stack([torch.full((1, 1, 2, 4), v) for v in (1.0, 5.0)], dim=2)
    assert torch.equal(
        pool_values(values, torch.tensor([0.9, 0.0])[None, None, :, None].expand(1, 1, 2, 2)) > 0.5, values[:, :, 0] > 0
    )


def test_true_cameras_and_depth_leave_no_residual() -> None:
    focal, camera = (
        torch.tensor([[0.9, 1.1, 1.0]]),
        make_pose(so3_exp(0.1 * draw(1, VIEWS, 3)), 0.2 * draw(1, VIEWS, 3)),
    )
    here, depth = grid(), 3 + draw(1, VIEWS, TOKENS).abs()
    points = torch.cat([here / focal[..., None, None], torch.ones_like(here[..., :1])], -1) * depth[..., None]
    world_from_cam = invert_pose(camera)
    relative = camera[:, None] @ world_from_cam[:, :, None]
    there = torch.einsum("bijkl,binl->bijnk", relative[..., :3, :3], points) + relative[..., None, :3, 3]
    position = focal[:, None, :, None, None] * there[..., :2] / there[..., 2:]
    flat = torch.zeros(position.shape[:-1])
    feedback, rows = Feedback(DIM), slice(0, VIEWS)

    def numbers(at: Tensor, poses: Tensor) -> Tensor:
        matches = Matches(at, flat, flat, flat, None)
        return feedback._residuals(matches, here, points, focal, invert_pose(poses), poses, rows)[0]

    assert numbers(position, camera)[..., :4].abs().max() < 1e-5
    moved = camera @ make_pose(so3_exp(draw(3)), draw(3))
    assert numbers(position, moved)[..., :4].abs().max() < 1e-5, "for any world frame"
    wrong = camera.clone()
    wrong[:, 1, :3, 3] += 0.5
    assert numbers(position, wrong)[..., :2].abs().amax() > 0.05


def evidence(patches: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Matches]:
    """What matcher and feedback tell each token of 2 scenes."""
    torch.manual_seed(1)
    model, feedback = matcher(), Feedback(DIM)
    camera = make_pose(so3_exp(0.1 * here.mean(2) @ draw(2, 3)), here.std(2) @ draw(2, 3, seed=1))
    points = torch.cat([here, 2 + here[..., :1]], -1)
    with torch.no_grad():
        update, found = model(patches, here, None)
        return update, feedback(found, here, points, 1 + here[..., 0, 0], invert_pose(camera), camera), found


def test_partners_that_are_all_others_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, here = draw(2, 6, TOKENS, DIM), 0.4 * draw(2, 6, TOKENS, 2, seed=5)
    whole = evidence(patches, here)
    monkeypatch.setattr(matching, "MANY", 6)
    monkeypatch.setattr(matching, "PARTNERS", 5)
    chosen = evidence(patches, here)
    assert whole[2].others is None and chosen[2].peak.shape == (2, 6, 5, TOKENS)
    assert_rms(chosen[0], whole[0], 1e-5)
    assert_rms(chosen[1], whole[1], 1e-5)
    assert matcher()(patches, here, None)[1].others is None, "training sees all pairs"


def test_views_in_another_order_have_the_same_partners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MANY", 6)
    monkeypatch.setattr(matching, "PARTNERS", 3)
    patches, here, order = draw(2, 6, TOKENS, DIM), 0.4 * draw(2, 6, TOKENS, 2, seed=5), [3, 1, 5, 0, 2, 4]
    usual, permuted = evidence(patches, here), evidence(patches[:, order], here[:, order])
    assert_rms(permuted[0], usual[0][:, order], 1e-5)
    assert_rms(permuted[1], usual[1][:, order], 1e-5)


def test_partners_are_different_others_among_them_the_most_and_the_least_similar() -> None:
    descriptor = torch.nn.functional.normalize(draw(1, 9, TOKENS, 8), dim=-1)
    descriptor[:, 7] = descriptor[:, 2].flip(1)  # the same patches elsewhere
    valid = torch.ones(1, 9, TOKENS, dtype=torch.bool)
    found = choose_partners(descriptor, valid, 4)[0]
    assert found[2, 0] == 7 and found[7, 0] == 2
    assert all(len(set(row)) == 4 and view not in row for view, row in enumerate(found.tolist()))
    valid[:, :, 4] = False
    other = descriptor.clone()
    other[:, :, 4] = 9.0
    assert torch.equal(choose_partners(other, valid, 4), choose_partners(descriptor, valid, 4)), "padding counts not"
