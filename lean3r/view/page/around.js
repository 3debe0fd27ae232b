// What stands around the points: cameras with their pictures, the ground, the trimming box, measured lines.
import { pictureTexture, program } from "./gl.js";
import { add, long, project, sub, times } from "./math.js";
import {
  GRID_FS, GRID_VS, LINES_FS, LINES_VS, PICTURE_FS, PICTURE_VS,
} from "./shaders.js";

const MOST_PICTURES = 1500;

export class Around {
  constructor(gl) {
    this.gl = gl;
    this.lines = program(gl, LINES_VS, LINES_FS);
    this.picture = program(gl, PICTURE_VS, PICTURE_FS);
    this.grid = program(gl, GRID_VS, GRID_FS);
    this.nothing = gl.createVertexArray();
    this.array = gl.createVertexArray();
    this.buffer = gl.createBuffer();
    gl.bindVertexArray(this.array);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    [[0, 3, 0], [1, 3, 12], [2, 4, 24]].forEach(([at, size, offset]) => {
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, size, gl.FLOAT, false, 40, offset);
      gl.vertexAttribDivisor(at, 1);
    });
    gl.bindVertexArray(null);
  }

  /** Draw into a pane of the canvas, over the points that are there with their depth. */
  draw(pane, height, ratio, look) {
    const gl = this.gl;
    gl.enable(gl.SCISSOR_TEST);
    gl.viewport(pane.left, 0, pane.width, height);
    gl.scissor(pane.left, 0, pane.width, height);
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.depthMask(false);
    if (look.grid) this.drawGrid(pane, look);
    const segments = [];
    for (const scene of pane.scenes) {
      if (!look.cameras) continue;
      for (const camera of scene.cameras) {
        if (look.over?.camera === camera) continue;
        const reach = this.reach(scene, camera, look);
        if (camera.thumb && camera.view < MOST_PICTURES && !look.over) this.drawPicture(pane, camera, camera.thumb, reach, 0.92);
        const rgba = look.hover === camera ? look.accent : colourOf(camera, scene, look);
        segments.push(...frustum(camera, reach, look.over ? [...rgba.slice(0, 3), 0.3] : rgba));
      }
    }
    if (look.trim) segments.push(...box(look.trim, [...look.ink, 0.9]));
    this.drawLines(pane, height, segments, 0.75 * ratio, 0);
    gl.disable(gl.DEPTH_TEST);
    if (look.over && pane.scenes.includes(look.over.scene) && look.over.texture && look.opacity > 0)
      this.drawPicture(pane, look.over.camera, look.over.texture, 1, look.opacity);
    const measured = look.measured.filter(({ world }) => pane.worlds.includes(world));
    this.drawLines(pane, height, measured.map(({ ends }) => [...ends, [...look.accent.slice(0, 3), 1]]), 1.4 * ratio, 0);
    gl.disable(gl.BLEND);
    gl.disable(gl.SCISSOR_TEST);
    gl.depthMask(true);
  }

  /** The depth at which a camera's picture stands. */
  reach(scene, camera, look) {
    return (scene.frustum * look.cameraSize) / camera.halfDiagonal;
  }

  drawGrid(pane, look) {
    const gl = this.gl, { made, u } = this.grid, [{ header, gridLength }] = pane.worlds;
    gl.useProgram(made);
    gl.uniformMatrix4fv(u.u_clip, false, pane.clip);
    gl.uniform1f(u.u_height, header.home.ground);
    gl.uniform1f(u.u_reach, 5);
    gl.uniform1f(u.u_step, gridLength / header.unit);
    gl.uniform3fv(u.u_rgb, look.ink);
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  drawPicture(pane, camera, texture, reach, opacity) {
    const gl = this.gl, { made, u } = this.picture, net = camera.net(gl);
    gl.useProgram(made);
    gl.uniformMatrix4fv(u.u_clip, false, pane.clip);
    gl.uniform3fv(u.u_centre, camera.centre);
    gl.uniform1f(u.u_reach, reach);
    gl.uniform1f(u.u_opacity, opacity);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.uniform1i(u.u_rgb, 0);
    gl.bindVertexArray(net.array);
    gl.depthMask(opacity > 0.9 && reach !== 1);
    gl.drawArrays(gl.TRIANGLES, 0, net.count);
    gl.depthMask(false);
  }

  drawLines(pane, height, segments, width, nearer) {
    if (!segments.length) return;
    const gl = this.gl, { made, u } = this.lines;
    const values = new Float32Array(segments.length * 10);
    segments.forEach(([a, b, rgba], i) => values.set([...a, ...b, ...rgba], 10 * i));
    gl.useProgram(made);
    gl.uniformMatrix4fv(u.u_clip, false, pane.clip);
    gl.uniform2f(u.u_pixels, pane.width / 2, height / 2);
    gl.uniform1f(u.u_width, width);
    gl.uniform1f(u.u_nearer, nearer);
    gl.bindVertexArray(this.array);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, segments.length);
  }

  upload(bitmap) {
    return pictureTexture(this.gl, bitmap);
  }
}

