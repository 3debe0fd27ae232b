// Draws scenes: points that are few while the view moves and all once it rests, then what stands around them.
import { Target, program } from "./gl.js";
import { boxMatrix, dot, long, multiply, sub } from "./math.js";
import {
  MESH_FS, MESH_VS, POINTS_FS, POINTS_VS, PROBE_FS, SHOW_FS, SKY_FS, WHOLE_VS,
} from "./shaders.js";

const EVERYWHERE = [[-1e30, -1e30, -1e30], [1e30, 1e30, 1e30]];
export const MODES = { picture: 0, confidence: 1, view: 2, registration: 2, result: 3 };
export const TINTS = [[1.0, 0.55, 0.25], [0.3, 0.65, 1.0]];

/** Whether there is no graphics processor: then smooth edges would cost most of the time. */
function drawsInSoftware() {
  const gl = document.createElement("canvas").getContext("webgl2");
  const info = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = info ? String(gl.getParameter(info.UNMASKED_RENDERER_WEBGL)) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|software|basic render/i.test(name);
}

export class Renderer {
  constructor(canvas) {
    this.canvas = canvas;
    this.isSoftware = drawsInSoftware();
    const options = { antialias: !this.isSoftware, alpha: false, powerPreference: "high-performance" };
    const gl = canvas.getContext("webgl2", options);
    if (!gl) throw new Error("This browser offers no WebGL 2, which this page draws with.");
    this.gl = gl;
    this.samples = this.isSoftware ? 1 : Math.min(4, gl.getParameter(gl.MAX_SAMPLES));
    this.budget = this.isSoftware ? 150_000 : 1_500_000; // points while the view moves
    this.rest = this.isSoftware ? 400_000 : 4_000_000; // points at once while it rests
    this.programs = {
      points: program(gl, POINTS_VS, POINTS_FS), mesh: program(gl, MESH_VS, MESH_FS),
      sky: program(gl, WHOLE_VS, SKY_FS), show: program(gl, WHOLE_VS, SHOW_FS),
      probe: program(gl, WHOLE_VS, PROBE_FS),
    };
    this.nothing = gl.createVertexArray();
    this.queue = [];
    this.target = null;
    this.lowPixels = [0, 0];
    this.highPixels = gl.getParameter(gl.ALIASED_POINT_SIZE_RANGE)[1];
  }

