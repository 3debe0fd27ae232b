// Mouse, fingers and keys.
import { add, long, sub, times } from "./math.js";

const TURN = 0.006, KEY_TURN = 0.06, CLICK = 5;
const FLY = { KeyW: [0, 0, 1], KeyS: [0, 0, -1], KeyA: [-1, 0, 0], KeyD: [1, 0, 0], KeyE: [0, 1, 0], KeyQ: [0, -1, 0] };

/** `act` holds what clicks and letters do: click(x, y), hover(x, y), doubleClick(x, y), keys: {letter: function}. */
export function control(viewer, act) {
  const { canvas } = viewer, held = new Map(), flying = new Set();
  let travelled = 0, before = null, speed = 1;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const spread = () => {
    const [a, b] = [...held.values()];
    return { middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], length: Math.hypot(a[0] - b[0], a[1] - b[1]) || 1 };
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    held.set(event.pointerId, at(event));
    travelled = held.size > 1 ? Infinity : 0;
    before = held.size === 2 ? spread() : null;
    canvas.classList.add("turning");
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), last = held.get(event.pointerId);
    if (!last) {
      if (event.pointerType === "mouse") act.hover(...now);
      return;
    }
    const [dx, dy] = [now[0] - last[0], now[1] - last[1]];
    travelled += Math.hypot(dx, dy);
    held.set(event.pointerId, now);
    if (travelled < CLICK) return;
    const height = canvas.clientHeight;
    if (held.size === 2) {
      const next = spread();
      viewer.eye.zoom(before.length / next.length);
      viewer.eye.pan(-(next.middle[0] - before.middle[0]) / height, (next.middle[1] - before.middle[1]) / height);
      before = next;
    } else if (event.buttons & 6 || event.shiftKey || event.ctrlKey || event.metaKey) viewer.eye.pan(-dx / height, dy / height);
    else viewer.eye.orbit(-dx * TURN, -dy * TURN);
    viewer.moved();
  });
  const up = (event) => {
    if (held.delete(event.pointerId) && travelled < CLICK && event.type === "pointerup" && event.button === 0) act.click(...at(event));
    travelled = held.size ? Infinity : travelled;
    before = null;
    if (!held.size) canvas.classList.remove("turning");
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => act.hover(-1, -1));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("dblclick", (event) => act.doubleClick(...at(event)));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    const factor = Math.exp(Math.max(-120, Math.min(120, event.deltaY * lines)) * 0.0025);
    towards(viewer, ...at(event), factor);
    viewer.moved();
  }, { passive: false });

  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    speed = event.shiftKey ? 3 : 1;
    const { eye } = viewer, far = event.shiftKey;
    const turn = (x, y) => () => (far ? eye.pan(x * 0.05, -y * 0.05) : eye.orbit(x * KEY_TURN, y * KEY_TURN));
    const steps = { ArrowLeft: turn(-1, 0), ArrowRight: turn(1, 0), ArrowUp: turn(0, -1), ArrowDown: turn(0, 1),
      "+": () => eye.zoom(0.9), "=": () => eye.zoom(0.9), "-": () => eye.zoom(1 / 0.9) };
    if (FLY[event.code]) {
      flying.add(event.code);
      viewer.isFlying = true;
      viewer.wake();
    } else if (steps[event.key]) {
      steps[event.key]();
      viewer.moved();
    } else return;
    event.preventDefault();
  });
  const stop = (event) => {
    if (event.code) flying.delete(event.code);
    else flying.clear();
    viewer.isFlying = flying.size > 0;
  };
  addEventListener("keyup", stop);
  addEventListener("blur", stop);
  viewer.step = (seconds) => {
    if (!flying.size) return;
    const way = [...flying].reduce((sum, code) => add(sum, FLY[code]), [0, 0, 0]);
    if (long(way) < 0.1) return;
    viewer.eye.fly(...times(way, seconds * speed * Math.min(1.2, Math.max(0.15, viewer.eye.distance * 0.7))));
    viewer.moved();
  };

  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("select, input:not([type=checkbox]):not([type=radio]):not([type=range])");
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping || document.querySelector("dialog[open]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "Enter" && event.target !== canvas) return;
    if (key === "Home" && event.target.matches("input")) return;
    act.keys[key]?.(event);
  });
}

/** Zoom towards what is under the pointer. */
function towards(viewer, x, y, factor) {
  const { eye } = viewer, pane = viewer.renderer.panes && viewer.paneAt(x);
  if (!pane) return;
  const ratio = viewer.renderer.ratio, width = pane.width / ratio, height = viewer.canvas.clientHeight;
  const ray = eye.ray(((x - pane.left / ratio) / width) * 2 - 1, 1 - (y / height) * 2, width / height);
  const aim = add(eye.place, times(ray, eye.distance));
  const distance = Math.min(400, Math.max(0.004, eye.distance * factor));
  eye.set({ place: sub(aim, times(sub(aim, eye.place), distance / eye.distance)), distance });
}
