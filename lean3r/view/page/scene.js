// One result: its header, its points on the graphics processor, its cameras.
import { texture } from "./gl.js";
import { dot, long, median, nice, sub, times, unit } from "./math.js";

const STRIDE = 16;
export const STATES = {
  refined: [46, 160, 110], fallback: [66, 135, 245], given: [150, 110, 240], predicted: [240, 165, 40],
  uncertain: [235, 75, 70],
};

export class Scene {
  constructor(gl, number, header, parts) {
    Object.assign(this, { gl, number, header, parts });
    this.cameras = header.cameras.map((about, view) => new Camera(about, view));
    this.chunks = header.points.chunks.map((chunk) => new Chunk(chunk));
    this.levels = 0;
    this.points = 0;
    this.mesh = null;
    this.spacing = header.points.spacing;
    this.palette = this.makePalette();
    this.viewColours = { view: this.colourTable((camera) => hue(camera.view)),
      registration: this.colourTable((camera) => STATES[camera.registration] ?? [140, 140, 140]) };
    this.frustum = this.usualFrustum();
  }

  get isWhole() { return this.levels >= this.header.points.levels; }

  /** Between lines of the ground, in the unit of this result. */
  get gridLength() { return nice(0.25 * this.header.unit); }

  /** How long a length on the page is in the world of this result, in words. */
  measure(length) {
    const value = length * this.header.unit;
    const digits = { minimumSignificantDigits: 4, maximumSignificantDigits: 4, useGrouping: false };
    return this.words(value >= 1e5 || value < 1e-4 ? value.toExponential(3) : value.toLocaleString("en", digits));
  }

  /** A number with the unit of this result. */
  words(value) { return `${value} ${this.header.scale === "metric" ? "m" : "units"}`; }

  /** Take the points of the next level; `bytes` are as chunks.py packs them. */
  addLevel(bytes) {
    const gl = this.gl, level = this.levels;
    const count = this.chunks.reduce((sum, chunk) => sum + chunk.counts[level], 0);
    const column = (n) => bytes.subarray(n * count, (n + 1) * count);
    const place = [0, 2, 4].map((at) => wide(column(at), column(at + 1)));
    const [rank, size, red, green, blue, nx, ny] = [6, 7, 8, 9, 10, 11, 12].map(column);
    const view = wide(column(13), column(14));
    for (const values of place) for (let i = 1; i < count; i++) values[i] += values[i - 1];
    const packed = new ArrayBuffer(count * STRIDE), shorts = new Uint16Array(packed), small = new Uint8Array(packed);
    for (let i = 0; i < count; i++) {
      const at = i * 8, byte = i * STRIDE;
      shorts[at] = place[0][i];
      shorts[at + 1] = place[1][i];
      shorts[at + 2] = place[2][i];
      small[byte + 6] = rank[i];
      small[byte + 7] = size[i];
      small[byte + 8] = red[i];
      small[byte + 9] = green[i];
      small[byte + 10] = blue[i];
      small[byte + 11] = nx[i];
      shorts[at + 6] = view[i];
      small[byte + 14] = ny[i];
    }
    let start = 0;
    for (const chunk of this.chunks) {
      const end = start + chunk.counts[level];
      chunk.add(gl, small.subarray(start * STRIDE, end * STRIDE), end - start);
      start = end;
    }
    this.levels++;
    this.points += count;
  }

  addMesh(bytes) {
    const gl = this.gl, { vertices, triangles } = this.header.mesh;
    const joined = (from, count) => {
      const made = new Uint8Array(count * 4);
      for (let plane = 0; plane < 4; plane++)
        for (let i = 0; i < count; i++) made[4 * i + plane] = bytes[from + plane * count + i];
      return made.buffer;
    };
    const places = new Float32Array(joined(0, vertices * 3));
    const corners = new Int32Array(joined(vertices * 15, triangles * 3));
    for (let i = 1; i < corners.length; i++) corners[i] += corners[i - 1];
    const array = gl.createVertexArray(), buffers = [];
    gl.bindVertexArray(array);
    const fill = (where, data) => {
      buffers.push(gl.createBuffer());
      gl.bindBuffer(where, buffers.at(-1));
      gl.bufferData(where, data, gl.STATIC_DRAW);
    };
    fill(gl.ARRAY_BUFFER, places);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 0, 0);
    fill(gl.ARRAY_BUFFER, bytes.slice(vertices * 12, vertices * 15));
    gl.enableVertexAttribArray(1);
    gl.vertexAttribPointer(1, 3, gl.UNSIGNED_BYTE, true, 0, 0);
    fill(gl.ELEMENT_ARRAY_BUFFER, corners);
    gl.bindVertexArray(null);
    this.mesh = { array, buffers, count: corners.length };
  }

  makePalette() {
    const from = this.header.palette, count = from.length / 3, rgba = new Uint8Array(count * 4);
    for (let i = 0; i < count; i++) rgba.set([from[3 * i], from[3 * i + 1], from[3 * i + 2], 255], 4 * i);
    return texture(this.gl, this.gl.RGBA, count, 1, rgba, this.gl.LINEAR);
  }

  colourTable(of) {
    const rows = Math.max(1, Math.ceil(this.cameras.length / 1024)), rgba = new Uint8Array(rows * 4096);
    this.cameras.forEach((camera) => rgba.set([...of(camera), 255], 4 * camera.view));
    return texture(this.gl, this.gl.RGBA, 1024, rows, rgba, this.gl.NEAREST);
  }

  /** Half the diagonal of a frustum's picture: large enough to see, too small for neighbours to overlap. */
  usualFrustum() {
    const centres = this.cameras.filter((camera) => long(camera.centre) < 50).slice(0, 400).map((camera) => camera.centre);
    const gaps = centres.map((a, i) => Math.min(...centres.map((b, j) => (i === j ? Infinity : long(sub(a, b))))));
    return centres.length < 2 ? 0.1 : Math.min(0.14, Math.max(0.03, 0.5 * median(gaps)));
  }

  free() {
    const gl = this.gl;
    this.chunks.forEach((chunk) => chunk.free(gl));
    [this.palette, this.viewColours.view, this.viewColours.registration].forEach((each) => gl.deleteTexture(each));
    this.cameras.forEach((camera) => camera.free(gl));
    if (this.mesh) gl.deleteVertexArray(this.mesh.array);
    this.mesh?.buffers.forEach((buffer) => gl.deleteBuffer(buffer));
  }
}

