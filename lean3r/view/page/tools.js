// What one does with the view: go to cameras, measure, save pictures and videos.
import { long, mix, sub } from "./math.js";
import { SAYS, element, get } from "./panel.js";

const TURN_MS = 10_000;

export class Tools {
  constructor(viewer) {
    this.viewer = viewer;
    this.isMeasuring = false;
    this.begun = null;
    this.shown = "photo";
    viewer.addEventListener("camera", () => this.camera());
    viewer.addEventListener("drawn", () => this.labels());
    get("camera-before").addEventListener("click", () => this.next(-1));
    get("camera-after").addEventListener("click", () => this.next(1));
    get("camera-leave").addEventListener("click", () => this.leave());
    get("opacity").addEventListener("input", () => this.opacity(Number(get("opacity").value)));
    get("camera-shown").addEventListener("change", (event) => {
      this.shown = event.target.value;
      this.camera();
    });
    get("measure").addEventListener("click", () => this.measuring(!this.isMeasuring));
    get("screenshot").addEventListener("click", () => this.screenshot());
    get("video").addEventListener("click", () => this.video());
    get("video").disabled = !window.MediaRecorder || !viewer.canvas.captureStream;
  }

  opacity(value) {
    get("opacity").value = value;
    this.viewer.look.opacity = value;
    this.viewer.redraw();
  }

  /** The bar of the camera that the view is in. */
  async camera() {
    const { viewer } = this, { over } = viewer.look;
    get("camera-bar").hidden = !over;
    get("keys").hidden = Boolean(over);
    viewer.scenes.forEach((scene) => scene.cameras.forEach((camera) =>
      camera.button?.setAttribute("aria-current", String(camera === over?.camera))));
    if (!over) return;
    const { camera, scene } = over;
    get("camera-name").textContent = camera.name;
    get("camera-name").title = camera.name;
    const place = `${camera.view + 1} of ${scene.cameras.length}`;
    get("camera-state").textContent = `${place}, ${SAYS[camera.registration]}`;
    camera.button?.scrollIntoView({ block: "nearest" });
    for (const kind of ["photo", "depth", "conf"]) {
      if (camera.large[kind] !== undefined) continue;
      camera.large[kind] = null;
      const bitmap = await scene.parts.picture(`${kind}-${camera.view}`);
      camera.large[kind] = bitmap ? viewer.around.upload(bitmap) : camera.thumb && kind === "photo" ? camera.thumb : false;
    }
    if (viewer.look.over !== over) return;
    const kinds = ["photo", "depth", "conf"].filter((kind) => camera.large[kind]);
    const shown = kinds.includes(this.shown) ? this.shown : kinds[0];
    for (const input of document.querySelectorAll("#camera-shown input")) {
      input.disabled = !kinds.includes(input.value);
      input.checked = input.value === shown;
    }
    over.texture = camera.large[shown] || null;
    viewer.redraw();
  }

  next(step) {
    const { viewer } = this, { over } = viewer.look, scene = over?.scene ?? viewer.scenes[0];
    const count = scene?.cameras.length ?? 0;
    if (!count) return;
    const view = over ? (over.camera.view + step + count) % count : step > 0 ? 0 : count - 1;
    viewer.enter(scene, scene.cameras[view]);
  }

  leave() {
    if (!this.viewer.look.over) return;
    this.viewer.leave();
    this.viewer.canvas.focus();
  }

  measuring(isOn) {
    this.isMeasuring = isOn;
    this.begun = null;
    get("measure").setAttribute("aria-pressed", String(isOn));
    get("cross").hidden = !isOn;
    this.viewer.canvas.classList.toggle("measuring", isOn);
    if (isOn) this.viewer.canvas.focus();
    this.viewer.say(isOn ? "Click two points, or press Enter for the one under the cross." : "");
  }

  /** A click while measuring. */
  pick(x, y) {
    const { viewer, begun } = this, [world, other] = viewer.paneAt(x).worlds, point = viewer.pointAt(x, y);
    if (other) return viewer.say("The results have no size in common. Show them side by side, or only one.");
    if (!point) return viewer.say("There is no point here. Click on the surface.");
    if (begun && begun.world !== world) return viewer.say("The other end is in another result. Click in the same one.");
    if (!begun) {
      this.begun = { point, world };
      return viewer.say("Now the other end.");
    }
    viewer.look.measured.push({ ends: [begun.point, point], world });
    viewer.say(world.measure(long(sub(point, begun.point))));
    this.begun = null;
    this.measures();
    viewer.redraw();
  }

