// The eye: where the page's view is seen from. Its pivot lies ahead at a distance; turning goes round it.
import { add, clamp, cross, dot, mix, multiply, perspective, sub, times, turned, unit } from "./math.js";

export const UP = [0, 1, 0];
const STEEPEST = 1.54; // radians above or below the horizon

export class Eye {
  constructor() {
    this.place = [0, 0, 3];
    this.ahead = [0, 0, -1];
    this.top = [0, 1, 0];
    this.distance = 3;
    this.fov = 0.75;
    this.version = 0;
  }

  get right() { return cross(this.ahead, this.top); }
  get pivot() { return add(this.place, times(this.ahead, this.distance)); }
  copy() { return Object.assign(new Eye(), this); }

  set(values) {
    Object.assign(this, values);
    this.ahead = unit(this.ahead);
    this.top = unit(sub(this.top, times(this.ahead, dot(this.top, this.ahead))));
    this.version++;
  }

  /** Turn round the pivot, and level the horizon on the way. */
  orbit(azimuth, elevation) {
    const pivot = this.pivot;
    this.turn(azimuth, elevation);
    this.set({ place: sub(pivot, times(this.ahead, this.distance)) });
  }

  /** Turn the gaze on the spot. */
  turn(azimuth, elevation) {
    let ahead = turned(this.ahead, UP, azimuth), top = turned(this.top, UP, azimuth);
    const level = unit(cross(ahead, UP)), steep = Math.asin(clamp(ahead[1], -1, 1));
    let right = cross(ahead, top);
    if (Math.abs(ahead[1]) < 0.99) right = unit(mix(right, dot(right, level) < -0.2 ? right : level, 0.15));
    const by = clamp(steep + elevation, -STEEPEST, STEEPEST) - steep;
    if (Math.abs(steep) < STEEPEST + 0.01 || Math.sign(elevation) !== Math.sign(steep)) ahead = turned(ahead, right, by);
    this.set({ ahead, top: cross(right, ahead) });
  }

  /** Move sideways and upwards by shares of the picture's height. */
  pan(x, y) {
    const reach = 2 * this.distance * Math.tan(this.fov / 2);
    this.set({ place: add(this.place, add(times(this.right, x * reach), times(this.top, y * reach))) });
  }

  /** Come nearer (factor < 1), towards the pivot. */
  zoom(factor) {
    const pivot = this.pivot, distance = clamp(this.distance * factor, 0.004, 400);
    this.set({ distance, place: sub(pivot, times(this.ahead, distance)) });
  }

  fly(x, y, z) {
    const step = add(add(times(this.right, x), times(UP, y)), times(this.ahead, z));
    this.set({ place: add(this.place, step) });
  }

  get near() { return clamp(this.distance * 0.01, 2e-4, 0.02); }
  get far() { return this.near * 4e4; }

  view() {
    const r = this.right, t = this.top, a = this.ahead, p = this.place;
    return [r[0], t[0], -a[0], 0, r[1], t[1], -a[1], 0, r[2], t[2], -a[2], 0, -dot(r, p), -dot(t, p), dot(a, p), 1];
  }

  clip(aspect) { return multiply(perspective(this.fov, aspect, this.near, this.far), this.view()); }

  /** The direction, 1 long ahead, through a place of the picture (-1 to 1). */
  ray(x, y, aspect) {
    const half = Math.tan(this.fov / 2);
    return add(this.ahead, add(times(this.right, x * half * aspect), times(this.top, y * half)));
  }
}

/** The eye from which all points of a flat list are seen from a direction, as near as possible. */
export function framing(flat, ahead, fov, aspect) {
  const eye = new Eye();
  eye.set({ ahead, top: UP, fov });
  const half = [Math.tan(fov / 2) * aspect * 0.88, Math.tan(fov / 2) * 0.88], axes = [eye.right, eye.top];
  const reach = [[-Infinity, -Infinity], [-Infinity, -Infinity]];
  let middle = 0, count = 0;
  for (let i = 0; i < flat.length; i += 3) {
    const p = [flat[i], flat[i + 1], flat[i + 2]], z = dot(p, eye.ahead);
    middle += z;
    count++;
    for (const a of [0, 1]) {
      const x = dot(p, axes[a]);
      reach[a][0] = Math.max(reach[a][0], x - half[a] * z);
      reach[a][1] = Math.max(reach[a][1], -x - half[a] * z);
    }
  }
  if (!count) return eye;
  const back = Math.max(0.05, ...[0, 1].map((a) => (reach[a][0] + reach[a][1]) / (2 * half[a])));
  const shift = [0, 1].map((a) => (reach[a][0] - reach[a][1]) / 2);
  const place = add(add(times(axes[0], shift[0]), times(axes[1], shift[1])), times(eye.ahead, -back));
  eye.set({ place, distance: Math.max(0.05, back + middle / count) });
  return eye;
}

/** Between two eyes, smoothly. */
export function between(from, to, t) {
  const eye = to.copy(), s = t * t * (3 - 2 * t);
  const pivot = mix(from.pivot, to.pivot, s);
  const ahead = unit(mix(from.ahead, to.ahead, s)), distance = from.distance * (to.distance / from.distance) ** s;
  eye.set({ ahead, top: mix(from.top, to.top, s), distance, fov: from.fov + (to.fov - from.fov) * s });
  const around = sub(pivot, times(eye.ahead, distance)), straight = mix(from.place, to.place, s);
  eye.set({ place: mix(around, straight, dot(from.ahead, to.ahead) > 0.5 ? 1 : 2 * Math.abs(s - 0.5)) });
  return t >= 1 ? to.copy() : eye;
}