  /** Fit the canvas to its place; true if its size changed. */
  resize(ratio) {
    const width = Math.max(1, Math.round(this.canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(this.canvas.clientHeight * ratio));
    this.ratio = ratio;
    if (this.target && this.target.width === width && this.target.height === height) return false;
    this.canvas.width = width;
    this.canvas.height = height;
    this.target?.free();
    this.target = new Target(this.gl, width, height, this.samples);
    return true;
  }

  /** Begin a picture of `panes`: [{scenes, eye, left, width}]. While the view moves, with few points. */
  begin(panes, look, isMoving) {
    const gl = this.gl;
    this.panes = panes;
    this.look = look;
    this.isMoving = isMoving;
    this.target.begin();
    gl.disable(gl.SCISSOR_TEST);
    gl.viewport(0, 0, this.target.width, this.target.height);
    gl.depthMask(true);
    gl.clearDepth(1);
    gl.clear(gl.DEPTH_BUFFER_BIT);
    this.fill(this.programs.sky, () => {
      gl.uniform3fv(this.programs.sky.u.u_top, look.top);
      gl.uniform3fv(this.programs.sky.u.u_bottom, look.bottom);
    });
    this.queue = [];
    for (const pane of panes) {
      pane.clip = pane.eye.clip(pane.width / this.target.height);
      pane.pixels = this.target.height / (2 * Math.tan(pane.eye.fov / 2));
      for (const scene of pane.scenes) {
        if (scene.mesh && look.surface !== "points") this.queue.push({ pane, scene, cost: 0 });
        if (!scene.mesh || look.surface !== "mesh") this.plan(pane, scene);
      }
    }
    if (isMoving) this.thin();
  }

  /** The chunks of a scene that are in the picture, each with as many points as it has room for. */
  plan(pane, scene) {
    const { eye, clip } = pane, side = Math.max(pane.width, this.target.height) / 2 / pane.pixels;
    const cone = Math.hypot(1, side * 1.5);
    for (const chunk of scene.chunks) {
      if (!chunk.loaded) continue;
      const away = sub(chunk.middle, eye.place), ahead = dot(away, eye.ahead), r = chunk.radius;
      if (ahead < -r || ahead - r > eye.far) continue;
      if (Math.sqrt(Math.max(0, dot(away, away) - ahead * ahead)) > ahead * side * 1.5 + r * cone) continue;
      const distance = Math.max(long(away), r * 0.5, 1e-6), across = (r / distance) * pane.pixels;
      const room = Math.max(64, across * across * 6), cost = this.fit(chunk, room);
      this.queue.push({ pane, scene, chunk, cost, distance });
    }
    this.queue.sort((a, b) => (a.distance ?? 0) - (b.distance ?? 0));
  }

  /** The end of the level of a chunk that so many points suffice for. */
  fit(chunk, room) {
    return chunk.ends.find((end) => end >= room) ?? chunk.loaded;
  }

  thin() {
    const wanted = this.queue.reduce((sum, each) => sum + each.cost, 0);
    this.isThinned = wanted > this.budget;
    if (!this.isThinned) return;
    for (const each of this.queue)
      if (each.chunk) {
        const most = (each.cost * this.budget) / wanted;
        each.cost = each.chunk.ends.findLast((end) => end <= most) ?? each.chunk.ends[0];
      }
  }

  /** Draw some of what is left; true once all is drawn. */
  advance() {
    const gl = this.gl;
    this.target.begin();
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.SCISSOR_TEST);
    if (this.samples > 1) gl.enable(gl.SAMPLE_ALPHA_TO_COVERAGE);
    let left = this.isMoving ? Infinity : this.rest;
    while (this.queue.length && left > 0) {
      const each = this.queue.shift(), { pane } = each;
      gl.viewport(pane.left, 0, pane.width, this.target.height);
      gl.scissor(pane.left, 0, pane.width, this.target.height);
      if (each.chunk) this.drawChunk(each);
      else this.drawMesh(each);
      left -= each.cost + 1000;
    }
    gl.disable(gl.SAMPLE_ALPHA_TO_COVERAGE);
    gl.disable(gl.SCISSOR_TEST);
    if (this.queue.length) return false;
    this.target.resolve();
    return true;
  }

  use({ made, u }, { pane, scene }) {
    const gl = this.gl, { look } = this, [low, high] = look.trim ?? EVERYWHERE;
    gl.useProgram(made);
    gl.uniform3fv(u.u_eye, pane.eye.place);
    gl.uniform3fv(u.u_trim_low, low);
    gl.uniform3fv(u.u_trim_high, high);
    gl.uniform3fv(u.u_tint, TINTS[scene.number] ?? [1, 1, 1]);
    gl.uniform1i(u.u_cull, look.cull ? 1 : 0);
  }

