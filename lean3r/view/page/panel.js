// The settings beside the view. Everything that comes from files is set as text, never as markup.
import { STATES, hue } from "./scene.js";
import { TINTS } from "./renderer.js";

export const get = (id) => document.getElementById(id);
export const SAYS = {
  refined: "refined by bundle adjustment", fallback: "from matches alone", given: "given", predicted: "predicted by the network",
  uncertain: "uncertain: may be far off",
};

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function connect(viewer) {
  const { look } = viewer;
  const slide = (id, apply, show) => {
    const input = get(id);
    const take = () => {
      apply(Number(input.value));
      get(`${id}-out`).textContent = show(Number(input.value));
      viewer.redraw();
    };
    input.addEventListener("input", take);
    take();
  };
  slide("size", (value) => (look.size = 2 ** value), (value) => (2 ** value).toFixed(1));
  slide("least", (value) => (look.least = value / 100), (value) => `${value} %`);
  slide("shade", (value) => (look.shade = value * 2), (value) => value.toFixed(2));
  slide("camera-size", (value) => (look.cameraSize = 2 ** value), (value) => (2 ** value).toFixed(1));
  for (const name of ["cull", "grid", "cameras"])
    get(name).addEventListener("change", (event) => {
      look[name] = event.target.checked;
      viewer.redraw();
    });
  for (const name of ["colour", "surface"])
    get(name).addEventListener("change", (event) => {
      look[name] = event.target.value;
      legend(viewer);
      viewer.redraw();
    });
  get("layout").addEventListener("change", (event) => {
    viewer.layout = event.target.value;
    viewer.redraw();
  });
  trimming(viewer);
}

/** What is new with other scenes. */
export function describe(viewer, about) {
  const { scenes } = viewer, [first] = scenes, titles = scenes.map((scene) => scene.header.title);
  document.title = `${titles.join(" and ")} · lean3r`;
  get("title").textContent = titles.join("  |  ");
  const points = scenes.map((scene) => amount(scene.header)).join(" | ");
  get("figures").textContent = `${points}, ${scenes.map((scene) => scene.cameras.length).join(" | ")} cameras`;
  get("results-section").hidden = scenes.length < 2;
  get("aligned").textContent = about.aligned ?? "";
  const some = (of) => scenes.some(({ header }) => of(header.points)), hasViews = some((points) => points.hasViews);
  const offered = { confidence: some((points) => points.count), view: hasViews, registration: hasViews, result: scenes.length > 1 };
  for (const option of get("colour").options) {
    const isOffered = offered[option.value] ?? true;
    option.disabled = !isOffered;
    option.hidden = option.value === "result" && !isOffered;
  }
  get("cull").disabled = !some((points) => points.hasNormals);
  get("surface-row").hidden = !scenes.some((scene) => scene.header.mesh);
  const steps = viewer.worldsOf(scenes).map((world) => world.words(Number(world.gridLength.toPrecision(1))));
  get("grid-step").textContent = `(${steps.join(" | ")})`;
  get("about-results").replaceChildren(...scenes.flatMap((scene) => facts(scene.header, scenes.length > 1)));
  get("camera-lists").replaceChildren(...scenes.flatMap((scene) => cameraList(viewer, scene)));
  get("cameras-section").hidden = !scenes.some((scene) => scene.cameras.length);
  first.header.home.low.forEach((low, axis) => {
    const high = first.header.home.high[axis], room = 0.15 * (high - low) + 0.01;
    [0, 1].forEach((end) => {
      const input = get(`trim-${SIDES[2 * axis + end].toLowerCase()}`);
      if (input.dataset.touched) return;
      Object.assign(input, { min: (low - room).toFixed(2), max: (high + room).toFixed(2) });
      input.value = end ? input.max : input.min;
    });
  });
  get("trim").dispatchEvent(new Event("input"));
  legend(viewer);
}

function amount({ points }) {
  const all = points.total.toLocaleString("en");
  return points.count < points.total ? `${points.count.toLocaleString("en")} of ${all} points` : `${all} points`;
}

function facts(header, isOneOfTwo) {
  const list = element("dl");
  for (const [label, text] of header.facts) list.append(element("dt", label), element("dd", text));
  const notes = element("ul", undefined, "notes");
  notes.append(...header.notes.map((note) => element("li", note)));
  return [...(isOneOfTwo ? [element("h3", header.title)] : []), list, ...(header.notes.length ? [notes] : [])];
}

