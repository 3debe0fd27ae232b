"""The network that measures depth: it compares a view with others at some distances around a prior.

Everything it sees of depth is relative to the prior, so the unit of the world does not matter, and reaches and sizes of
pictures are free. The design follows the learned plane sweeps of MVSNet (arXiv 1804.02505), PatchmatchNet (arXiv
2012.01411: distances around a prior, weights of the sources by pixel) and SimpleRecon (arXiv 2208.14743: a 2-D network
decides).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.stereo.rays import Rays, project

PLANES, FINE_PLANES = 24, 7
GROUPS = 4
COARSE, FINE = 24, 12  # channels of features at a quarter and at half of the picture's size
FINE_STEP = 0.3  # distance of fine planes, in distances of coarse ones
CELL = 16  # sides of pictures are multiples of it inside the network
PIECE = 8_000_000  # numbers that are compared at once: they stay in the caches, which takes half the time
LIMIT_B = (-7.0, 0.5)  # of log b, the logarithm of the error's scale


class Features(NamedTuple):
    """What the network sees of N pictures: coarse [N, COARSE, h / 4, w / 4], fine [N, FINE, h / 2, w / 2]."""

    coarse: Tensor
    fine: Tensor

    def of(self, views: Tensor) -> Features:
        """Those of some views, in any shape of indices."""
        return Features(self.coarse[views], self.fine[views])


class Measured(NamedTuple):
    """log depth [B, H, W], and the log of the scale of its error (of a Laplace distribution) [B, H, W]; `planes`
    [B, PLANES, h, w] are the logits of the coarse distances, `coarse` [B, h, w] the log depth that they give."""

    log_depth: Tensor
    log_b: Tensor
    planes: Tensor
    coarse: Tensor


class Encoder(nn.Module):
    """Pictures [N, 3, H, W] in 0..1, with sides that are multiples of CELL, to Features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.GELU(), Residual(16))
        self.deep = nn.Sequential(nn.Conv2d(16, 40, 5, 2, 2), nn.GELU(), Residual(40), Residual(40))
        self.wide = nn.Sequential(nn.Conv2d(40, 40, 3, 2, 1), nn.GELU(), Residual(40))
        self.coarse = nn.Conv2d(80, COARSE, 1)
        self.fine = nn.Sequential(nn.Conv2d(16 + COARSE, 24, 3, 1, 1), nn.GELU(), nn.Conv2d(24, FINE, 3, 1, 1))

    def forward(self, images: Tensor, share: Tensor | None = None) -> Features:
        """`share` [N, 1, H, W] of each pixel that is of the picture, not padding (None: all)."""
        half = self.stem(_standard(images, images.new_ones(()) if share is None else share))
        quarter = self.deep(half)
        wide = F.interpolate(self.wide(quarter), scale_factor=2.0, mode="bilinear", align_corners=False)
        coarse = self.coarse(torch.cat([quarter, wide], 1))
        above = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return Features(coarse, self.fine(torch.cat([half, above], 1)))


def _standard(images: Tensor, share: Tensor) -> Tensor:
    """Without brightness and contrast of the whole picture, which differ between cameras and exposures."""
    share = share.expand_as(images)
    count = share.sum((1, 2, 3), keepdim=True).clamp(min=2)
    centred = images - (share * images).sum((1, 2, 3), keepdim=True) / count
    spread = ((share * centred**2).sum((1, 2, 3), keepdim=True) / (count - 1)).sqrt()
    return centred / (spread + 0.05)


