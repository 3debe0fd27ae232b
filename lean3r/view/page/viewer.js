// The view: its scenes, its eye, and when to draw what.
import { Around, cameraAt } from "./around.js";
import { Eye, between, framing } from "./eye.js";
import { add, clamp, dot, long, project, times, unit } from "./math.js";
import { Renderer, TINTS } from "./renderer.js";
import { STATES, Scene, hue } from "./scene.js";

const REST = 140, FLIGHT = 700; // milliseconds until the view rests, and of a flight
const calm = matchMedia("(prefers-reduced-motion: reduce)"), light = matchMedia("(prefers-color-scheme: light)");

export class Viewer extends EventTarget {
  constructor(canvas) {
    super();
    this.canvas = canvas;
    this.renderer = new Renderer(canvas);
    this.gl = this.renderer.gl;
    this.around = new Around(this.gl);
    this.scenes = [];
    this.eye = new Eye();
    this.layout = "side";
    this.need = "whole";
    this.changedAt = 0;
    this.look = {
      colour: "picture", least: 0, size: 1, shade: 0.5, cull: true, surface: "points", trim: null, grid: true,
      cameras: true, cameraSize: 1, hover: null, over: null, opacity: 0.5, measured: [],
      states: (camera) => (STATES[camera.registration] ?? [140, 140, 140]).map((c) => c / 255),
      hues: (camera) => hue(camera.view).map((c) => c / 255),
      tints: (scene) => TINTS[scene.number],
    };
    this.theme();
    light.addEventListener("change", () => this.theme());
    new ResizeObserver(() => this.redraw()).observe(canvas);
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      this.say("The graphics processor was lost. Load the page again.");
    });
  }

  say(text) { document.getElementById("status").textContent = text; }
  tell(name) { this.dispatchEvent(new Event(name)); }

  theme() {
    const style = getComputedStyle(document.documentElement);
    const rgb = (name) => style.getPropertyValue(name).trim().split(" ").map((c) => Number(c) / 255);
    Object.assign(this.look, { top: rgb("--sky-top"), bottom: rgb("--sky-bottom"), ink: rgb("--ink-rgb") });
    this.look.accent = light.matches ? [0.03, 0.35, 0.52, 1] : [0.36, 0.78, 0.96, 1];
    this.redraw();
  }

  /** Show these headers, each with the parts that it names; the eye stays if it is no first time. Measured lengths go:
   * their ends are places of the page, which are others in the world from now on. */
  set(headers, partsOf) {
    this.scenes.forEach((scene) => scene.free());
    const before = this.look.over && { number: this.look.over.scene.number, name: this.look.over.camera.name };
    this.scenes = headers.map((header, number) => new Scene(this.gl, number, header, partsOf(number)));
    Object.assign(this.look, { over: null, hover: null, measured: [] });
    const over = before && this.scenes[before.number]?.cameras.find((camera) => camera.name === before.name);
    if (over) this.look.over = { scene: this.scenes[before.number], camera: over, texture: null };
    this.redraw();
  }

  /** The results in whose worlds scenes are shown: their own, or that of the first for a second moved into it. */
  worldsOf(scenes) { return [...new Set(scenes.map(({ header }) => this.scenes[header.world]))]; }

  panes() {
    const { width } = this.renderer.target, scenes = this.scenes;
    const pane = (shown, left, across) => ({ scenes: shown, worlds: this.worldsOf(shown), eye: this.eye, left, width: across });
    if (scenes.length < 2) return [pane(scenes, 0, width)];
    if (this.layout === "over") return [pane(scenes, 0, width)];
    if (this.layout === "first") return [pane([scenes[0]], 0, width)];
    if (this.layout === "second") return [pane([scenes[1]], 0, width)];
    const half = Math.floor(width / 2);
    return [pane([scenes[0]], 0, half - 1), pane([scenes[1]], half + 1, width - half - 1)];
  }

  /** Draw again: quickly if that is much, then whole. */
  redraw() {
    this.need = "quick";
    this.changedAt = performance.now();
    if (this.scenes.length) this.mark();
    this.wake();
  }

  wake() {
    if (this.frame) return;
    this.frame = requestAnimationFrame((now) => {
      this.frame = null;
      this.tick(now);
    });
  }

  tick(now) {
    const took = now - (this.lastTick ?? now - 1000);
    this.lastTick = now;
    if (this.flight) this.fly(now);
    this.step?.(Math.min(took, 100) / 1000);
    const ratio = Math.min(devicePixelRatio || 1, 2);
    if (this.renderer.resize(ratio)) this.need = this.need === "none" ? "quick" : this.need;
    if (!this.scenes.length || this.gl.isContextLost()) return;
    if (this.need === "quick") {
      this.adapt(took);
      this.renderer.begin(this.panes(), this.look, true);
      const isWhole = !this.renderer.isThinned;
      this.renderer.advance();
      this.present();
      this.need = isWhole ? "none" : "rest";
    } else if (this.need === "rest" && now - this.changedAt > REST) {
      this.renderer.begin(this.panes(), this.look, false);
      this.need = "more";
    }
    if (this.need === "more" && this.renderer.advance()) {
      this.present();
      this.need = "none";
    }
    this.mark();
    if (this.need !== "none" || this.flight || this.isFlying) this.wake();
    else this.lastTick = undefined;
  }

  /** The state of the page, for whoever waits for it. */
  mark() {
    const isLoaded = this.scenes.length && this.scenes.every((scene) => scene.isWhole) && !this.loading;
    const state = !isLoaded ? "loading" : this.need === "none" && !this.flight ? "still" : "drawing";
    if (document.documentElement.dataset.state !== state) document.documentElement.dataset.state = state;
  }

  /** As many points while the view moves as leave it fluent. */
  adapt(took) {
    if (took > 200 || took <= 0) return;
    if (took > 45) this.renderer.budget = Math.max(60_000, this.renderer.budget * 0.8);
    else if (took < 24) this.renderer.budget = Math.min(12_000_000, this.renderer.budget * 1.1);
  }

  present() {
    const { target } = this.renderer;
    this.renderer.show();
    for (const pane of this.renderer.panes) this.around.draw(pane, target.height, this.renderer.ratio, this.look);
    document.documentElement.dataset.drawn = "yes";
    this.tell("drawn");
  }

  /** The place on the canvas, in CSS pixels, of a point of the page in a pane; null behind the eye. */
  placeOf(point, pane) {
    const [x, y, , w] = project(pane.clip, point), ratio = this.renderer.ratio;
    if (w < 1e-6) return null;
    return [(pane.left + ((x / w + 1) / 2) * pane.width) / ratio, (((1 - y / w) / 2) * this.renderer.target.height) / ratio];
  }

  paneAt(x) {
    const at = x * this.renderer.ratio, { panes } = this.renderer;
    return panes.find((pane) => at < pane.left + pane.width) ?? panes[panes.length - 1];
  }

  /** The point of the surface under a place of the canvas (CSS pixels); null where nothing is near. */
  pointAt(x, y) {
    const ratio = this.renderer.ratio, pane = this.paneAt(x), height = this.renderer.target.height;
    const near = this.renderer.probe(x * ratio, y * ratio).filter((each) => each.depth < Infinity);
    if (!near.length) return null;
    const away = ({ at }) => Math.hypot(at[0] - x * ratio, at[1] - y * ratio);
    const { at, depth } = near.reduce((a, b) => (away(b) < away(a) ? b : a));
    const ray = pane.eye.ray(((at[0] - pane.left) / pane.width) * 2 - 1, 1 - (at[1] / height) * 2, pane.width / height);
    return add(pane.eye.place, times(ray, depth));
  }

  cameraAt(x, y) {
    const ratio = this.renderer.ratio;
    if (!this.look.cameras || !this.renderer.panes) return null;
    return cameraAt(this.around, this.paneAt(x), this.renderer.target.height, this.look, x * ratio, y * ratio);
  }

  /** The eye that sees the whole of the scenes that are shown. */
  overview() {
    const homes = this.panes().flatMap(({ scenes }) => scenes.map(({ header }) => header.home)), [{ looksDown }] = homes;
    const sample = homes.flatMap((home) => home.sample);
    const azimuth = (-18 * Math.PI) / 180, elevation = ((looksDown ? 42 : 22) * Math.PI) / 180;
    const level = [Math.sin(-azimuth), 0, -Math.cos(azimuth)], cos = Math.cos(elevation);
    const ahead = unit([level[0] * cos, -Math.sin(elevation), level[2] * cos]);
    const pane = this.canvas.clientWidth / this.canvas.clientHeight / (this.panesAcross());
    return framing(sample, ahead, 0.72, pane || 1);
  }

  panesAcross() { return this.scenes.length > 1 && this.layout === "side" ? 2 : 1; }

  goTo(eye, then) {
    if (calm.matches || document.hidden) {
      this.eye.set({ ...eye });
      then?.();
    } else this.flight = { from: this.eye.copy(), to: eye, start: performance.now(), then };
    this.redraw();
  }

  fly(now) {
    const { from, to, start, then } = this.flight, t = clamp((now - start) / FLIGHT, 0, 1);
    this.eye.set({ ...between(from, to, t) });
    this.need = "quick";
    this.changedAt = now;
    if (t >= 1) {
      this.flight = null;
      then?.();
    }
  }

  /** The eye of a camera, with room for its whole picture. */
  eyeOf(camera) {
    const aspect = this.canvas.clientWidth / this.canvas.clientHeight / this.panesAcross();
    const across = Math.max(...camera.corners.map(([x]) => Math.abs(x))), down = Math.max(...camera.corners.map(([, y]) => Math.abs(y)));
    const eye = new Eye();
    const away = clamp(-dot(camera.centre, camera.ahead) || 1, 0.1, 20), fov = 2 * Math.atan(Math.max(down, across / aspect) * 1.12);
    eye.set({ place: camera.centre, ahead: camera.ahead, top: camera.top, distance: away, fov: clamp(fov, 0.05, 2.6) });
    return eye;
  }

  /** The user moved the eye. */
  moved() {
    this.flight = null;
    if (this.look.over) this.leave();
    if (Math.abs(this.eye.fov - 0.72) > 1e-3) this.eye.set({ fov: this.eye.fov + 0.12 * (0.72 - this.eye.fov) });
    this.redraw();
  }

  enter(scene, camera) {
    this.look.over = { scene, camera, texture: null };
    this.tell("camera");
    this.goTo(this.eyeOf(camera));
  }

  leave() {
    this.look.over = null;
    this.tell("camera");
    this.redraw();
  }

  get reach() { return long(this.eye.place) + 1; }
}
