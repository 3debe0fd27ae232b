// Depth -> coloured points, as lean3r/geometry/fusion.py chooses them.

const EDGE = 0.03, MOST_SAMPLED = 2_000_000, LARGEST_KEY = 2 ** 53;

/** A camera of view `view`: pose rows [3][4], centre, and K of its picture. */
export function cameraOf({ poses, intrinsics }, view) {
  const row = poses.length / (intrinsics.length / 9) === 12 ? 12 : 16;
  const pose = [0, 1, 2].map((i) => Array.from(poses.subarray(view * row + 4 * i, view * row + 4 * i + 4)));
  const k = intrinsics.subarray(9 * view, 9 * view + 9);
  const centre = [0, 1, 2].map((axis) => -pose.reduce((sum, line) => sum + line[axis] * line[3], 0));
  return { pose, centre, fx: k[0], fy: k[4], cx: k[2], cy: k[5] };
}

/** Points of a prediction {depth, conf, poses, intrinsics, views, width, height} of pictures: {count, xyz, rgb, conf,
 * normals, view}, in its world. `percentile` per cent of lowest confidence, flying pixels at edges, and points that
 * others repeat give none. */
export function cloudOf(prediction, pictures, percentile) {
  const { depth, conf, views, width, height } = prediction, size = width * height;
  const usable = depth.map((z, i) => Number.isFinite(z) && z > 0 && Number.isFinite(conf[i]) && conf[i] > 0 ? z : 0);
  const threshold = lowest(usable, conf, percentile), found = [];
  for (let view = 0; view < views; view++) {
    const camera = cameraOf(prediction, view), map = usable.subarray(view * size, (view + 1) * size);
    const isEdge = edges(map, width, height), pixelSide = 1 / Math.sqrt(Math.abs(camera.fx * camera.fy));
    for (let at = 0; at < size; at++) {
      const pixel = view * size + at, z = map[at];
      if (!z || isEdge[at] || conf[pixel] < threshold) continue;
      found.push({ pixel, view, xyz: world(camera, at % width, Math.floor(at / width), z), octave: Math.floor(Math.log2(z * pixelSide)) });
    }
  }
  const kept = thinned(found, conf), count = kept.length;
  const cloud = { count, xyz: new Float32Array(3 * count), rgb: new Uint8Array(3 * count), conf: new Float32Array(count),
    normals: new Float32Array(3 * count), view: new Uint16Array(count) };
  let maps = { view: -1 };
  kept.forEach((point, i) => {
    const { pixel, view } = point, at = pixel - view * size;
    if (maps.view !== view) maps = { view, camera: cameraOf(prediction, view), depth: usable.subarray(view * size, (view + 1) * size) };
    cloud.xyz.set(point.xyz, 3 * i);
    cloud.rgb.set(pictures[view].pixels.subarray(3 * at, 3 * at + 3), 3 * i);
    cloud.conf[i] = conf[pixel];
    cloud.normals.set(normal(maps, at, width, height), 3 * i);
    cloud.view[i] = view;
  });
  return cloud;
}

/** The confidence below which so many per cent of the usable pixels lie. */
function lowest(usable, conf, percentile) {
  const step = 1 + Math.floor(conf.length / MOST_SAMPLED), values = [];
  for (let i = 0; i < conf.length; i += step) if (usable[i]) values.push(conf[i]);
  const sorted = Float32Array.from(values).sort();
  return sorted.length ? sorted[Math.floor((percentile / 100) * (sorted.length - 1))] : 0;
}

function world({ pose, cx, cy, fx, fy }, col, row, z) {
  const cam = [((col + 0.5 - cx) / fx) * z, ((row + 0.5 - cy) / fy) * z, z].map((value, i) => value - pose[i][3]);
  return [0, 1, 2].map((axis) => Math.fround(cam[0] * pose[0][axis] + cam[1] * pose[1][axis] + cam[2] * pose[2][axis]));
}

/** Pixels at a jump of depth: there inverse depth bends along a row or a column. */
function edges(depth, width, height) {
  const found = new Uint8Array(depth.length);
  const along = (count, step, start) => {
    if (count < 3) return;
    const bends = new Float64Array(count);
    for (let i = 1; i < count - 1; i++) {
      const [a, b, c] = [-1, 0, 1].map((k) => depth[start + (i + k) * step]);
      bends[i] = a && b && c ? Math.abs(1 / a - 2 / b + 1 / c) : 0;
    }
    bends[0] = bends[1];
    bends[count - 1] = bends[count - 2];
    bends.forEach((bend, i) => { if (bend * depth[start + i * step] > EDGE) found[start + i * step] = 1; });
  };
  for (let row = 0; row < height; row++) along(width, 1, row * width);
  for (let col = 0; col < width; col++) along(height, width, col);
  return found;
}

/** The unit normal of a pixel in the world, towards its camera; 0 where its neighbours have no depth. */
function normal({ depth, camera }, at, width, height) {
  const col = at % width, row = Math.floor(at / width), { fx, fy, cx, cy, pose } = camera;
  const point = (x, y) => {
    const z = x >= 0 && y >= 0 && x < width && y < height ? depth[y * width + x] : 0;
    return z ? [((x + 0.5 - cx) / fx) * z, ((y + 0.5 - cy) / fy) * z, z] : null;
  };
  const here = point(col, row);
  const slope = (dx, dy) => {
    const before = point(col - dx, row - dy) ?? here, after = point(col + dx, row + dy) ?? here;
    return after.map((value, i) => value - before[i]);
  };
  const [a, b] = [slope(1, 0), slope(0, 1)];
  const cross = [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const length = Math.hypot(...cross), turn = cross.reduce((sum, value, i) => sum + value * here[i], 0) > 0 ? -1 : 1;
  if (!length) return [0, 0, 0];
  const away = cross.map((value) => (turn * value) / length);
  return [0, 1, 2].map((axis) => away[0] * pose[0][axis] + away[1] * pose[1][axis] + away[2] * pose[2][axis]);
}

/** Of each cube whose side is half to one pixel at its distance, the most confident point. */
function thinned(points, conf) {
  const groups = new Map(), kept = [];
  for (const point of points) {
    if (!groups.has(point.octave)) groups.set(point.octave, []);
    groups.get(point.octave).push(point);
  }
  for (const [octave, members] of groups) {
    const side = 2 ** octave, low = [0, 1, 2].map((axis) => members.reduce((least, { xyz }) => Math.min(least, xyz[axis]), Infinity));
    const most = [0, 1, 2].map((axis) => 1 + Math.floor(members.reduce((high, { xyz }) => Math.max(high, xyz[axis] - low[axis]), 0) / side));
    if (most[0] * most[1] * most[2] >= LARGEST_KEY) {
      for (const point of members) kept.push(point);
      continue;
    }
    const best = new Map();
    for (const point of members) {
      const [x, y, z] = point.xyz.map((value, axis) => Math.floor((value - low[axis]) / side)), key = (x * most[1] + y) * most[2] + z;
      const other = best.get(key);
      if (!other || conf[point.pixel] > conf[other.pixel]) best.set(key, point);
    }
    for (const point of best.values()) kept.push(point);
  }
  return kept.sort((a, b) => a.pixel - b.pixel);
}
