// The viewer's coordinates for a cloud and its cameras, as lean3r/view/frame.py chooses them: y up, size about 1.
import { cross, dot, long, sub, times, unit } from "./math.js";

const ROLL = (3 * Math.PI) / 180, PITCH = (25 * Math.PI) / 180; // usual tilts of a camera in a hand
const LEVEL = 0.3, NEAR = 6, SAMPLE = 100_000;

/** {place(point), pose(camera), turn(direction), unit, home} of points [x, y, z, ...] and cameras. */
export function frameOf(xyz, cameras) {
  const up = upOf(cameras), back = times(levelGaze(cameras, up), -1), axes = [cross(up, back), up, back];
  const turn = (vector) => axes.map((axis) => dot(axis, vector));
  const points = sampled(xyz, SAMPLE), turned = (points.length > 2 ? points : cameras.map(({ centre }) => centre)).map(turn);
  const [low, high] = box(turned, 0.05), length = long(sub(high, low)) / 2 || 1, middle = low.map((value, i) => (value + high[i]) / 2);
  const place = (point) => times(sub(turn(point), middle), 1 / length);
  const pose = (camera) => {
    const rows = camera.pose.map((row) => turn(row.slice(0, 3))), centre = place(camera.centre);
    return rows.flatMap((row) => [...row, -dot(row, centre)]);
  };
  return { place, pose, turn, unit: length, home: home(points.map(place), cameras, place, turn) };
}

/** Up, from the habit to hold cameras level: perpendicular to their x axes, and nearly to their gazes. */
function upOf(cameras) {
  const axis = (row) => cameras.map(({ pose }) => pose[row].slice(0, 3)), rights = axis(0), downs = axis(1), gazes = axis(2);
  let weights = rights.map(() => 1), up = [0, -1, 0];
  for (let round = 0; round < 20; round++) {
    const sum = [0, 1, 2].map((i) => [0, 1, 2].map((j) =>
      rights.reduce((all, right, s) => all + (weights[s] * right[i] * right[j]) / ROLL ** 2 + (gazes[s][i] * gazes[s][j]) / gazes.length / PITCH ** 2, 0)));
    up = least(sum, up);
    weights = rights.map((right) => 1 / (1 + (Math.asin(Math.max(-1, Math.min(1, dot(right, up)))) / ROLL) ** 2));
  }
  const mean = (vectors) => vectors.reduce((all, vector) => all + dot(vector, up), 0) / vectors.length;
  const upright = -mean(downs);
  return times(up, (Math.abs(upright) > 0.3 ? upright : -mean(gazes)) < 0 ? -1 : 1);
}

/** The direction in which a symmetric matrix is smallest: by its adjugate, again and again. */
function least(m, start) {
  const tiny = 1e-9 * (m[0][0] + m[1][1] + m[2][2]), rows = m.map((row, i) => row.map((value, j) => value + (i === j ? tiny : 0)));
  const adjugate = [cross(rows[1], rows[2]), cross(rows[2], rows[0]), cross(rows[0], rows[1])];
  let found = unit(start.map((value, i) => value + 0.01 * (i + 1)));
  for (let round = 0; round < 60; round++) found = unit(adjugate.map((row) => dot(row, found)));
  return found;
}

/** The direction on the ground in which the cameras look on the whole. */
function levelGaze(cameras, up) {
  const gazes = cameras.map(({ pose }) => pose[2].slice(0, 3)), tops = cameras.map(({ pose }) => times(pose[1].slice(0, 3), -1));
  const mean = (vectors) => [0, 1, 2].map((axis) => vectors.reduce((sum, vector) => sum + vector[axis], 0) / vectors.length);
  for (const ahead of [mean(gazes), ...gazes, mean(tops), [0, 0, 1], [1, 0, 0]]) {
    const level = sub(ahead, times(up, dot(ahead, up)));
    if (long(level) > LEVEL) return unit(level);
  }
  throw new Error("two axes cannot both be up");
}

/** Where the viewer begins: what to show, and whether to look down on it. */
function home(placed, cameras, place, turn) {
  const near = (point) => point.every((value) => Math.abs(value) < NEAR);
  let sample = placed.filter((_, i) => i % Math.ceil(placed.length / 400) === 0).filter(near);
  if (sample.length > 20) {
    const [low, high] = box(sample, 0.04);
    sample = sample.filter((point) => point.every((value, i) => Math.abs(value - (low[i] + high[i]) / 2) <= 0.6 * (high[i] - low[i])));
  }
  const eyes = cameras.map(({ centre }) => place(centre)).filter(near);
  const [low, high] = placed.length ? box(placed, 0.005).map((side) => side.map((value) => Math.max(-NEAR, Math.min(NEAR, value)))) : [[-1, -1, -1], [1, 1, 1]];
  const gaze = cameras.reduce((sum, { pose }) => sum + turn(pose[2].slice(0, 3))[1], 0) / cameras.length;
  return { sample: [...sample, ...eyes].flat(), low, high, looksDown: gaze < -0.75, ground: placed.length ? box(placed, 0.02)[0][1] : -0.5 };
}

/** The box [low, high] of points without so large a share at either end of each axis. */
function box(points, share) {
  const sides = [0, 1, 2].map((axis) => Float64Array.from(points, (point) => point[axis]).sort());
  return [share, 1 - share].map((at) => sides.map((side) => side[Math.round(at * (side.length - 1))] ?? 0));
}

function sampled(xyz, most) {
  const count = xyz.length / 3, step = Math.ceil(count / most) || 1, found = [];
  for (let i = 0; i < count; i += step) found.push([xyz[3 * i], xyz[3 * i + 1], xyz[3 * i + 2]]);
  return found;
}