class Chunk {
  constructor({ low, side, counts }) {
    Object.assign(this, { low, side, counts });
    this.total = counts.reduce((a, b) => a + b, 0);
    this.loaded = 0;
    this.ends = [];
    this.middle = low.map((value, axis) => value + side[axis] / 2);
    this.radius = long(side) / 2;
  }

  add(gl, bytes, count) {
    if (!this.array) {
      this.array = gl.createVertexArray();
      this.buffer = gl.createBuffer();
      gl.bindVertexArray(this.array);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
      gl.bufferData(gl.ARRAY_BUFFER, this.total * STRIDE, gl.STATIC_DRAW);
      [[0, 3, gl.UNSIGNED_SHORT, 0], [1, 2, gl.UNSIGNED_BYTE, 6], [2, 4, gl.UNSIGNED_BYTE, 8],
        [4, 1, gl.UNSIGNED_BYTE, 14]].forEach(([at, size, kind, offset]) => {
        gl.enableVertexAttribArray(at);
        gl.vertexAttribPointer(at, size, kind, true, STRIDE, offset);
      });
      gl.enableVertexAttribArray(3);
      gl.vertexAttribIPointer(3, 1, gl.UNSIGNED_SHORT, STRIDE, 12);
      gl.bindVertexArray(null);
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferSubData(gl.ARRAY_BUFFER, this.loaded * STRIDE, bytes);
    this.loaded += count;
    this.ends.push(this.loaded);
  }

  free(gl) {
    if (this.array) gl.deleteVertexArray(this.array);
    if (this.buffer) gl.deleteBuffer(this.buffer);
  }
}

export class Camera {
  constructor(about, view) {
    Object.assign(this, about, { view });
    const p = about.pose;
    this.axes = [0, 1, 2].map((row) => [p[4 * row], p[4 * row + 1], p[4 * row + 2]]);
    const shift = [p[3], p[7], p[11]];
    this.centre = [0, 1, 2].map((axis) => -dot(this.axes.map((row) => row[axis]), shift));
    this.ahead = unit(this.axes[2]);
    this.top = unit(times(this.axes[1], -1));
    const n = about.cells, at = (row, col) => about.rays.slice(2 * (row * (n + 1) + col), 2 * (row * (n + 1) + col) + 2);
    this.corners = [at(0, 0), at(0, n), at(n, n), at(n, 0)];
    this.halfDiagonal = this.corners.reduce((sum, [x, y]) => sum + Math.hypot(x, y), 0) / 4 || 1;
    this.thumb = null;
    this.large = {};
  }

  /** The direction on the page of a ray (x / z, y / z). */
  direction([x, y]) {
    return [0, 1, 2].map((axis) => x * this.axes[0][axis] + y * this.axes[1][axis] + this.axes[2][axis]);
  }

  /** The picture as a net of rays, which bends as its lens does. */
  net(gl) {
    if (this.quad) return this.quad;
    const n = this.cells, values = [];
    const corner = (row, col) => {
      const i = 2 * (row * (n + 1) + col);
      values.push(...this.direction([this.rays[i], this.rays[i + 1]]), col / n, row / n);
    };
    for (let row = 0; row < n; row++)
      for (let col = 0; col < n; col++)
        for (const [r, c] of [[0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [1, 1]]) corner(row + r, col + c);
    const array = gl.createVertexArray(), buffer = gl.createBuffer();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(values), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 3, gl.FLOAT, false, 20, 0);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribPointer(1, 2, gl.FLOAT, false, 20, 12);
    gl.bindVertexArray(null);
    return (this.quad = { array, buffer, count: 6 * n * n });
  }

  free(gl) {
    if (this.quad) {
      gl.deleteVertexArray(this.quad.array);
      gl.deleteBuffer(this.quad.buffer);
    }
    [this.thumb, ...Object.values(this.large)].forEach((made) => made && gl.deleteTexture(made));
  }
}

function wide(high, low) {
  const values = new Uint16Array(high.length);
  for (let i = 0; i < values.length; i++) values[i] = (high[i] << 8) | low[i];
  return values;
}

/** A colour of its own for each view: neighbours differ most. */
export function hue(view) {
  const h = (view * 0.61803398875 + 0.03) % 1, light = 0.52 + 0.14 * ((view * 0.37) % 1);
  return [0, 8, 4].map((n) => {
    const k = (n + h * 12) % 12;
    return Math.round(255 * (light - 0.62 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
}
