// The work, beside the page: photos -> the network -> a cloud for the viewer. What it says: {step, done, total},
// {failed}, and at the end {found}.
import { cameraOf, cloudOf } from "./cloud.js";
import { weighed } from "./evidence.js";
import { frameOf } from "./frame.js";
import { confPicture, depthPicture } from "./maps.js";
import { packed, spacingFactor } from "./packing.js";
import { Unusable, commonSize, readPhoto } from "./reading.js";

const OUTPUTS = ["depth", "conf", "cam_from_world", "intrinsics"];
const FOREIGN = "The network of this page is none that lean3r export-model wrote. Write the folder again, with lean3r export-page.";

self.addEventListener("message", async ({ data: { files, engine, settings } }) => {
  try {
    const { pictures, skipped } = await read(files, settings);
    self.postMessage({ step: "network", done: 0, total: pictures.length });
    const start = performance.now(), prediction = await predict(pictures, engine);
    const seconds = (performance.now() - start) / 1000;
    self.postMessage({ step: "cloud", done: 0, total: pictures.length });
    const found = result(prediction, pictures, settings);
    const moved = [...found.levels, ...found.photos, ...found.depths, ...found.confs];
    self.postMessage({ found: { ...found, skipped, seconds } }, moved.map((each) => each.buffer ?? each));
  } catch (error) {
    self.postMessage({ failed: error.message || String(error) });
  }
});

/** The pictures, all of one size, and what could not be read as [name, reason]. */
async function read(files, settings) {
  const pictures = [], skipped = [];
  for (const [done, file] of files.entries()) {
    self.postMessage({ step: "reading", done, total: files.length });
    try {
      pictures.push({ file, ...(await readPhoto(file, settings)) });
    } catch (error) {
      if (!(error instanceof Unusable)) throw error;
      skipped.push([file.name, error.message]);
    }
  }
  if (pictures.length < 2) {
    const reasons = skipped.map(([name, reason]) => `${name}: ${reason}.`).join(" ");
    throw new Error(`${pictures.length ? "Only one photo" : "None"} of these can be used; at least two are needed. ${reasons}`);
  }
  const size = commonSize(pictures, settings);
  for (const [i, picture] of pictures.entries())
    if (picture.size.some((side, axis) => side !== size[axis])) {
      picture.photo.close();
      pictures[i] = { file: picture.file, isCut: true, ...(await readPhoto(picture.file, settings, size)) };
    }
  return { pictures, skipped };
}

/** What the network says: {depth, conf, poses, intrinsics, views, width, height}. */
async function predict(pictures, { runtime, wasm, network }) {
  const address = URL.createObjectURL(new Blob([runtime], { type: "text/javascript" })), ort = await import(address);
  ort.env.logLevel = "error";
  Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: wasm });
  const [width, height] = pictures[0].size, views = pictures.length, area = width * height;
  const images = new Float32Array(views * 3 * area);
  pictures.forEach(({ pixels }, view) => {
    for (let i = 0; i < area; i++)
      for (let channel = 0; channel < 3; channel++) images[(3 * view + channel) * area + i] = pixels[3 * i + channel] / 255;
  });
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"] });
  if (!session.inputNames.includes("images") || !OUTPUTS.every((name) => session.outputNames.includes(name))) throw new Error(FOREIGN);
  const out = await session.run({ images: new ort.Tensor("float32", images, [1, views, 3, height, width]) });
  const [depth, conf, poses, intrinsics] = OUTPUTS.map((name) => out[name].data.slice());
  await session.release();
  if (![...poses, ...intrinsics].every(Number.isFinite)) throw new Error("The network found no cameras for these photos (it gave no numbers).");
  return { depth, conf, poses, intrinsics, views, width, height };
}

/** All that the page shows and saves. */
function result(prediction, pictures, { percentile, palette, registrations }) {
  const { depth, width, height } = prediction, area = width * height;
  const cameras = pictures.map((_, view) => cameraOf(prediction, view)), { conf, disagreement } = weighed(prediction, cameras);
  const cloud = cloudOf({ ...prediction, conf }, pictures, percentile);
  const frame = frameOf(cloud.xyz, cameras), { count } = cloud;
  const places = new Float32Array(3 * count), normals = new Float32Array(3 * count), spacing = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const point = cloud.xyz.subarray(3 * i, 3 * i + 3), { pose, fx, fy } = cameras[cloud.view[i]];
    const away = cloud.normals.subarray(3 * i, 3 * i + 3), gaze = pose[2];
    const z = gaze[0] * point[0] + gaze[1] * point[1] + gaze[2] * point[2] + gaze[3];
    const slant = Math.abs(gaze[0] * away[0] + gaze[1] * away[1] + gaze[2] * away[2]) || 1;
    places.set(frame.place(point), 3 * i);
    normals.set(frame.turn(away), 3 * i);
    spacing[i] = z / Math.sqrt(Math.abs(fx * fy)) / Math.sqrt(Math.min(1, Math.max(0.15, slant))) / frame.unit;
  }
  const factor = spacingFactor(places, spacing, count);
  const { header, levels } = packed(cloud, places, normals, spacing.map((value) => value * factor));
  const shown = pictures.map((picture, view) => {
    const map = (values) => values.subarray(view * area, (view + 1) * area);
    return { depth: depthPicture(map(depth), palette, picture), conf: confPicture(map(conf), header.quantiles, palette, picture) };
  });
  const original = pictures.map((picture, view) => cameraIn(picture, cameras[view]));
  return {
    header: {
      scale: "relative", unit: frame.unit, world: 0, isDone: true, points: header, registrations, mesh: null, home: frame.home, palette,
      cameras: original.map(({ name, width: w, height: h, rays }, view) => ({
        name, width: w, height: h, pose: frame.pose(cameras[view]), rays, cells: 1, registration: "predicted", time: null })),
    },
    levels, photos: pictures.map(({ photo }) => photo), depths: shown.map((each) => each.depth), confs: shown.map((each) => each.conf),
    cameras: original.map(({ name, width: w, height: h, k }, view) => ({ name, width: w, height: h, k, pose: cameras[view].pose, centre: cameras[view].centre })),
    cloud, prediction, disagreement, cut: pictures.filter(({ isCut }) => isCut).length,
  };
}

/** A camera in pixels of its whole photo: K, and the rays through the photo's corners. */
function cameraIn({ name, width, height, transform: [scale, , left, top] }, { fx, fy, cx, cy }) {
  const k = [fx * scale, fy * scale, cx * scale + left, cy * scale + top];
  const rays = [[0, 0], [width, 0], [0, height], [width, height]].flatMap(([x, y]) => [(x - k[2]) / k[0], (y - k[3]) / k[1]]);
  return { name, width, height, rays, k };
}
