// A cloud as the viewer takes it: chunks of neighbours, in levels from coarse to fine (lean3r/view/chunks.py).
import { median } from "./math.js";

const LEVELS = 7, MOST_IN_CHUNK = 40_000, FAR = 8, STEPS = 65535, COARSE = 3, RANK = 3, TURN = 6, CELLS = 2047;

/** {header, levels} of a cloud at its places on the page: what the header says of the points, and the bytes of each
 * level as scene.js takes them. `spacing` [P] are the distances of neighbours. */
export function packed({ count, rgb, conf, view }, places, normals, spacing) {
  const { ranks, quantiles } = ranked(conf);
  let low = Infinity, high = -Infinity;
  for (const value of spacing) [low, high] = [Math.min(low, Math.log2(value)), Math.max(high, Math.log2(value))];
  if (!count) low = high = 0;
  const rows = Array.from({ length: LEVELS }, () => []), chunks = [];
  for (const members of split(places, count)) {
    const box = boxOf(places, members), ordered = alongCurve(places, members, box), counts = Array(LEVELS).fill(0);
    ordered.forEach((point, number) => {
      const level = LEVELS - 1 - trailing(number);
      rows[level].push({ point, box });
      counts[level]++;
    });
    chunks.push({ low: box.low, side: box.side, counts });
  }
  const levels = rows.map((members) => {
    const total = members.length, bytes = new Uint8Array(15 * total), before = [0, 0, 0];
    const wide = (column, i, value) => {
      bytes[column * total + i] = value >> 8;
      bytes[(column + 1) * total + i] = value & 255;
    };
    members.forEach(({ point, box }, i) => {
      for (let axis = 0; axis < 3; axis++) {
        const step = COARSE * Math.round(((places[3 * point + axis] - box.low[axis]) / (box.side[axis] || 1)) * (STEPS / COARSE));
        wide(2 * axis, i, (step - before[axis]) & STEPS);
        before[axis] = step;
        bytes[(8 + axis) * total + i] = rgb[3 * point + axis];
      }
      bytes[6 * total + i] = ranks[point];
      bytes[7 * total + i] = Math.round(((Math.log2(spacing[point]) - low) / Math.max(high - low, 1e-6)) * 255);
      const [nx, ny] = octahedral(normals.subarray(3 * point, 3 * point + 3));
      bytes[11 * total + i] = nx;
      bytes[12 * total + i] = ny;
      wide(13, i, view[point]);
    });
    return bytes;
  });
  const header = { count, total: count, chunks, levels: count ? LEVELS : 0, spacing: [low, high], quantiles, hasViews: count > 0, hasNormals: count > 0 };
  return { header, levels };
}

/** How many times farther than `spacing` neighbours are, in the middle of a sample; 1 if that is unknown. */
export function spacingFactor(places, spacing, count) {
  const all = Uint32Array.from({ length: count }, (_, i) => i), order = alongCurve(places, all, boxOf(places, all)), ratios = [];
  const step = Math.max(1, Math.floor(count / 200));
  for (let at = 0; at < count; at += step) {
    const point = order[at];
    let gap = Infinity;
    for (const other of order.subarray(Math.max(0, at - 400), at + 400)) {
      const away = Math.hypot(...[0, 1, 2].map((axis) => places[3 * other + axis] - places[3 * point + axis]));
      if (away > 0 && away < gap) gap = away;
    }
    if (gap < Infinity) ratios.push(gap / spacing[point]);
  }
  ratios.sort((a, b) => a - b);
  return ratios.length ? ratios[Math.floor(ratios.length / 2)] : 1;
}

/** The share of less confident points in 255ths, and nine quantiles. */
function ranked(conf) {
  const sorted = Float32Array.from(conf).sort(), { length } = sorted, ranks = new Uint8Array(length);
  conf.forEach((value, i) => {
    let low = 0, high = length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle + 1;
      else high = middle;
    }
    ranks[i] = Math.round((low / Math.max(length - 1, 1)) * Math.floor(255 / RANK)) * RANK;
  });
  return { ranks, quantiles: length ? Array.from({ length: 9 }, (_, i) => sorted[Math.round((i / 8) * (length - 1))]) : [] };
}

/** Boxes of at most MOST_IN_CHUNK points, as lists of points; far points have their own. */
function split(places, count) {
  if (!count) return [];
  const middle = [0, 1, 2].map((axis) => median(Float64Array.from({ length: count }, (_, i) => places[3 * i + axis])));
  const away = Float64Array.from({ length: count }, (_, i) => Math.max(...middle.map((value, axis) => Math.abs(places[3 * i + axis] - value))));
  const usual = Math.max(median(away), 1e-300), shells = new Map(), boxes = [];
  for (let i = 0; i < count; i++) {
    const shell = Math.floor(Math.log(Math.max(away[i] / usual, 1)) / Math.log(FAR));
    if (!shells.has(shell)) shells.set(shell, []);
    shells.get(shell).push(i);
  }
  const waiting = [...shells.values()].map((members) => Uint32Array.from(members));
  while (waiting.length) {
    const members = waiting.pop();
    if (members.length <= MOST_IN_CHUNK) {
      boxes.push(members);
      continue;
    }
    const { side } = boxOf(places, members), axis = side.indexOf(Math.max(...side)), half = members.length >> 1;
    members.sort((a, b) => places[3 * a + axis] - places[3 * b + axis]);
    waiting.push(members.subarray(0, half), members.subarray(half));
  }
  return boxes;
}

function boxOf(places, members) {
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (const point of members)
    for (let axis = 0; axis < 3; axis++) {
      const value = places[3 * point + axis];
      if (value < low[axis]) low[axis] = value;
      if (value > high[axis]) high[axis] = value;
    }
  return { low, side: high.map((value, axis) => value - low[axis]) };
}

/** The points in the order of a curve that stays near (Morton's), in a grid over their box. */
function alongCurve(places, members, { low, side }) {
  const keys = new Float64Array(members.length), order = Uint32Array.from(members, (_, i) => i);
  members.forEach((point, i) => {
    const cell = (axis) => spread(Math.floor(((places[3 * point + axis] - low[axis]) / (side[axis] || 1)) * CELLS));
    keys[i] = cell(0) + 2 * cell(1) + 4 * cell(2);
  });
  order.sort((a, b) => keys[a] - keys[b]);
  return order.map((i) => members[i]);
}

/** Two zero bits after each of eleven bits, as a number of 33 bits. */
function spread(value) {
  let found = 0;
  for (let bit = 10; bit >= 0; bit--) found = found * 8 + ((value >> bit) & 1);
  return found;
}

/** How often a number can be halved, at most LEVELS - 1 times. */
function trailing(number) {
  return number === 0 ? LEVELS - 1 : Math.min(LEVELS - 1, 31 - Math.clz32(number & -number));
}

/** A unit vector as a point of an unfolded octahedron, 1 to 255; 0 where it is 0. */
function octahedral([x, y, z]) {
  const reach = Math.abs(x) + Math.abs(y) + Math.abs(z);
  if (!reach) return [0, 0];
  const flat = [x / reach, y / reach], folded = z < 0 ? [1 - Math.abs(flat[1]), 1 - Math.abs(flat[0])].map((value, i) => (flat[i] >= 0 ? value : -value)) : flat;
  return folded.map((value) => Math.round(value * (126 / TURN)) * TURN + 128);
}