  measures() {
    const { viewer } = this, { measured } = viewer.look;
    get("measures").replaceChildren(...measured.map(({ ends: [a, b], world }, i) => {
      const row = element("div"), remove = element("button", "✕");
      remove.setAttribute("aria-label", `Remove length ${i + 1}`);
      remove.addEventListener("click", () => {
        measured.splice(i, 1);
        this.measures();
        viewer.redraw();
        get("measure").focus();
      });
      row.append(element("span", world.measure(long(sub(a, b)))), remove);
      return row;
    }));
  }

  /** Texts at places of the scene. */
  labels() {
    const { viewer } = this, { panes } = viewer.renderer, made = [];
    for (const pane of panes) {
      for (const { ends: [a, b], world } of viewer.look.measured) {
        const place = pane.worlds.includes(world) && viewer.placeOf(mix(a, b, 0.5), pane);
        if (!place) continue;
        const label = element("p", world.measure(long(sub(a, b))), "length");
        Object.assign(label.style, { left: `${place[0]}px`, top: `${place[1]}px` });
        made.push(label);
      }
      if (viewer.scenes.length > 1) {
        const label = element("p", pane.scenes.map((scene) => scene.header.title).join(" and "), "pane");
        label.style.left = `${pane.left / viewer.renderer.ratio + 16}px`;
        made.push(label);
      }
    }
    get("labels").replaceChildren(...made);
  }

  screenshot() {
    const { viewer } = this, { canvas } = viewer;
    viewer.present();
    const copy = element("canvas"), ratio = viewer.renderer.ratio;
    Object.assign(copy, { width: canvas.width, height: canvas.height });
    const pen = copy.getContext("2d");
    pen.drawImage(canvas, 0, 0);
    Object.assign(pen, { font: `600 ${14 * ratio}px system-ui, sans-serif`, textAlign: "center", lineWidth: 4 * ratio });
    for (const label of document.querySelectorAll("#labels .length")) {
      const at = [parseFloat(label.style.left) * ratio, parseFloat(label.style.top) * ratio - 10 * ratio];
      pen.strokeStyle = "#000";
      pen.fillStyle = "#fff";
      pen.strokeText(label.textContent, ...at);
      pen.fillText(label.textContent, ...at);
    }
    copy.toBlob((blob) => save(blob, "lean3r.png"));
  }

  /** One turn round the pivot, recorded as it is shown. */
  video() {
    const { viewer } = this, button = get("video");
    if (this.recorder) {
      this.recorder.stop();
      return;
    }
    const kinds = ["video/webm;codecs=vp9", "video/webm", "video/mp4"];
    const kind = kinds.find((each) => MediaRecorder.isTypeSupported(each));
    const stream = viewer.canvas.captureStream(30), pieces = [];
    const recorder = (this.recorder = new MediaRecorder(stream, { mimeType: kind, videoBitsPerSecond: 12_000_000 }));
    const start = performance.now();
    let turned = 0;
    const step = viewer.step;
    viewer.isFlying = true;
    viewer.step = (seconds) => {
      step?.(seconds);
      const done = Math.min(1, (performance.now() - start) / TURN_MS);
      viewer.eye.orbit((done - turned) * 2 * Math.PI, 0);
      turned = done;
      viewer.redraw();
      viewer.say(`Recording: ${Math.round(100 * done)} %`);
      if (done >= 1 && recorder.state === "recording") recorder.stop();
    };
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      Object.assign(viewer, { step, isFlying: false });
      this.recorder = null;
      button.setAttribute("aria-pressed", "false");
      viewer.say("");
      stream.getTracks().forEach((track) => track.stop());
      save(new Blob(pieces, { type: kind }), kind.includes("mp4") ? "lean3r.mp4" : "lean3r.webm");
    };
    if (viewer.look.over) viewer.leave();
    button.setAttribute("aria-pressed", "true");
    recorder.start(500);
    viewer.wake();
  }
}

export function save(blob, name) {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
