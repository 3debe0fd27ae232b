"""Rotations: matrices, unit quaternions (w, x, y, z), axis-angle vectors, 6-D and 9-D network outputs.

All functions take any leading dimensions and any float dtype, and keep gradients finite at the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lean3r.tracing import is_traced, without_autocast

_SQUARINGS = 24  # two singular values whose sum is 1e-6 of the largest are still told apart


def skew(v: Tensor) -> Tensor:
    """Cross-product matrix [..., 3, 3] of vectors [..., 3]: skew(a) @ b = a x b."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def matrix_from_quaternion(q_wxyz: Tensor) -> Tensor:
    """Rotation [..., 3, 3] of quaternions [..., 4] in (w, x, y, z) order, of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(q_wxyz, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def quaternion_from_matrix(rotation: Tensor) -> Tensor:
    """Unit quaternion [..., 4] (w, x, y, z) with w >= 0 of rotations [..., 3, 3]."""
    row, _ = _largest_row(rotation)
    q = torch.nn.functional.normalize(row, dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)


def quaternion_from_entries(rotation: Tensor) -> Tensor:
    """As `quaternion_from_matrix`, but not normalised: a matrix that is no rotation has another length.

    This is the function of VGGT and Depth Anything 3, whose gradient differs.
    """
    row, largest = _largest_row(rotation)
    q = row / (2 * largest.sqrt())
    return torch.where(q[..., :1] < 0, -q, q)


def _largest_row(m: Tensor) -> tuple[Tensor, Tensor]:
    """The row [..., 4] of 4 q q^T with the largest diagonal entry, and this entry [..., 1]."""
    m00, m01, m02 = m[..., 0, 0], m[..., 0, 1], m[..., 0, 2]
    m10, m11, m12 = m[..., 1, 0], m[..., 1, 1], m[..., 1, 2]
    m20, m21, m22 = m[..., 2, 0], m[..., 2, 1], m[..., 2, 2]
    ww, xx, yy, zz = 1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22
    wx, wy, wz = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m10 + m01, m02 + m20, m21 + m12
    outer = torch.stack([ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz], -1).unflatten(-1, (4, 4))
    best = torch.stack([ww, xx, yy, zz], -1).argmax(-1)[..., None]
    row = outer.gather(-2, best[..., None].expand(*m.shape[:-2], 1, 4)).squeeze(-2)
    return row, row.gather(-1, best)


def rotation_angle(rotation: Tensor) -> Tensor:
    """Angle in radians, in [0, pi], of rotations [..., 3, 3]; accurate from 1e-30 up to pi."""
    q = quaternion_from_matrix(rotation)
    return 2 * torch.atan2(torch.linalg.vector_norm(q[..., 1:], dim=-1), q[..., 0])


def geodesic_angle(a: Tensor, b: Tensor) -> Tensor:
    """Angle in radians between rotations a and b [..., 3, 3]."""
    return rotation_angle(a.mT @ b)


def so3_log(rotation: Tensor) -> Tensor:
    """Axis-angle vector [..., 3] in radians, length in [0, pi], of rotations [..., 3, 3]."""
    q = quaternion_from_matrix(rotation)
    w, v = q[..., :1], q[..., 1:]
    sine = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    tiny = sine < 1e-6
    # The second-order term of 2 atan(s / w) / s is below 1e-12 there, and the division is never by zero.
    safe = torch.where(tiny, torch.ones_like(sine), sine)
    factor = torch.where(tiny, 2 / torch.where(tiny, w, torch.ones_like(w)), 2 * torch.atan2(safe, w) / safe)
    return v * factor


def so3_exp(vector_rad: Tensor) -> Tensor:
    """Rotation [..., 3, 3] of axis-angle vectors [..., 3] in radians."""
    theta = torch.linalg.vector_norm(vector_rad, dim=-1)[..., None, None]
    k = skew(vector_rad)
    first = torch.sinc(theta / math.pi)
    second = 0.5 * torch.sinc(theta / (2 * math.pi)) ** 2
    eye = torch.eye(3, dtype=vector_rad.dtype, device=vector_rad.device)
    return eye + first * k + second * (k @ k)


def nearest_rotation(matrix: Tensor, min_gap: float = 1e-4) -> Tensor:
    """Rotation [..., 3, 3] nearest to any matrices [..., 3, 3] in the Frobenius norm.

    The gradient is the exact first derivative, with one safety: its denominators (sums of two singular
    values, zero only where the nearest rotation is not unique) are kept at `min_gap` or more. Half
    precision is computed, and returned, in float32.
    """
    with without_autocast(matrix.device.type):
        m = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix
        # Differentiating through the SVD itself divides by differences of singular values and gives NaN at
        # the identity. Here the SVD is constant, and a term that is zero in value carries the derivative.
        with torch.no_grad():
            if is_traced():
                return _nearest_by_squaring(m)
            u, s, vh = torch.linalg.svd(m)
            sign = torch.where(torch.linalg.det(u @ vh) < 0, -1.0, 1.0).to(m.dtype)
            flip = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], -1)
            s, vh = s * flip, flip[..., None] * vh
            gap = (s[..., :, None] + s[..., None, :]).clamp_min(min_gap)
            rotation = u @ vh
        if not m.requires_grad:
            return rotation
        change = u.mT @ (m - m.detach()) @ vh.mT
        return rotation + u @ ((change - change.mT) / gap) @ vh


def _nearest_by_squaring(m: Tensor) -> Tensor:
    """`nearest_rotation` of a traced model, by products alone: ONNX has no singular values.

    The quaternion q of the rotation is the eigenvector of the largest eigenvalue of a symmetric matrix [..., 4, 4]
    (Horn 1987). Squared again and again, the matrix, shifted to be positive, becomes a multiple of q q^T, and the
    entries of the rotation are sums of entries of that.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in m.double().unbind(-2))
    entries = [
        xx + yy + zz, zy - yz, xz - zx, yx - xy,
        zy - yz, xx - yy - zz, xy + yx, xz + zx,
        xz - zx, xy + yx, yy - xx - zz, yz + zy,
        yx - xy, xz + zx, yz + zy, zz - xx - yy,
    ]  # fmt: skip
    horn = torch.stack(entries, -1).unflatten(-1, (4, 4))
    bound = horn.square().sum((-2, -1), keepdim=True).sqrt()  # of the eigenvalues, on both sides
    power = horn + bound * torch.eye(4, dtype=horn.dtype, device=horn.device)
    for _ in range(_SQUARINGS):
        power = power / power.amax((-2, -1), keepdim=True).clamp_min(1e-300)
        power = power @ power
    q = power / power.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    (ww, wx, wy, wz), (_, qxx, qxy, qxz), (_, _, qyy, qyz), (_, _, _, qzz) = (row.unbind(-1) for row in q.unbind(-2))
    rows = [
        ww + qxx - qyy - qzz, 2 * (qxy - wz), 2 * (qxz + wy),
        2 * (qxy + wz), ww - qxx + qyy - qzz, 2 * (qyz - wx),
        2 * (qxz - wy), 2 * (qyz + wx), ww - qxx - qyy + qzz,
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3)).to(m.dtype)


def rotation_from_9d(x: Tensor) -> Tensor:
    """Nearest rotation [..., 3, 3] to nine numbers [..., 9] read row by row."""
    return nearest_rotation(x.unflatten(-1, (3, 3)))


def rotation_from_6d(x: Tensor) -> Tensor:
    """Rotation [..., 3, 3] whose first two columns are [..., :3] and [..., 3:] made orthonormal in turn.

    Source: Zhou et al. 2019, "On the continuity of rotation representations in neural networks".
    """
    first = torch.nn.functional.normalize(x[..., :3], dim=-1)
    rest = x[..., 3:] - (first * x[..., 3:]).sum(-1, keepdim=True) * first
    second = torch.nn.functional.normalize(rest, dim=-1)
    return torch.stack([first, second, torch.linalg.cross(first, second, dim=-1)], -1)
