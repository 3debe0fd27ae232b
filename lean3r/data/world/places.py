"""Random scenes: rooms, open arenas, facades and terrain, furnished with boxes, ellipsoids and cylinders.

World axes before the global scale: x right, y DOWN, z forward, units about a metre; the floor is y = 0. The
shell (solid 0) is a box seen from inside; some of its faces may be sky.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from lean3r.data.world.draw import Draw, table
from lean3r.data.world.raycast import Counts, product
from lean3r.data.world.textures import family_rows

KINDS = ("room", "arena", "facade", "terrain")
COUNTS = Counts(boxes=8, ellipsoids=4, cylinders=3)
WAVES = 6
TINY = 1e-3
AWAY = 1e4

# One row per kind: ranges (low, high) in metres, probabilities in 0..1.
SHELL_X = table((1.5, 4.0), (7.0, 20.0), (8.0, 18.0), (22.0, 45.0))
SHELL_Z = table((1.5, 4.0), (7.0, 20.0), (6.0, 14.0), (22.0, 45.0))
HEIGHT = table((2.2, 3.6), (4.0, 12.0), (5.0, 14.0), (14.0, 26.0))
UNIT = table((0.8, 1.2), (1.6, 4.0), (1.2, 2.4), (1.5, 3.5))
SPREAD = table((1.2, 2.8), (2.5, 7.0), (3.0, 7.0), (4.0, 11.0))
REACH = table((1.2, 4.5), (4.0, 14.0), (4.0, 14.0), (8.0, 26.0))
ELEVATION = table((0.0, 0.45), (0.02, 0.5), (-0.05, 0.35), (0.25, 1.35))
AZIMUTH = table(math.pi, math.pi, 1.0, math.pi)
OPEN_TOP = table(0.0, 0.5, 0.9, 1.0)
OPEN_SIDE = table(0.0, 0.1, 0.45, 1.0)
ON_WALL = table(0.35, 0.1, 0.6, 0.0)


@dataclass(frozen=True)
class Scene:
    """B scenes of N solids. centre, half [B, N, 3]; world_from_local [B, N, 3, 3]; face tables [B, N, 6]
    (faces -x, +x, -y, +y, -z, +z); tint [B, N, 6, 3]; wave amplitude, kx, kz, phase [B, K, 4]; light position
    [B, 2, 4], colour [B, 2, 3], reach [B, 2]; ambient, zenith, horizon [B, 3]; cameras look at focus [B, 3] from a
    distance of about `reach` [B], at `azimuth` and `elevation` [B] (radians)."""

    counts: Counts
    centre: Tensor
    half: Tensor
    world_from_local: Tensor
    tile: Tensor
    overlay: Tensor
    repeat_u: Tensor
    repeat_v: Tensor
    density: Tensor
    strength: Tensor
    gloss: Tensor
    tint: Tensor
    waves: Tensor
    light: Tensor
    light_colour: Tensor
    light_reach: Tensor
    ambient: Tensor
    zenith: Tensor
    horizon: Tensor
    focus: Tensor
    reach: Tensor
    azimuth: Tensor
    elevation: Tensor

    def to(self, device: torch.device | str) -> Scene:
        """The same scenes with every tensor on `device`."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "counts"}
        return replace(self, **moved)


