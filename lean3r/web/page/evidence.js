// Confidence weighted by what other views see, as lean3r/geometry/evidence.py does for cameras that nothing verified.
import { clamp, dot, median, sub, unit } from "./math.js";

const CHECKED = 6, CHECKED_PIXELS = 15_000, PROBES = 16, JUMP = 1.2;
const TOLERANCE = 0.05, HIDDEN = 0.25, ALONE = 0.3, WELL = 0.02, BADLY = 0.05, BORDER = 0.06, CONFIRMED = 0.5;
const RADIANS = Math.PI / 180, FULL_VOTE = 2 * RADIANS, GOOD_PARALLAX = 3 * RADIANS;

/** {conf, disagreement} of a prediction with its cameras: the confidence of each pixel, 0 at borders that no other view
 * confirms, and by how much the depths of views differ where they overlap (log, median; null without overlap). */
export function weighed({ depth, conf, views, width, height }, cameras) {
  const size = width * height, maps = cameras.map((_, view) => depth.subarray(view * size, (view + 1) * size));
  const scene = { cameras, maps, width, height }, step = Math.max(1, Math.round(Math.sqrt(size / CHECKED_PIXELS)));
  const grid = (count) => Array.from({ length: Math.ceil((count - Math.floor(step / 2)) / step) }, (_, i) => Math.floor(step / 2) + i * step);
  const rows = grid(height), cols = grid(width), differences = [], made = new Float32Array(conf.length);
  const votes = maps.map((_, view) => cast(scene, view, rows, cols, differences));
  // Where cameras are worse than depth, votes say nothing about depth.
  const disagreement = differences.length ? median(differences) : null;
  const trust = clamp((BADLY - (disagreement ?? 0)) / (BADLY - WELL), 0, 1), side = Math.max(1, Math.round(BORDER * Math.min(width, height)));
  for (let pixel = 0; pixel < made.length; pixel++) {
    const view = Math.floor(pixel / size), col = pixel % width, row = Math.floor((pixel % size) / width);
    const at = Math.min(Math.floor(row / step), rows.length - 1) * cols.length + Math.min(Math.floor(col / step), cols.length - 1);
    const { agree, against, hasOthers } = votes[view];
    const isBorder = col < side || row < side || col >= width - side || row >= height - side;
    if (isBorder && hasOthers && agree[at] < CONFIRMED) continue;
    made[pixel] = conf[pixel] * ((ALONE + agree[at]) / (1 + agree[at] + against[at])) ** trust;
  }
  return { conf: made, disagreement };
}

/** The votes of other views for and against the pixels of a view on a grid. */
function cast(scene, view, rows, cols, differences) {
  const agree = new Float32Array(rows.length * cols.length), against = new Float32Array(agree.length), { cameras } = scene;
  const points = rows.flatMap((row) => cols.map((col) => worldPoint(scene, view, row, col))), others = neighbours(scene, view);
  for (const other of others) {
    const found = [];
    points.forEach((point, at) => {
      const seen = point && seenIn(scene, other, point);
      if (!seen || seen.z <= 0) return;
      const ratio = Math.log(seen.z / seen.depth), same = Math.exp(-0.5 * (ratio / TOLERANCE) ** 2);
      const weight = clamp(parallax(point, cameras[view], cameras[other]) / FULL_VOTE, 0.1, 1);
      agree[at] += weight * same;
      against[at] += weight * (1 - same) * (ratio < 0 ? 1 : HIDDEN);
      found.push(Math.abs(ratio));
    });
    differences.push(...found.filter((_, i) => i % (1 + Math.floor(found.length / 1000)) === 0));
  }
  return { agree, against, hasOthers: others.length > 0 };
}

/** Up to CHECKED other views with the largest overlap and enough parallax. */
function neighbours(scene, view) {
  const { cameras, width, height } = scene, places = Array.from({ length: PROBES }, (_, i) => (i + 0.5) / PROBES);
  const points = places.flatMap((y) => places.map((x) => worldPoint(scene, view, Math.floor(y * height), Math.floor(x * width)))).filter(Boolean);
  const merits = cameras.map((camera, other) => {
    if (other === view) return [other, 0];
    const angles = points.flatMap((point) => {
      const seen = seenIn(scene, other, point);
      return seen && Math.abs(Math.log((seen.z > 0 ? seen.z : 1) / seen.depth)) < 0.5 ? [parallax(point, cameras[view], camera)] : [];
    });
    return [other, angles.length ? (angles.length / points.length) * Math.min(1, 0.1 + median(angles) / GOOD_PARALLAX) : 0];
  });
  return merits.sort((a, b) => b[1] - a[1]).slice(0, CHECKED).filter(([, merit]) => merit > 0.02).map(([other]) => other);
}

function parallax(point, a, b) {
  return Math.acos(clamp(dot(unit(sub(point, a.centre)), unit(sub(point, b.centre))), -1, 1));
}

function worldPoint({ cameras, maps, width }, view, row, col) {
  const z = maps[view][row * width + col], { pose, fx, fy, cx, cy } = cameras[view];
  if (!(z > 0)) return null;
  const cam = [((col + 0.5 - cx) / fx) * z - pose[0][3], ((row + 0.5 - cy) / fy) * z - pose[1][3], z - pose[2][3]];
  return [0, 1, 2].map((axis) => cam[0] * pose[0][axis] + cam[1] * pose[1][axis] + cam[2] * pose[2][axis]);
}

/** The depth z of a point in a view, and the view's own depth there; null where it has none. */
function seenIn({ cameras, maps, width, height }, view, point) {
  const { pose, fx, fy, cx, cy } = cameras[view], [x, y, z] = pose.map((row) => dot(row, point) + row[3]);
  const at = [(fx * x) / z + cx, (fy * y) / z + cy];
  if (!(z > 1e-6 && at[0] >= 0 && at[1] >= 0 && at[0] <= width && at[1] <= height)) return null;
  const [u, v] = [clamp(at[0] - 0.5, 0, width - 1), clamp(at[1] - 0.5, 0, height - 1)];
  const left = Math.min(Math.floor(u), width - 2), top = Math.min(Math.floor(v), height - 2), map = maps[view];
  const corners = [0, 1].flatMap((row) => [0, 1].map((col) => map[(top + row) * width + left + col]));
  if (!(Math.min(...corners) > 0 && Math.max(...corners) < JUMP * Math.min(...corners))) return null;
  const [fu, fv] = [u - left, v - top], weights = [(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv];
  return { z, depth: 1 / corners.reduce((sum, corner, i) => sum + weights[i] / corner, 0) };
}
