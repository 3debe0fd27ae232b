// The files that a result becomes, as lean3r's own exporters write them.

/** points.ply: places, normals, colours and confidence, in the world of the first camera. */
export function plyOf({ count, xyz, normals, rgb, conf }) {
  const floats = (names) => names.map((name) => `property float ${name}`);
  const header = ["ply", "format binary_little_endian 1.0", "comment lean3r", `element vertex ${count}`,
    ...floats(["x", "y", "z", "nx", "ny", "nz"]), ...["red", "green", "blue", "alpha"].map((name) => `property uchar ${name}`),
    ...floats(["confidence"]), "end_header\n"].join("\n");
  const body = new DataView(new ArrayBuffer(32 * count));
  for (let i = 0; i < count; i++) {
    for (let axis = 0; axis < 3; axis++) {
      body.setFloat32(32 * i + 4 * axis, xyz[3 * i + axis], true);
      body.setFloat32(32 * i + 12 + 4 * axis, normals[3 * i + axis], true);
      body.setUint8(32 * i + 24 + axis, rgb[3 * i + axis]);
    }
    body.setUint8(32 * i + 27, 255);
    body.setFloat32(32 * i + 28, conf[i], true);
  }
  return new Blob([header, body]);
}

/** cameras.json: K in pixels of the whole photos, and poses in both directions. */
export function camerasOf(cameras) {
  const views = cameras.map(({ name, width, height, k: [fx, fy, cx, cy], pose, centre }) => ({
    name, width, height, K: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], cam_from_world: [...pose, [0, 0, 0, 1]],
    world_from_cam: [...[0, 1, 2].map((axis) => [...pose.map((row) => row[axis]), centre[axis]]), [0, 0, 0, 1]],
    registration: "predicted", uncertain: false,
  }));
  return new Blob([JSON.stringify({ axes: "opencv", scale: "relative", views }, null, 2)], { type: "application/json" });
}