function cameraList(viewer, scene) {
  const list = element("ul");
  list.setAttribute("aria-label", viewer.scenes.length > 1 ? `Cameras of ${scene.header.title}` : "Cameras");
  for (const camera of scene.cameras) {
    const button = element("button"), text = element("span", undefined, "text"), state = element("span", undefined, "state");
    button.type = "button";
    button.title = `${camera.name}: ${SAYS[camera.registration]}`;
    state.style.background = `rgb(${STATES[camera.registration]?.join(" ") ?? "140 140 140"})`;
    text.append(state, short(camera.name));
    text.setAttribute("aria-hidden", "true");
    button.append(element("span", undefined, "blank"), text, element("span", button.title, "unseen"));
    button.addEventListener("click", () => viewer.enter(scene, camera));
    camera.button = button;
    const item = element("li");
    item.append(button);
    list.append(item);
  }
  return viewer.scenes.length > 1 ? [element("h3", scene.header.title), list] : [list];
}

/** The end of a long name, which tells it from its neighbours. */
function short(name) {
  const letters = [...(name.length > 9 ? name.replace(/(?<=.)\.\w{1,5}$/, "") : name)];
  return letters.length > 9 ? `…${letters.slice(-8).join("")}` : letters.join("");
}

/** Show a camera's small picture in the list. */
export function showThumb({ button, bitmap }) {
  if (!button || !bitmap) return;
  const canvas = element("canvas");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.setAttribute("aria-hidden", "true");
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  button.firstChild.replaceWith(canvas);
}

export function legend(viewer) {
  const { look, scenes } = viewer, box = get("legend"), chips = [];
  const chip = (rgb, text) => {
    const row = element("div", undefined, "chip"), spot = element("i");
    spot.style.background = `rgb(${rgb.map(Math.round).join(" ")})`;
    row.append(spot, element("b", text));
    chips.push(row);
  };
  const titled = ({ header }) => scenes.length > 1 && chips.push(element("h3", header.title));
  if (!scenes.length) return;
  const [{ header }] = scenes;
  if (look.colour === "confidence") {
    for (const scene of scenes) {
      const { palette, points: { quantiles } } = scene.header;
      if (!quantiles.length) continue;
      const ramp = element("div", undefined, "ramp"), ends = element("div", undefined, "ends");
      const stops = [...Array(palette.length / 3).keys()].map((i) => `rgb(${palette.slice(3 * i, 3 * i + 3).join(" ")})`);
      ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
      for (const at of [0, 4, 8]) ends.append(element("span", quantiles[at].toLocaleString("en", { maximumSignificantDigits: 3 })));
      titled(scene);
      chips.push(ramp, ends);
    }
    chips.push(element("div", "lowest, middle and highest of all points"));
  } else if (look.colour === "registration") {
    for (const state of header.registrations) {
      const count = scenes.reduce((sum, scene) => sum + scene.cameras.filter((c) => c.registration === state).length, 0);
      if (count) chip(STATES[state], `${SAYS[state]} (${count.toLocaleString("en")})`);
    }
  } else if (look.colour === "view") {
    for (const scene of scenes) {
      const { cameras } = scene;
      titled(scene);
      for (const camera of cameras.slice(0, 12)) chip(hue(camera.view), camera.name);
      if (cameras.length > 12) chips.push(element("div", `and ${cameras.length - 12} more`));
    }
  } else if (look.colour === "result") scenes.forEach((scene) => chip(TINTS[scene.number].map((c) => c * 255), scene.header.title));
  box.replaceChildren(...chips);
}

const SIDES = ["Left", "Right", "Bottom", "Top", "Back", "Front"];

function trimming(viewer) {
  const inputs = SIDES.map((name, i) => {
    const label = element("label", undefined, "slide"), input = element("input");
    Object.assign(input, { type: "range", min: "-2", max: "2", step: "0.01", value: i % 2 ? "2" : "-2", id: `trim-${name.toLowerCase()}` });
    label.append(element("span", name), input);
    get("trim-sides").append(label);
    return input;
  });
  const apply = () => {
    const isOn = get("trim").checked, values = inputs.map((input) => Number(input.value));
    get("trim-sides").hidden = !isOn;
    const low = [0, 2, 4].map((i) => values[i]), high = [1, 3, 5].map((i) => values[i]);
    viewer.look.trim = isOn ? [low.map((v, i) => Math.min(v, high[i])), low.map((v, i) => Math.max(v, high[i]))] : null;
    viewer.redraw();
  };
  get("trim").addEventListener("input", apply);
  for (const input of inputs)
    input.addEventListener("input", () => {
      input.dataset.touched = "yes";
      apply();
    });
}