class Residual(nn.Module):
    """x + two convolutions of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(x))))


class Decider(nn.Module):
    """A small U-Net on the grid of coarse features: [B, C, h, w] to [B, out, h, w]."""

    def __init__(self, inputs: int, out: int, widths: tuple[int, int, int] = (48, 64, 80)) -> None:
        super().__init__()
        a, b, c = widths
        self.enter = nn.Sequential(nn.Conv2d(inputs, a, 3, 1, 1), Residual(a))
        self.down = nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), Residual(b))
        self.low = nn.Sequential(nn.Conv2d(b, c, 3, 2, 1), Residual(c), Residual(c))
        self.up = nn.Sequential(nn.Conv2d(b + c, b, 3, 1, 1), Residual(b))
        self.leave = nn.Sequential(nn.Conv2d(a + b, a, 3, 1, 1), Residual(a), nn.GELU(), nn.Conv2d(a, out, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        middle = self.down(x)
        low = F.interpolate(self.low(middle), middle.shape[-2:], mode="bilinear", align_corners=False)
        middle = F.interpolate(self.up(torch.cat([middle, low], 1)), x.shape[-2:], mode="bilinear", align_corners=False)
        return self.leave(torch.cat([x, middle], 1))


class StereoNet(nn.Module):
    """Measures depth around a prior; see the head of this file. 0.9 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        context = 32
        self.encoder = Encoder()
        self.weigh = nn.Sequential(nn.Conv2d(GROUPS + 1, 12, 1), nn.GELU(), nn.Conv2d(12, 1, 1))
        self.judge = nn.Sequential(nn.Conv2d(GROUPS + 2, 16, 1), nn.GELU(), nn.Conv2d(16, 2, 1))
        self.decide = Decider(2 * PLANES + COARSE + 8, PLANES + 1 + context)
        self.refine = nn.Sequential(
            nn.Conv2d(2 * FINE_PLANES + FINE + context + 2, 48, 3, 1, 1), Residual(48), Residual(48), nn.GELU()
        )
        self.offset = nn.Conv2d(48, 2, 3, 1, 1)
        self.upsample = nn.Conv2d(48, 9 * 4, 1)

    def forward(
        self,
        own: Features,
        sources: Features,
        rays: tuple[Rays, Rays],
        prior: Tensor,
        sparse: Tensor,
        reach: Tensor,
    ) -> Measured:
        """Measure depth.

        own: features of B views; sources: of their N sources, [B, N, C, h, w] each; rays: of the coarse and of the fine
        grid; prior [B, H, W]: log depth; sparse [B, 2, H, W]: log depth of points less the prior, and 1 where there is
        one; reach [B]: the largest difference from the prior that is tried, in log depth.
        """
        start = F.avg_pool2d(prior[:, None], 4)[:, 0]
        places = torch.linspace(-1, 1, PLANES, device=prior.device)
        tried = start[:, None] + places[:, None, None] * reach[:, None, None, None]
        matched, seen = self._match(own.coarse, sources.coarse, rays[0], tried, 4)
        scores = matched[:, 0]
        shape = torch.cat([start[:, None] - _blur(start[:, None]), *_slopes(start)], 1) / reach[:, None, None, None]
        shape = shape.clamp(-2, 2)
        points = F.avg_pool2d(sparse, 4) * 16  # sums
        points = points / points[:, 1:].clamp(min=1)
        points = torch.cat(
            [(points[:, :1] / reach[:, None, None, None]).clamp(-2, 2) * points[:, 1:], points[:, 1:]], 1
        )
        wide = reach.log()[:, None, None, None].expand(-1, 1, *start.shape[-2:])
        inputs = torch.cat(
            [matched.flatten(1, 2), own.coarse, shape, points, wide, scores.amax(1, keepdim=True), seen], 1
        )
        decided = self.decide(inputs)
        planes = (decided[:, :PLANES] + scores * F.softplus(decided[:, PLANES : PLANES + 1] + 2)).float()
        coarse = start + _around_top(planes, places) * reach[:, None, None]
        return self._finish(own, sources, rays[1], coarse, planes, prior, reach, decided[:, PLANES + 1 :])

    def _finish(
        self,
        own: Features,
        sources: Features,
        rays: Rays,
        coarse: Tensor,
        planes: Tensor,
        prior: Tensor,
        reach: Tensor,
        context: Tensor,
    ) -> Measured:
        size = own.fine.shape[-2:]
        half = F.interpolate(coarse[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        step = (FINE_STEP * 2 / (PLANES - 1)) * reach.clamp(max=0.4)
        places = torch.arange(FINE_PLANES, device=prior.device) - FINE_PLANES // 2
        tried = half.detach()[:, None] + places[:, None, None] * step[:, None, None, None]
        matched, _ = self._match(own.fine, sources.fine, rays, tried, 2)
        above = F.interpolate(context, size, mode="bilinear", align_corners=False)
        unit = step[:, None, None, None]
        start = F.avg_pool2d(prior[:, None], 2)
        bend = (half[:, None] - _blur(half[:, None])) / reach[:, None, None, None]
        more = torch.cat([((start - half[:, None]) / unit).clamp(-8, 8) / 4, bend.clamp(-2, 2)], 1)
        hidden = self.refine(torch.cat([matched.flatten(1, 2), own.fine, above, more], 1))
        offset, log_b = self.offset(hidden).float().unbind(1)
        refined = half + offset * step[:, None, None]
        log_b = (log_b + (2 * reach[:, None, None]).log() - 1).clamp(*LIMIT_B)
        return Measured(*self._enlarge(refined, log_b, hidden), planes, coarse)

    def _enlarge(self, log_depth: Tensor, log_b: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Both at full size: every pixel is a mean of nine of half size, with learned weights (RAFT)."""
        b, h, w = log_depth.shape
        weights = self.upsample(hidden).float().view(b, 1, 9, 2, 2, h, w).softmax(2)
        both = torch.stack([log_depth, log_b], 1).flatten(0, 1)[:, None]
        near = F.unfold(F.pad(both, (1, 1, 1, 1), mode="replicate"), 3).view(b, 2, 9, 1, 1, h, w)
        full = (weights * near).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(b, 2, 2 * h, 2 * w)
        return full[:, 0], full[:, 1]

    def _match(self, own: Tensor, sources: Tensor, rays: Rays, tried: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Two numbers [B, 2, D, h, w] for each of D tried log depths [B, D, h, w], and the share of sources that see
        the pixel [B, 1, h, w]."""
        with torch.autocast(tried.device.type, enabled=False):
            own, sources = unit(own.float()), unit(sources.float())
        place = torch.linspace(-1, 1, tried.shape[1], device=tried.device)
        some = max(1, PIECE // (sources[..., :1, :1].numel() * own[0, 0].numel()))
        parts = [
            self._match_planes(own, sources, rays, tried[:, at : at + some], place[at : at + some], step)
            for at in range(0, len(place), some)
        ]
        judged, seen = (torch.cat(each, -3) for each in zip(*parts, strict=True))
        return judged, seen.mean(1, keepdim=True)

    def _match_planes(
        self, own: Tensor, sources: Tensor, rays: Rays, tried: Tensor, place: Tensor, step: int
    ) -> tuple[Tensor, Tensor]:
        """As `_match` for some planes at their places [D] in -1..1, from unit vectors: two numbers [B, 2, D, h, w], and
        the share of sources [B, D, h, w] that see each."""
        b, n, c = sources.shape[:3]
        d, (h, w) = tried.shape[1], tried.shape[-2:]
        with torch.autocast(tried.device.type, enabled=False):
            at, inside = project(rays, tried, step, sources.shape[-2:])
            values = F.grid_sample(sources.flatten(0, 1), at.view(b * n, d * h, w, 2), "bilinear", "zeros", False)
            values = values.view(b, n, GROUPS, c // GROUPS, d, h, w)
            mine = own.view(b, 1, GROUPS, c // GROUPS, 1, h, w)
            alike = values[:, :, :, 0] * mine[:, :, :, 0]  # [B, N, G, D, h, w]
            for channel in range(1, c // GROUPS):  # a product of all at once would be read and written again
                alike = alike.addcmul_(values[:, :, :, channel], mine[:, :, :, channel])
        flat = torch.cat([alike, inside[:, :, None].to(alike.dtype)], 2).flatten(0, 1).flatten(3)
        weight = self.weigh(flat).view(b, n, 1, d, h, w).float()
        weight = weight.masked_fill(~inside[:, :, None], -20.0).softmax(1)
        mean = (alike * weight).sum(1)
        seen = inside.float().mean(1)
        places = place.view(1, 1, d, 1, 1).expand(b, 1, d, h, w)
        judged = self.judge(torch.cat([mean, seen[:, None], places], 1).flatten(3)).view(b, 2, d, h, w)
        return judged.float(), seen


def unit(values: Tensor) -> Tensor:
    """Vectors of each group of channels [..., C, h, w] at length 1."""
    groups = values.unflatten(-3, (GROUPS, values.shape[-3] // GROUPS))
    length = groups.square().sum(-3, keepdim=True).clamp(min=1e-6).sqrt()  # F.normalize takes five times as long
    return (groups / length).reshape(values.shape)


def _around_top(logits: Tensor, places: Tensor) -> Tensor:
    """Mean place of the two planes at either side of the likeliest [B, h, w], by their probabilities."""
    top = logits.argmax(1, keepdim=True)
    number = torch.arange(len(places), device=logits.device)[:, None, None]
    share = logits.masked_fill((number - top).abs() > 2, -torch.inf).softmax(1)
    return (share * places[:, None, None]).sum(1)


def _blur(values: Tensor) -> Tensor:
    return F.avg_pool2d(F.pad(values, (4, 4, 4, 4), mode="replicate"), 9, 1)


def _slopes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Differences [B, 1, h, w] to the right and downwards of [B, h, w], 0 at the last column and row."""
    padded = F.pad(values[:, None], (0, 1, 0, 1), mode="replicate")
    here = padded[..., :-1, :-1]
    return padded[..., :-1, 1:] - here, padded[..., 1:, :-1] - here