/** The segments of a camera: four edges, the frame of its picture, and a tip above it. */
function frustum(camera, reach, rgba) {
  const corners = camera.corners.map((ray) => add(camera.centre, times(camera.direction(ray), reach)));
  const across = long(sub(corners[1], corners[0])), middle = times(add(corners[0], corners[1]), 0.5);
  const tip = add(middle, times(camera.top, 0.16 * across));
  const edges = corners.flatMap((corner, i) => [[camera.centre, corner, rgba], [corner, corners[(i + 1) % 4], rgba]]);
  return [...edges, [corners[0], tip, rgba], [tip, corners[1], rgba]];
}

/** Its registration, the result or its order in a row, as the points have it. */
function colourOf(camera, scene, look) {
  if (look.colour === "registration") return [...look.states(camera), 1];
  if (look.colour === "view") return [...look.hues(camera), 1];
  if (look.colour === "result") return [...look.tints(scene), 1];
  const share = scene.cameras.length > 1 ? camera.view / (scene.cameras.length - 1) : 0;
  return [1 - 0.77 * share, 0.42 + 0.3 * share, 0.29 + 0.5 * share, 0.95];
}

function box([low, high], rgba) {
  const at = (i) => [0, 1, 2].map((axis) => ((i >> axis) & 1 ? high : low)[axis]);
  const found = [];
  for (let i = 0; i < 8; i++) for (let axis = 0; axis < 3; axis++) if (!((i >> axis) & 1)) found.push([at(i), at(i | (1 << axis)), rgba]);
  return found;
}

/** The camera of a pane whose picture is at a place (device pixels from the upper left), nearest first; or null. */
export function cameraAt(around, pane, height, look, x, y) {
  let best = null;
  for (const scene of pane.scenes)
    for (const camera of scene.cameras) {
      const reach = around.reach(scene, camera, look);
      const corners = camera.corners.map((ray) => {
        const [px, py, , w] = project(pane.clip, add(camera.centre, times(camera.direction(ray), reach)));
        return w > 1e-4 ? [pane.left + ((px / w + 1) / 2) * pane.width, ((1 - py / w) / 2) * height, w] : null;
      });
      if (corners.includes(null)) continue;
      const signs = corners.map(([ax, ay], i) => {
        const [bx, by] = corners[(i + 1) % 4];
        return Math.sign((bx - ax) * (y - ay) - (by - ay) * (x - ax));
      });
      const mx = corners.reduce((sum, c) => sum + c[0], 0) / 4, my = corners.reduce((sum, c) => sum + c[1], 0) / 4;
      const isInside = signs.every((sign) => sign >= 0) || signs.every((sign) => sign <= 0);
      if ((isInside || Math.hypot(mx - x, my - y) < 9) && (!best || corners[0][2] < best.w))
        best = { scene, camera, w: corners[0][2] };
    }
  return best;
}