  drawChunk(each) {
    const gl = this.gl, { look } = this, { pane, scene, chunk, cost } = each, { u } = this.programs.points;
    this.use(this.programs.points, each);
    const bigger = 1.5 * look.size * Math.min(8, Math.sqrt(chunk.total / cost)), grow = Math.log2(bigger);
    gl.uniformMatrix4fv(u.u_clip, false, multiply(pane.clip, boxMatrix(chunk.low, chunk.side)));
    gl.uniform3fv(u.u_low, chunk.low);
    gl.uniform3fv(u.u_side, chunk.side);
    gl.uniform2f(u.u_spacing, scene.spacing[0] + grow, scene.spacing[1] + grow);
    gl.uniform2f(u.u_size_limits, 1.2 * this.ratio, Math.min(48 * this.ratio, this.highPixels - 2));
    gl.uniform1i(u.u_smooth, this.samples > 1 ? 1 : 0);
    gl.uniform1f(u.u_pixels, pane.pixels);
    gl.uniform1f(u.u_least, look.least);
    gl.uniform1i(u.u_mode, MODES[look.colour]);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, look.colour === "registration" ? scene.viewColours.registration : scene.viewColours.view);
    gl.uniform1i(u.u_views, 0);
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D, scene.palette);
    gl.uniform1i(u.u_palette, 1);
    gl.bindVertexArray(chunk.array);
    gl.drawArrays(gl.POINTS, 0, cost);
  }

  drawMesh(each) {
    const gl = this.gl, { pane, scene } = each, { u } = this.programs.mesh;
    this.use(this.programs.mesh, each);
    gl.uniformMatrix4fv(u.u_clip, false, pane.clip);
    gl.uniform1i(u.u_mode, this.look.colour === "result" ? 3 : this.look.surface === "plain" ? 4 : 0);
    gl.bindVertexArray(scene.mesh.array);
    gl.drawElements(gl.TRIANGLES, scene.mesh.count, gl.UNSIGNED_INT, 0);
  }

  /** Put the finished picture onto the canvas, shaded by its depth. */
  show() {
    const gl = this.gl, { u } = this.programs.show, { near, far } = this.panes[0].eye;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, this.target.width, this.target.height);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.ALWAYS);
    this.fill(this.programs.show, () => {
      gl.activeTexture(gl.TEXTURE0);
      gl.bindTexture(gl.TEXTURE_2D, this.target.rgb);
      gl.uniform1i(u.u_rgb, 0);
      gl.activeTexture(gl.TEXTURE1);
      gl.bindTexture(gl.TEXTURE_2D, this.target.depth);
      gl.uniform1i(u.u_depth, 1);
      const reach = 1.6 * this.ratio;
      gl.uniform2f(u.u_texel, reach / this.target.width, reach / this.target.height);
      gl.uniform2f(u.u_range, near, far);
      gl.uniform1f(u.u_shade, this.look.shade);
    }, true);
    gl.depthFunc(gl.LEQUAL);
  }

  fill({ made }, prepare, keepsDepth = false) {
    const gl = this.gl;
    gl.useProgram(made);
    if (!keepsDepth) gl.disable(gl.DEPTH_TEST);
    gl.depthMask(keepsDepth);
    prepare();
    gl.bindVertexArray(this.nothing);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.depthMask(true);
  }

  /** Distances ahead of the eye in a square of pixels around a place of the canvas (device pixels from the upper left),
   * row by row; Infinity where nothing is. */
  probe(x, y, reach = 4) {
    const gl = this.gl, side = 2 * reach + 1, bytes = new Uint8Array(side * side * 4);
    if (!this.probed) {
      this.probed = gl.createFramebuffer();
      const buffer = gl.createRenderbuffer();
      gl.bindRenderbuffer(gl.RENDERBUFFER, buffer);
      gl.renderbufferStorage(gl.RENDERBUFFER, gl.RGBA8, side, side);
      gl.bindFramebuffer(gl.FRAMEBUFFER, this.probed);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.RENDERBUFFER, buffer);
    }
    const left = Math.min(Math.max(0, Math.round(x) - reach), Math.max(0, this.target.width - side));
    const low = Math.min(Math.max(0, this.target.height - 1 - Math.round(y) - reach), Math.max(0, this.target.height - side));
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.probed);
    gl.viewport(0, 0, side, side);
    this.fill(this.programs.probe, () => {
      gl.activeTexture(gl.TEXTURE0);
      gl.bindTexture(gl.TEXTURE_2D, this.target.depth);
      gl.uniform1i(this.programs.probe.u.u_depth, 0);
      gl.uniform2i(this.programs.probe.u.u_corner, left, low);
    });
    gl.readPixels(0, 0, side, side, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    const { near, far } = this.panes[0].eye, found = [];
    for (let i = 0; i < side * side; i++) {
      const d = ((bytes[4 * i] << 16) | (bytes[4 * i + 1] << 8) | bytes[4 * i + 2]) / 16777215;
      const at = [left + (i % side) + 0.5, this.target.height - (low + Math.floor(i / side)) - 0.5];
      found.push({ at, depth: d >= 1 ? Infinity : (near * far) / (far - d * (far - near)) });
    }
    return found;
  }
}
