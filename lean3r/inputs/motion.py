"""Image motion from frame to frame of a video, and a choice of frames with even overlap.

It is measured on small grey frames by phase correlation: first the shift of the whole picture, then of its blocks, so
that forward motion (blocks move apart) counts as rotation does. No scale, no pose: enough to tell how much has changed.

Where a thing turns before a background that rests, as on a turntable, most of the picture says that nothing changes,
and blocks show parts of both. There the motion is that of the thing, measured in the quarters of the blocks, and counts
as if the thing filled the picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lean3r.inputs.frames import evenly

LONG_SIDE, BLOCK = 192, 64  # pixels of the small frames, and of the blocks that are compared
LEAST_PEAK = 0.03  # of a phase correlation that gives a shift; below, all that is known is that much has changed
LOST = 0.25  # shift that is then assumed, as a share of the longer side
MOST_LOST = 0.5  # share of frames from which on the motion is not known
FOLLOW = 0.02  # of the longer side: motion since the reference frame at which the next frame takes its place
SHARP_REACH = 0.35  # share of a step by which a frame may be early or late to be the sharpest
REACH = 8  # frames by which it may be early at most
RESTS = 1 / 3  # share of the quarters of blocks from which on the background rests; in walks it is 0.26 at most
LEAST_DETAIL = 6.0  # grey levels: standard deviation of a quarter that tells
UNLIKE, STILL_PEAK = 0.25, 0.5  # of it, by which a quarter may change that rests; or its phase correlation at least
SURE_PEAK = 0.15  # phase correlation of a quarter that moves
LEAST_THING = 0.2  # share of the picture that a thing is taken to fill at least
SEVERAL = 2  # quarters that have to move: one may be mistaken


@dataclass(frozen=True, eq=False)
class Motion:
    """For N frames: the motion of the picture's parts since the frame before, shift [N, B, 2] in shares of the longer
    side (zeros first), sharpness [N] (mean squared Laplacian over variance), and where the motion was lost, lost [N]:
    consecutive frames have nothing in common there, and the shift is a guess."""

    shift: np.ndarray
    sharpness: np.ndarray
    lost: np.ndarray

    @property
    def is_known(self) -> bool:
        """Whether most of the motion was measured."""
        return len(self.lost) > 1 and float(self.lost[1:].mean()) <= MOST_LOST


def small_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of the small frame of a picture."""
    scale = LONG_SIDE / max(width, height)
    return max(BLOCK, round(width * scale)), max(BLOCK, round(height * scale))


class Meter:
    """Measures frames one after the other. Shifts are whole pixels: those of slow motion add up only because they are
    measured from a reference frame, which follows where the picture has moved clearly."""

    def __init__(self) -> None:
        self._shifts: list[np.ndarray] = []
        self._sharpness: list[float] = []
        self._lost: list[bool] = []
        self._last: np.ndarray | None = None
        self._reference: np.ndarray | None = None
        self._moved = np.zeros((1, 2))  # by the blocks from the reference frame to the last one
        self._thing = Thing()

    def add(self, frame: np.ndarray) -> tuple[np.ndarray, float]:
        """The shift [B, 2] of the quarters of the blocks of a small grey frame [H, W] uint8 since the one before, and
        its sharpness; ValueError for one of another size."""
        grey = frame.astype(np.float32)
        if self._reference is None or self._last is None:
            self._reference, shift = grey, np.zeros((len(_corners(*grey.shape)), 2))
            moved = self._moved = shift
        elif (moved := shift_between(self._reference, grey)) is not None:
            shift = moved - self._moved
        else:
            shift = shift_between(self._last, grey)
        self._lost.append(shift is None)
        shift = np.full_like(self._moved, LOST / np.sqrt(2)) if shift is None else shift
        self._shifts.append(self._thing.shift(grey, np.repeat(shift, 4, axis=0)))
        self._sharpness.append(sharpness_of(grey))
        self._last = grey
        if moved is None or float(np.linalg.norm(moved, axis=1).mean()) > FOLLOW:
            self._reference, moved = grey, np.zeros_like(self._moved)
        self._moved = moved
        return self._shifts[-1], self._sharpness[-1]

    @property
    def motion(self) -> Motion:
        """Of all frames so far; ValueError for none."""
        return Motion(np.stack(self._shifts), np.array(self._sharpness), np.array(self._lost))


