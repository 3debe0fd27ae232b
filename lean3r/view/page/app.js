// The page of the viewer: the view, the settings, the tools and the keys, connected.
import { control } from "./controls.js";
import { connect, describe, get, showThumb } from "./panel.js";
import { Tools } from "./tools.js";
import { Viewer } from "./viewer.js";

function connected(load) {
  const viewer = new Viewer(get("view")), tools = new Tools(viewer), { look } = viewer;
  connect(viewer);
  viewer.addEventListener("thumb", (event) => showThumb(event.detail));
  const home = () => {
    if (look.over) viewer.leave();
    viewer.goTo(viewer.overview());
  };
  const panel = () => {
    const isWide = document.body.classList.toggle("wide");
    get("panel-open").setAttribute("aria-expanded", String(!isWide));
  };
  if (matchMedia("(max-width: 720px)").matches) panel();
  const help = () => get("help").showModal();
  const nextColour = () => {
    const choice = get("colour"), offered = [...choice.options].filter((option) => !option.disabled);
    const at = offered.findIndex((option) => option.value === choice.value);
    choice.value = offered[(at + 1) % offered.length].value;
    choice.dispatchEvent(new Event("change"));
  };
  const hover = (x, y) => {
    const found = tools.isMeasuring || look.over ? null : viewer.cameraAt(x, y), tip = get("tip");
    if (look.hover !== (found?.camera ?? null)) {
      look.hover = found?.camera ?? null;
      viewer.redraw();
    }
    viewer.canvas.classList.toggle("pointing", Boolean(found));
    tip.hidden = !found;
    if (found) {
      tip.textContent = found.camera.name;
      Object.assign(tip.style, { left: `${x}px`, top: `${y}px` });
    }
  };
  get("home").addEventListener("click", home);
  get("panel-open").addEventListener("click", panel);
  get("help-open").addEventListener("click", help);
  control(viewer, {
    hover,
    click: (x, y) => {
      if (tools.isMeasuring) return tools.pick(x, y);
      const found = look.over ? null : viewer.cameraAt(x, y);
      if (!found) return;
      get("tip").hidden = true;
      viewer.enter(found.scene, found.camera);
    },
    doubleClick: (x, y) => {
      const point = !tools.isMeasuring && viewer.pointAt(x, y);
      if (!point) return;
      const eye = viewer.eye.copy(), away = point.map((value, i) => value - eye.place[i]);
      const distance = Math.hypot(...away);
      eye.set({ ahead: away, distance });
      if (look.over) viewer.leave();
      viewer.goTo(eye);
    },
    keys: {
      h: home, Home: home, n: () => tools.next(1), b: () => tools.next(-1), c: nextColour, p: panel, f: () => tools.screenshot(),
      m: () => tools.measuring(!tools.isMeasuring), "?": help,
      o: () => tools.opacity(look.opacity === 0 ? 0.5 : look.opacity < 1 ? 1 : 0),
      Enter: () => tools.isMeasuring && tools.pick(viewer.canvas.clientWidth / 2, viewer.canvas.clientHeight / 2),
      Escape: () => (tools.isMeasuring ? tools.measuring(false) : tools.leave()),
    },
  });
  const changed = (about, isFirst) => {
    describe(viewer, about);
    tools.begun = null;
    tools.measures();
    tools.camera();
    viewer.say(about.stage ?? "");
    if (isFirst) {
      viewer.renderer.resize(1);
      viewer.eye.set({ ...viewer.overview() });
    }
  };
  window.lean3r = { viewer, tools }; // for scripts
  load(viewer, changed).catch((error) => fail(error, viewer));
}

function fail(error, viewer) {
  document.documentElement.dataset.state = "failed";
  get("status").textContent = error.message;
  if (viewer) viewer.loading = false;
  console.error(error);
}

/** Connect everything, then load what there is to show: `load(viewer, changed)` sets the viewer's scenes, and calls
 * `changed(about, isFirst)` when it has. */
export function begin(load) {
  try {
    connected(load);
  } catch (error) {
    fail(error);
  }
}
