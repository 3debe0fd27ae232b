"""Which way is up in one picture, as its camera measured it: the accelerometer of a phone, the gimbal of a drone.

Apple's phones write the acceleration into the maker note of EXIF, DJI's drones the angles of the gimbal into XMP.
Notes are untrusted: what is torn or out of range counts as absent. XMP is searched as text, never parsed as XML.
"""

from __future__ import annotations

import math
import re
import struct

from PIL import Image

from lean3r.inputs.decoding import ORIENTATION, SELF_TURNING_FORMATS

Vector = tuple[float, float, float]

DETAILS, MAKER_NOTE, LENS_MODEL = 0x8769, 0x927C, 0xA434
APPLE, ACCELERATION, SIGNED_RATIONAL = b"Apple iOS\0", 0x0008, 10
STEADY_G = (0.7, 1.3)  # acceleration of a phone that is held still, in units of gravity
MOST_XMP = 1 << 16
NUMBER = rb"""\s{0,9}(?:=\s{0,9}["']|>)\s{0,9}([+-]?[0-9]{1,3}(?:\.[0-9]{0,9})?)\s{0,9}["'<]"""
PITCH, ROLL = (re.compile(rb"drone-dji:Gimbal" + axis + rb"Degree" + NUMBER) for axis in (b"Pitch", b"Roll"))
MOST_ROLL_DEG = 45.0  # how files of a gimbal that stands on its side are stored is not documented
SEEN_UP = 0.35  # length of up within the picture from which it tells how the picture was turned
HELD_DEG = 60.0  # a camera that turns its pictures upright leaves them no farther askew

# From the axes of the sensor (x right, y down in a wide picture) to those of the picture that is shown, by orientation.
SHOWN = {1: (1, 0, 0, 1), 3: (-1, 0, 0, -1), 6: (0, -1, 1, 0), 8: (0, 1, -1, 0)}


def measured_up(image: Image.Image) -> Vector | None:
    """Up as a unit vector in the camera axes (x right, y down, z forward) of an open image, as it is shown; None
    if its file does not say."""
    try:
        details = image.getexif().get_ifd(DETAILS)
        up = apple_up(details.get(MAKER_NOTE), str(details.get(LENS_MODEL, ""))) or dji_up(_xmp(image))
        return None if up is None else _shown(up, image)
    except Exception:  # damaged EXIF blocks raise anything
        return None


def apple_up(note: object, lens: str = "") -> Vector | None:
    """Up in the axes of the sensor of a phone, from Apple's maker note; None if it has no steady acceleration.

    The acceleration points down, in the frame of the phone held upright: x right, y up, z out of its face, as
    CoreMotion has it. The sensor behind it lies on its side: its x axis points down, its y axis left. Pictures of the
    front camera are left out.
    """
    if not isinstance(note, bytes) or not note.startswith(APPLE) or "front" in lens.lower():
        return None
    order = {b"MM": ">", b"II": "<"}.get(note[12:14])
    if order is None:
        return None
    try:
        (entries,) = struct.unpack_from(order + "H", note, 14)
        for entry in range(entries):
            tag, kind, count, offset = struct.unpack_from(order + "HHII", note, 16 + 12 * entry)
            if (tag, kind, count) == (ACCELERATION, SIGNED_RATIONAL, 3):
                a, b, c, d, e, f = struct.unpack_from(order + "6i", note, offset)
                return _steady((c / d, a / b, e / f))
    except (struct.error, ZeroDivisionError):
        pass
    return None


def dji_up(xmp: bytes) -> Vector | None:
    """Up in the axes of the sensor of a drone, from its gimbal: pitch above the horizon and roll clockwise."""
    pitch_found, roll_found = PITCH.search(xmp), ROLL.search(xmp)
    if pitch_found is None:
        return None
    pitch_deg, roll_deg = float(pitch_found[1]), float(roll_found[1]) if roll_found else 0.0
    pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
    level = math.cos(pitch)
    if abs(pitch_deg) > 95 or (abs(roll_deg) > MOST_ROLL_DEG and level > SEEN_UP):
        return None
    return -math.sin(roll) * level, -math.cos(roll) * level, math.sin(pitch)


def _shown(up: Vector, image: Image.Image) -> Vector | None:
    """From the axes of the sensor to those of the picture as it is shown.

    The orientation that EXIF states turns one into the other, unless the pixels were turned since: then the picture has
    another shape, or up in it is not up. In that case, the turn is the one that puts up where it belongs.
    """
    stated = image.getexif().get(ORIENTATION, 1)
    if image.format == "HEIF":  # turned by its decoder, which keeps what EXIF said
        stated = image.info.get("original_orientation") or stated
    if stated not in SHOWN:  # mirrored
        return None
    width, height = image.size
    if stated in (6, 8) and image.format not in ("HEIF", *SELF_TURNING_FORMATS):
        width, height = height, width
    fitting = [o for o in (stated, *SHOWN) if width == height or (o in (6, 8)) == (height > width)]
    turned = [_turned(up, orientation) for orientation in fitting]
    if math.hypot(up[0], up[1]) < SEEN_UP:
        return turned[0] if turned and fitting[0] == stated else None
    return next((v for v in turned if math.degrees(math.atan2(abs(v[0]), -v[1])) <= HELD_DEG), None)


def _turned(up: Vector, orientation: int) -> Vector:
    xx, xy, yx, yy = SHOWN[orientation]
    return xx * up[0] + xy * up[1], yx * up[0] + yy * up[1], up[2]


def _xmp(image: Image.Image) -> bytes:
    found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    found = found.encode() if isinstance(found, str) else found
    return found[:MOST_XMP] if isinstance(found, bytes) else b""


def _steady(vector: Vector) -> Vector | None:
    """The vector at length 1; None if a camera that is held still does not measure it."""
    length = math.hypot(*vector)
    if not STEADY_G[0] <= length <= STEADY_G[1]:
        return None
    x, y, z = (value / length for value in vector)
    return x, y, z
