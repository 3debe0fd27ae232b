// Vectors as arrays of three, matrices as sixteen numbers, column by column; everything in double precision.

export const add = (a, b) => [a[0] + b[0], a[1] + b[1], a[2] + b[2]];
export const sub = (a, b) => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
export const times = (a, s) => [a[0] * s, a[1] * s, a[2] * s];
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const long = (a) => Math.hypot(a[0], a[1], a[2]);
export const unit = (a) => times(a, 1 / (long(a) || 1));
export const mix = (a, b, t) => add(times(a, 1 - t), times(b, t));
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export function multiply(a, b) {
  const c = new Array(16).fill(0);
  for (let col = 0; col < 4; col++)
    for (let row = 0; row < 4; row++)
      for (let k = 0; k < 4; k++) c[4 * col + row] += a[4 * k + row] * b[4 * col + k];
  return c;
}

/** From the box of a chunk, 0 to 1 along each side, to the page. */
export function boxMatrix(low, side) {
  return [side[0], 0, 0, 0, 0, side[1], 0, 0, 0, 0, side[2], 0, low[0], low[1], low[2], 1];
}

export function perspective(fovY, aspect, near, far) {
  const f = 1 / Math.tan(fovY / 2);
  return [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, -(far + near) / (far - near), -1, 0, 0, -(2 * far * near) / (far - near), 0];
}

/** A vector turned about a unit axis. */
export function turned(v, axis, angle) {
  const c = Math.cos(angle);
  return add(add(times(v, c), times(cross(axis, v), Math.sin(angle))), times(axis, dot(axis, v) * (1 - c)));
}

/** A point [x, y, z] times a matrix: [x, y, z, w]. */
export function project(m, p) {
  const row = (r) => m[r] * p[0] + m[4 + r] * p[1] + m[8 + r] * p[2] + m[12 + r];
  return [row(0), row(1), row(2), row(3)];
}

export function median(values) {
  const sorted = Float64Array.from(values).sort();
  return sorted.length ? sorted[sorted.length >> 1] : 0;
}

/** 1, 2 or 5 times a power of ten, near a value. */
export function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const share = value / power;
  return (share < 1.5 ? 1 : share < 3.5 ? 2 : share < 7.5 ? 5 : 10) * power;
}