def rotate_y(angle_rad: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] about y, the vertical axis."""
    c, s, zero = angle_rad.cos(), angle_rad.sin(), torch.zeros_like(angle_rad)
    rows = [c, zero, s, zero, zero + 1, zero, -s, zero, c]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def rotate_x(angle_rad: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] about x."""
    c, s, zero = angle_rad.cos(), angle_rad.sin(), torch.zeros_like(angle_rad)
    rows = [zero + 1, zero, zero, zero, c, -s, zero, s, c]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def ground_height(waves: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Height above y = 0 of the ground [B, ...] at x, z [B, ...]; waves [B, K, 4]."""
    height = torch.zeros_like(x)
    for k in range(waves.shape[1]):
        a, kx, kz, phase = (waves[:, k, i].view(-1, *[1] * (x.dim() - 1)) for i in range(4))
        height = height + a * torch.sin(kx * x + kz * z + phase)
    return height


def _waves(draw: Draw, terrain: bool) -> Tensor:
    if not terrain:
        return torch.zeros(draw.scenes, 0, 4)
    octave = torch.arange(WAVES) * (5 / (WAVES - 1))
    wavelength = 34.0 / 1.62**octave * draw.logarithmic(0.75, 1.33, WAVES)
    angle = draw.uniform(0, 2 * math.pi, WAVES)
    steep = draw.uniform(0.02, 0.26, 1) * draw.uniform(0.4, 1.0, WAVES)
    k = 2 * math.pi / wavelength
    return torch.stack((steep / k, k * angle.cos(), k * angle.sin(), draw.uniform(0, 6.3, WAVES)), -1)


def _boxes(draw: Draw, kind: Tensor, unit: Tensor, shell: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, half size and rotation of 8 boxes: five on the floor or on a wall, three stacked on one of the five.

    shell [B, 3] half extents; place [B, n, 2] random positions on the floor.
    """
    n, bases = COUNTS.boxes, 5
    u = unit[:, None]
    half = torch.stack([draw.logarithmic(0.12, 0.75, n) * u, draw.logarithmic(0.12, 0.9, n) * u], -1)
    half = torch.cat((half, draw.logarithmic(0.12, 0.75, n, 1) * u[..., None]), -1)
    straight = draw.chance(0.6, n)
    yaw = torch.where(straight, torch.zeros(()), draw.uniform(-math.pi, math.pi, n))
    lean = torch.where(draw.chance(0.12, n), draw.uniform(-0.5, 0.5, n), torch.zeros(()))
    centre = torch.stack((place[:, :n, 0], -half[..., 1], place[:, :n, 1]), -1)

    # Boxes on a wall: thin, often on the facade itself (+z), there on a loose grid.
    facade = (kind == 2)[:, None]
    hung = draw.chance(ON_WALL[kind][:, None], n)
    hung[:, bases:] &= facade
    behind = torch.where(facade & draw.chance(0.9, n), 3, (draw.uniform(0, 4, n)).long().clamp(0, 3))
    sideways, sign = behind < 2, (behind % 2) * 2.0 - 1
    room_along = torch.where(sideways, shell[:, None, 2], shell[:, None, 0])
    thick = draw.logarithmic(0.02, 0.25, n) * u * torch.where(facade, 1.6, 1.0)
    span = torch.minimum(draw.logarithmic(0.2, 0.9, n) * u, room_along * 0.6)
    tall = torch.minimum(draw.logarithmic(0.2, 0.8, n) * u, 0.45 * shell[:, None, 1])
    along = draw.uniform(-1, 1, n) * torch.where(facade, 0.6, 0.95) * (room_along - span)
    pitch = 2.2 * u
    along = torch.where(facade & draw.chance(0.6, n), torch.round(along / pitch) * pitch, along)
    level = -tall - draw.uniform(0, 1, n) * (2 * shell[:, None, 1] - 2 * tall) * torch.where(facade, 1.0, 0.8)
    across = sign * (torch.where(sideways, shell[:, None, 0], shell[:, None, 2]) - thick)
    wall_half = torch.stack((torch.where(sideways, thick, span), tall, torch.where(sideways, span, thick)), -1)
    wall_centre = torch.stack((torch.where(sideways, across, along), level, torch.where(sideways, along, across)), -1)
    choice = hung.unsqueeze(-1)
    half, centre = torch.where(choice, wall_half, half), torch.where(choice, wall_centre, centre)
    yaw, lean = torch.where(hung, torch.zeros(()), yaw), torch.where(hung, torch.zeros(()), lean)
    rotation = product(rotate_y(yaw), rotate_x(lean))

    # Stacked boxes: on top of the parent, within its outline, slightly rotated.
    parent = (draw.uniform(0, bases, n - bases)).long().clamp(0, bases - 1)
    rows = torch.arange(draw.scenes)[:, None]
    base_half, base_centre, base_rotation = half[rows, parent], centre[rows, parent], rotation[rows, parent]
    smaller = base_half * draw.uniform(0.3, 0.95, n - bases, 3)
    smaller[..., 1] = draw.logarithmic(0.06, 0.5, n - bases) * u
    offset = (base_half - smaller) * draw.uniform(-0.9, 0.9, n - bases, 3)
    offset[..., 1] = -base_half[..., 1] - smaller[..., 1]
    stacked = (~hung[:, bases:] & draw.chance(0.8, n - bases)).unsqueeze(-1)
    top = base_centre + product(base_rotation, offset.unsqueeze(-1)).squeeze(-1)
    turn = product(base_rotation, rotate_y(draw.uniform(-0.3, 0.3, n - bases)))
    half = torch.cat((half[:, :bases], torch.where(stacked, smaller, half[:, bases:])), 1)
    centre = torch.cat((centre[:, :bases], torch.where(stacked, top, centre[:, bases:])), 1)
    last = torch.where(stacked.unsqueeze(-1), turn, rotation[:, bases:])
    return centre, half, torch.cat((rotation[:, :bases], last), 1)


def _cylinders(draw: Draw, kind: Tensor, unit: Tensor, shell: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, half size and rotation of posts, drums and lying rolls; some pillars reach the ceiling of a room."""
    n = COUNTS.cylinders
    u = unit[:, None]
    radius, tall = draw.logarithmic(0.05, 0.45, n) * u, draw.logarithmic(0.12, 1.1, n) * u
    pillar = (kind < 2)[:, None] & draw.chance(0.2, n)
    tall = torch.where(pillar, shell[:, None, 1], tall)
    lying = draw.chance(0.2, n) & ~pillar
    rotation = product(
        rotate_y(draw.uniform(-math.pi, math.pi, n)), rotate_x(torch.where(lying, math.pi / 2, torch.zeros(())))
    )
    squash = draw.uniform(0.75, 1.0, n)
    half = torch.stack((radius, tall, torch.where(draw.chance(0.7, n), radius, radius * squash)), -1)
    centre = torch.stack((place[..., 0], -torch.where(lying, half[..., 2], tall), place[..., 1]), -1)
    return centre, half, rotation


def _ellipsoids(
    draw: Draw, unit: Tensor, place: Tensor, boxes: tuple[Tensor, Tensor], posts: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Centre, half size and rotation of balls: on the floor, on boxes, as crowns of the posts, or hanging."""
    n = COUNTS.ellipsoids
    radius = draw.logarithmic(0.1, 0.55, n, 1) * unit[:, None, None]
    half = torch.where(draw.chance(0.45, n, 1), radius.expand(-1, -1, 3), radius * draw.uniform(0.5, 1.3, n, 3))
    rotation = product(rotate_y(draw.uniform(-3, 3, n)), rotate_x(torch.zeros(draw.scenes, n)))
    floor = torch.stack((place[..., 0], -half[..., 1], place[..., 1]), -1)
    on_box = _raise_points(boxes[0][:, 3 : 3 + n], boxes[1][:, 3 : 3 + n, 1] + half[..., 1])
    hanging = _raise_points(floor, draw.uniform(0.3, 1.8, n) * unit[:, None])
    role = draw.uniform(0, 1, n, 1)
    centre = torch.where(role < 0.45, floor, torch.where(role < 0.8, on_box, hanging))
    crown = _raise_points(posts[0], posts[1][..., 1] + 0.4 * half[:, :3, 1])
    tree = draw.chance(0.4, 3, 1)
    return torch.cat((torch.where(tree, crown, centre[:, :3]), centre[:, 3:]), 1), half, rotation


def _raise_points(points: Tensor, height: Tensor) -> Tensor:
    """Move points [..., 3] up by height [...]."""
    x, y, z = points.unbind(-1)
    return torch.stack((x, y - height, z), -1)


def _surfaces(draw: Draw, kind: Tensor, unit: Tensor, half: Tensor, tiles: int, photos: int) -> dict[str, Tensor]:
    """Textures of all faces: any family on walls and objects, mostly masonry on facades, and posters on boxes."""
    n = COUNTS.solids
    tile = (draw.uniform(0, tiles, n, 6)).long().clamp(0, tiles - 1)

    def family(*names: str) -> Tensor:
        first = torch.tensor([family_rows(name, tiles)[0] for name in names])
        pick = (draw.uniform(0, len(names))).long().clamp(0, len(names) - 1)
        each = family_rows(names[0], tiles)[1]
        return first[pick] + (draw.uniform(0, each)).long().clamp(0, each - 1)

    masonry = (kind == 2) & draw.chance(0.75)
    tile[:, 0, 5] = torch.where(masonry, family("windows", "bricks", "windows", "stones", "checks"), tile[:, 0, 5])
    floor = torch.where(
        kind == 3,
        family("grass", "noise", "cloudy", "speckle", "stones"),
        family("wood", "checks", "speckle", "stones"),
    )
    tile[:, 0, 3] = torch.where(draw.chance(0.6), floor, tile[:, 0, 3])
    plain = draw.chance(0.5)
    tile[:, 0, 2] = torch.where(plain, family("plain"), tile[:, 0, 2])
    same = draw.chance(0.6, n, 1)
    tile[:, 1:] = torch.where(same[:, 1:], tile[:, 1:, :1], tile[:, 1:])
    same_walls = draw.chance(0.4)
    for face in (0, 1, 4):
        tile[:, 0, face] = torch.where(same_walls, tile[:, 0, 5], tile[:, 0, face])
    if photos:
        crop = tiles + (draw.uniform(0, photos, n, 6)).long().clamp(0, photos - 1)
        tile = torch.where(draw.chance(0.5, n, 6), crop, tile)
    overlay = (draw.uniform(0, tiles + photos, n, 6)).long().clamp(0, tiles + photos - 1)

    density = draw.logarithmic(0.5, 3.0, n, 1).expand(-1, -1, 6).clone()
    density[:, 0] = draw.logarithmic(0.25, 1.3, 6)
    density = density / unit[:, None, None]
    along_u = torch.stack((half[..., 2], half[..., 0], half[..., 0]), -1).repeat_interleave(2, -1)
    along_v = torch.stack((half[..., 1], half[..., 2], half[..., 1]), -1).repeat_interleave(2, -1)
    repeat_u, repeat_v = along_u * density, along_v * density
    poster = draw.chance(0.3, n, 1) & (torch.arange(n)[:, None] <= COUNTS.boxes) & (torch.arange(n)[:, None] > 0)
    density = torch.where(poster, 0.5 / torch.sqrt(along_u * along_v).clamp_min(TINY), density)
    repeat_u, repeat_v = (torch.where(poster, torch.full((), 0.5), r) for r in (repeat_u, repeat_v))

    sky = torch.zeros(draw.scenes, 6, dtype=torch.bool)
    side = draw.chance(OPEN_SIDE[kind][:, None], 6)
    sky[:, (0, 1, 4, 5)] = side[:, (0, 1, 4, 5)]
    sky[:, 5] &= kind == 3
    sky[:, 2] = draw.chance(OPEN_TOP[kind]) | sky[:, (0, 1, 4, 5)].any(1)
    cloud = family("cloudy", "noise")
    overlay[:, 0] = torch.where(sky, overlay[:, 0, :1], overlay[:, 0])
    tile[:, 0] = torch.where(sky, -1 - cloud[:, None], tile[:, 0])
    strength = draw.uniform(0, 0.9, n, 6) * draw.chance(0.8, n, 6)
    strength[:, 0, 3] += 0.4 * (kind == 3)
    shine = draw.chance(0.35, n, 1) * draw.uniform(0, 0.5, n, 1)
    grey = draw.uniform(0.55, 1.3, n, 6, 1)
    return {
        "tile": tile.to(torch.int32),
        "overlay": overlay.to(torch.int32),
        "repeat_u": repeat_u,
        "repeat_v": repeat_v,
        "density": density,
        "strength": strength.clamp(0, 0.95),
        "gloss": shine.expand(-1, -1, 6),
        "tint": grey * (1 + 0.1 * draw.normal(n, 6, 3)).clamp(0.6, 1.4),
    }


def _lights(draw: Draw, kind: Tensor, shell: Tensor, unit: Tensor) -> dict[str, Tensor]:
    """A lamp under the ceiling (indoors) or the sun, a weaker second light from the side, ambient and sky."""
    indoors = (kind == 0) | ((kind == 1) & draw.chance(0.5))
    spot = draw.uniform(-0.7, 0.7, 3) * shell
    spot[:, 1] = -2 * shell[:, 1] + draw.uniform(0.1, 0.5) * unit
    azimuth, height = draw.uniform(-math.pi, math.pi, 2), draw.uniform(0.25, 1.3, 2)
    beam = torch.stack((azimuth.cos() * height.cos(), -height.sin(), azimuth.sin() * height.cos()), -1)
    first = torch.where(indoors[:, None], spot, beam[:, 0])
    one = torch.stack((indoors.float(), torch.zeros(draw.scenes)), 1)
    position = torch.cat((torch.stack((first, beam[:, 1]), 1), one.unsqueeze(-1)), -1)
    warm = (1 + 0.08 * draw.normal(2, 3)).clamp(0.6, 1.4)
    power = torch.stack((draw.uniform(0.6, 1.4) * torch.where(indoors, 1.6, 1.0), draw.uniform(0.0, 0.5)), 1)
    blue = torch.tensor([0.25, 0.45, 0.85]) * (1 + 0.15 * draw.normal(3)).clamp(0.5, 1.5)
    grey, dull = draw.uniform(0.5, 1.0, 1), draw.uniform(0, 1, 1) ** 1.5
    return {
        "light": position,
        "light_colour": warm * power.unsqueeze(-1),
        "light_reach": (draw.uniform(0.5, 1.5, 2) * torch.linalg.vector_norm(shell, dim=-1, keepdim=True)),
        "ambient": draw.uniform(0.25, 0.8, 1) * (1 + 0.08 * draw.normal(3)).clamp(0.7, 1.3),
        "zenith": (blue * (1 - dull) + 0.8 * dull) * draw.uniform(0.6, 1.2, 1),
        "horizon": grey * (1 + 0.06 * draw.normal(3)),
    }


def sample_scene(draw: Draw, kind: Tensor, tiles: int, photos: int) -> Scene:
    """B scenes of the kinds [B] (indices of KINDS; terrain only in a batch that is all terrain)."""
    terrain = bool((kind == 3).all())
    unit = draw.between(UNIT, kind)
    shell = torch.stack((draw.between(SHELL_X, kind), draw.between(HEIGHT, kind) / 2, draw.between(SHELL_Z, kind)), -1)
    waves = _waves(draw, terrain)
    low = waves[..., 0].abs().sum(1) + 1.0 if terrain else torch.zeros(draw.scenes)
    reach = draw.between(REACH, kind)

    # Clutter fills a disc around the focus; in rooms it covers the whole floor.
    middle = draw.uniform(-0.45, 0.45, 2) * shell[:, (0, 2)]
    middle[:, 1] = torch.where(kind == 2, shell[:, 2] * draw.uniform(0.55, 1.0), middle[:, 1])
    n = COUNTS.solids - 1
    angle, radius = draw.uniform(0, 2 * math.pi, n), draw.uniform(0, 1, n).sqrt() * draw.between(SPREAD, kind)[:, None]
    disc = middle[:, None] + torch.stack((angle.cos(), angle.sin()), -1) * radius.unsqueeze(-1)
    anywhere = draw.uniform(-0.95, 0.95, n, 2) * shell[:, None, (0, 2)]
    place = torch.where((kind == 0)[:, None, None] & draw.chance(0.7, n, 1), anywhere, disc)
    margin = (shell[:, None, (0, 2)] - 0.2 * unit[:, None, None]).clamp_min(0.3)
    place = torch.maximum(torch.minimum(place, margin), -margin)

    boxes = _boxes(draw, kind, unit, shell, place)
    posts = _cylinders(draw, kind, unit, shell, place[:, 12:])
    balls = _ellipsoids(draw, unit, place[:, 8:12], boxes[:2], posts[:2])
    shell_centre = torch.stack((torch.zeros_like(low), low - shell[:, 1], torch.zeros_like(low)), -1)
    eye = torch.eye(3).expand(draw.scenes, 1, 3, 3)
    centre = torch.cat((shell_centre[:, None], boxes[0], balls[0], posts[0]), 1)
    half = torch.cat((shell[:, None], boxes[1], balls[1], posts[1]), 1)
    rotation = torch.cat((eye, boxes[2], balls[2], posts[2]), 1)
    if terrain:
        lift = ground_height(waves, centre[..., 0], centre[..., 2])
        centre[:, 1:, 1] += 0.3 * unit[:, None] - lift[:, 1:]
    missing = draw.chance(draw.uniform(0.0, 0.45, 1), n)
    surfaces = _surfaces(draw, kind, unit, half, tiles, photos)
    focus = torch.stack((middle[:, 0], -draw.uniform(0.0, 1.2) * unit, middle[:, 1]), -1)
    tall = torch.where(kind == 2, draw.uniform(0.1, 0.8) * 2 * shell[:, 1], -focus[:, 1])
    focus[:, 1] = -torch.minimum(tall, 1.6 * shell[:, 1])
    if terrain:
        focus[:, 1] -= ground_height(waves, focus[:, 0], focus[:, 2])
    scene = Scene(
        counts=COUNTS,
        centre=centre,
        half=half,
        world_from_local=rotation,
        waves=waves,
        focus=focus,
        reach=reach,
        azimuth=draw.uniform(-1, 1) * AZIMUTH[kind] - math.pi / 2,
        elevation=draw.between(ELEVATION, kind),
        **surfaces,
        **_lights(draw, kind, shell, unit),
    )
    return remove_solids(scene, torch.cat((torch.zeros(draw.scenes, 1, dtype=torch.bool), missing), 1))


def remove_solids(scene: Scene, gone: Tensor) -> Scene:
    """The scenes without the solids `gone` [B, N] bool, which become tiny and are moved far outside the shell."""
    gone = gone.unsqueeze(-1)
    away = torch.full_like(scene.centre, AWAY)
    return replace(
        scene,
        centre=torch.where(gone, away, scene.centre),
        half=torch.where(gone, torch.full_like(scene.half, TINY), scene.half),
    )


def clearance(scene: Scene, points: Tensor) -> Tensor:
    """Distance [B, N, P] of points [B, P, 3] from the solids, negative inside; a lower bound for round solids.

    Column 0 is the distance to the shell from inside, or to the ground of a terrain if that is nearer.
    """
    local = points[:, None] - scene.centre[:, :, None]
    local = product(local, scene.world_from_local)
    size = scene.half[:, :, None]
    beyond = local.abs() - size
    outside = torch.linalg.vector_norm(beyond.clamp_min(0), dim=-1) + beyond.amax(-1).clamp_max(0)
    scaled = (torch.linalg.vector_norm(local / size, dim=-1) - 1) * size.amin(-1)
    first = 1 + scene.counts.boxes
    distance = outside.clone()
    distance[:, first : first + scene.counts.ellipsoids] = scaled[:, first : first + scene.counts.ellipsoids]
    ground = -points[..., 1] - ground_height(scene.waves, points[..., 0], points[..., 2])
    inside = -outside[:, 0]
    distance[:, 0] = torch.minimum(inside, ground) if scene.waves.shape[1] else inside
    return distance