class Thing:
    """What moves by itself before a background that rests. Its motion is measured from a reference frame, which follows
    where anything has moved clearly."""

    def __init__(self) -> None:
        self._reference: np.ndarray | None = None
        self._counted: np.ndarray | float = 0.0  # motion since the reference frame

    def shift(self, grey: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """The shift [4 * B, 2] of the quarters of a frame's blocks since the frame before: as `usual` but where a thing
        moves before a background that rests; it then makes good what was usual since the reference frame."""
        if self._reference is None:
            self._reference = grey
            return usual
        is_clear, moved = thing_between(self._reference, grey)
        shift = usual if moved is None else moved - self._counted
        self._counted = self._counted + shift
        if is_clear:
            self._reference, self._counted = grey, 0.0
        return shift


def measure(frames: Iterable[np.ndarray]) -> Motion:
    """The motion of small grey frames [H, W] uint8; ValueError for none, or of several sizes."""
    meter = Meter()
    for frame in frames:
        meter.add(frame)
    return meter.motion


class Stepper:
    """Chooses frames as they come: the first, then of those whose picture is nearly `step` away from the last chosen
    one the sharpest. Which one that is, is known at most REACH frames later."""

    def __init__(self, step: float) -> None:
        self._step, self._seen = step, 0
        self._waiting: list[tuple[np.ndarray, float]] = []  # shift and sharpness of the frames since the last chosen
        self._away: list[float] = []  # how far each of them is from it
        self._moved: np.ndarray | float = 0.0

    def add(self, shift: np.ndarray, sharpness: float) -> list[int]:
        """One frame more; indices of the frames that are now known to be chosen."""
        self._seen += 1
        if self._seen == 1:
            return [0]
        self._waiting.append((shift, sharpness))
        chosen = []
        while len(self._away) < len(self._waiting):
            self._moved = self._moved + self._waiting[len(self._away)][0]
            self._away.append(float(np.linalg.norm(self._moved, axis=1).mean()))
            if self._away[-1] >= self._step:
                late = len(self._away) - 1
                early = next(i for i, away in enumerate(self._away) if away >= (1 - SHARP_REACH) * self._step)
                options = range(max(early, late - REACH), late + 1)
                best = max(options, key=lambda i: self._waiting[i][1])
                chosen.append(self._seen - len(self._waiting) + best)
                del self._waiting[: best + 1]
                self._away, self._moved = [], 0.0
        return chosen

    def end(self) -> list[int]:
        """The last frame, where it is far enough from the last chosen one."""
        return [self._seen - 1] if self._away and self._away[-1] > self._step / 2 else []


def choose(motion: Motion, least: int, most: int, step: float) -> list[int]:
    """Indices of frames between which the picture moves by about `step` (a share of its longer side), the sharpest near
    each place; the step is changed so that at least `least` and at most `most` are chosen, if there are as many."""
    total = len(motion.shift)
    if total <= least:
        return list(range(total))
    chosen = _steps(motion, step)
    if len(chosen) > most or len(chosen) < least:
        limit = most if len(chosen) > most else least
        low, high = 1e-4, 10.0
        for _ in range(24):  # the number falls as the step grows
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if len(_steps(motion, middle)) > limit else (low, middle)
        chosen = _steps(motion, high)
    if len(chosen) < least:  # the camera rests: nothing distinguishes the frames
        chosen = sorted({*chosen, *(round(i * (total - 1) / max(least - 1, 1)) for i in range(least))})
        chosen = [chosen[i] for i in evenly(len(chosen), most)]
    return chosen


def _steps(motion: Motion, step: float) -> list[int]:
    """What a Stepper chooses."""
    stepper = Stepper(step)
    chosen = [i for of_frame in zip(motion.shift, motion.sharpness, strict=True) for i in stepper.add(*of_frame)]
    return chosen + stepper.end()


def shift_between(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The motion from frame a to b [H, W] float32 of each block [B, 2], in shares of the longer side; None if it cannot
    be measured."""
    whole = whole_shift(a, b)
    if whole is None:
        return None
    corners = _corners(*a.shape)
    at = np.round(whole).astype(int)
    height, width = a.shape
    pairs, kept = [], []
    for index, (y, x) in enumerate(corners):
        v, u = y + at[0], x + at[1]
        if 0 <= v <= height - BLOCK and 0 <= u <= width - BLOCK:
            pairs.append((a[y : y + BLOCK, x : x + BLOCK], b[v : v + BLOCK, u : u + BLOCK]))
            kept.append(index)
    shifts = np.tile(whole, (len(corners), 1))
    if pairs:
        before, after = (np.stack(side) for side in zip(*pairs, strict=True))
        further, peaks = _correlate(spectrum_of(before), after)
        sure = (peaks >= LEAST_PEAK) & (np.linalg.norm(further, axis=1) < BLOCK / 4)
        shifts[np.array(kept)[sure]] = at + further[sure]
    return shifts / max(height, width)


def thing_between(a: np.ndarray, b: np.ndarray) -> tuple[bool, np.ndarray | None]:
    """Whether anything has moved clearly from frame a to b [H, W] float32; and by how much the quarters of blocks have
    [4 * B, 2], in shares of the longer side as if the thing filled the picture, if something has and the rest rests."""
    before, after, side = _quarters(a), _quarters(b), max(a.shape)
    detail, change = before.std(axis=(1, 2)), (after - before).std(axis=(1, 2))
    tells = detail >= LEAST_DETAIL
    if (tells & (change < detail / 2)).sum() < RESTS * tells.sum():  # the rest is spared
        return True, None
    shifts, peaks = _correlate(spectrum_of(before), after)
    pixels = np.linalg.norm(shifts, axis=1)
    rests = tells & (pixels == 0) & ((change < UNLIKE * detail) | (peaks >= STILL_PEAK))
    moves = tells & (pixels > 0) & (peaks >= SURE_PEAK)
    changed = tells & ~rests
    is_clear = (moves & (pixels > FOLLOW * side)).sum() >= SEVERAL or (changed & ~moves).sum() > changed.sum() / 2
    moves &= pixels <= BLOCK / 8
    if moves.sum() < SEVERAL or rests.sum() < RESTS * tells.sum():
        return bool(is_clear), None
    share = max(LEAST_THING, moves.sum() / (moves | rests).sum())
    return bool(is_clear), np.where(moves[:, None], shifts, 0.0) * (1 / share**2 / side)


def whole_shift(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """The shift (rows, columns) in pixels of the whole picture from frame a to b [H, W]; None if it is not found."""
    return whole_shift_of(spectrum_of(a[None]), b)


def whole_shift_of(spectrum: np.ndarray, frame: np.ndarray) -> np.ndarray | None:
    """`whole_shift` to a frame [H, W] from the one that has this spectrum."""
    (whole,), (peak,) = _correlate(spectrum, frame[None])
    return whole if peak >= LEAST_PEAK else None


def spectrum_of(pictures: np.ndarray) -> np.ndarray:
    """Fourier transforms of pictures [B, H, W], faded out towards their borders."""
    height, width = pictures.shape[1:]
    window = np.hanning(height)[:, None] * np.hanning(width)
    return np.fft.rfft2((pictures - pictures.mean(axis=(1, 2), keepdims=True)) * window)


def _correlate(spectra: np.ndarray, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (rows, columns) [B, 2] in pixels to pictures [B, H, W] from those of the spectra, and the heights [B] of
    their peaks."""
    count, height, width = pictures.shape
    cross = np.conj(spectra) * spectrum_of(pictures)
    surface = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-6), s=(height, width)).reshape(count, -1)
    highest = surface.argmax(axis=1)
    rows, cols = np.divmod(highest, width)
    signed = np.stack([(rows + height // 2) % height - height // 2, (cols + width // 2) % width - width // 2], axis=1)
    return signed.astype(np.float64), surface[np.arange(count), highest]


def _corners(height: int, width: int) -> list[tuple[int, int]]:
    """Upper left corners of blocks that cover a frame."""
    rows, cols = (np.linspace(0, n - BLOCK, max(1, round(n / BLOCK))).astype(int) for n in (height, width))
    return [(int(y), int(x)) for y in rows for x in cols]


def _quarters(frame: np.ndarray) -> np.ndarray:
    """The quarters [4 * B, BLOCK / 2, BLOCK / 2] of a frame's blocks, those of each block one after the other."""
    blocks = np.stack([frame[y : y + BLOCK, x : x + BLOCK] for y, x in _corners(*frame.shape)])
    half = BLOCK // 2
    return blocks.reshape(-1, 2, half, 2, half).swapaxes(2, 3).reshape(-1, half, half)


def sharpness_of(grey: np.ndarray) -> float:
    """Mean squared Laplacian of a frame [H, W] float32 over its variance."""
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float((laplacian**2).mean() / max(float(inner.var()), 1.0))
