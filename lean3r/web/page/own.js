// A page that makes a cloud from photos by itself: choose, wait, look, save.
import { begin } from "./app.js";
import { closeNetwork, loadEngine, obstacle } from "./engine.js";
import { fill } from "./loading.js";
import { element, get } from "./panel.js";
import { given } from "./parts.js";
import { camerasOf, plyOf } from "./saving.js";
import { save } from "./tools.js";

const ORDER = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const MUCH = 0.2; // log depth

/** The parts of a result that are here already. */
class FoundParts {
  constructor(found) { this.found = found; }

  async unpacked(name) { return this.found.levels[Number(name.slice("points-".length))]; }

  async picture(name) {
    const [kind, view] = name.split("-");
    return { photo: this.found.photos, depth: this.found.depths, conf: this.found.confs }[kind][view];
  }

  async *thumbs() { yield* this.found.photos.entries(); }
}

class Session {
  constructor(viewer, changed) {
    Object.assign(this, { viewer, changed, about: given(), engine: null, worker: null, found: null });
    // A worker of the page's own text keeps the page's policy; one that a server sends would have none.
    this.script = URL.createObjectURL(new Blob([this.about.worker], { type: "text/javascript" }));
    get("panel").prepend(get("own"));
    get("how-many").textContent = `or drop them here: 2 to ${this.about.most}, JPEG, PNG or WebP`;
    get("files").addEventListener("change", () => this.take(get("files").files));
    get("cancel").addEventListener("click", () => this.stop("Stopped. Choose photos to begin again."));
    get("again").addEventListener("click", () => this.stop());
    get("save-points").addEventListener("click", () => save(plyOf(this.found.cloud), "points.ply"));
    get("save-cameras").addEventListener("click", () => save(camerasOf(this.found.cameras), "cameras.json"));
    addEventListener("dragover", (event) => {
      event.preventDefault();
      get("drop").classList.add("over");
    });
    addEventListener("dragleave", () => get("drop").classList.remove("over"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      get("drop").classList.remove("over");
      if (event.dataTransfer.files.length) this.take(event.dataTransfer.files);
    });
    this.show("choosing");
    const reason = obstacle();
    if (!reason) return;
    this.say(reason);
    get("files").disabled = true;
    get("drop").hidden = true;
  }

  /** "choosing", "working" or "done": which parts of the page are there. */
  show(state) {
    const isDone = state === "done";
    get("start").hidden = isDone;
    get("own").hidden = !isDone;
    get("work").hidden = state !== "working";
    get("drop").hidden = state === "working";
    for (const part of [get("stage"), get("panel")]) part.inert = !isDone;
    if (!isDone) document.documentElement.dataset.state = state;
  }

  say(text) {
    get("problem").textContent = text ?? "";
    get("problem").hidden = !text;
  }

  step(text, done, total) {
    clearInterval(this.clock);
    get("step").textContent = text;
    get("elapsed").textContent = "";
    if (total) get("progress").value = done / total;
    else get("progress").removeAttribute("value");
  }

  /** End what runs, and let other photos be chosen. */
  stop(text) {
    this.worker?.terminate();
    this.worker = null;
    this.run = null;
    clearInterval(this.clock);
    get("files").value = "";
    this.show("choosing");
    this.say(text);
    get("files").focus();
  }

  async take(list) {
    const files = [...list].sort((a, b) => ORDER.compare(a.name, b.name)), { most } = this.about;
    if (this.run || get("files").disabled) return;
    if (files.length < 2) return this.stop("One photo is not enough: depth needs at least two, taken from different places. Choose them together.");
    if (files.length > most) return this.stop(`${files.length} photos are too many for a page: at most ${most}. lean3r reconstruct takes hundreds.`);
    const run = (this.run = {});
    this.say();
    this.show("working");
    try {
      await this.load(run);
      if (this.run === run) this.work(files);
    } catch (error) {
      if (this.run === run) this.stop(error.message);
    }
  }

  async load(run) {
    if (this.engine) return;
    const mega = (bytes) => (bytes / 1e6).toFixed(0);
    this.engine = await loadEngine(this.about.files, (done, total) => {
      if (this.run === run) this.step(`Loading the network: ${mega(done)} of ${mega(total)} MB`, done, total);
    });
    closeNetwork();
  }

  work(files) {
    this.worker = new Worker(this.script, { type: "module" });
    this.worker.addEventListener("error", (event) => this.stop(`This did not work: ${event.message || "the browser stopped it"}.`));
    this.worker.addEventListener("message", ({ data }) => {
      if (data.failed) this.stop(explained(data.failed, this.about.most));
      else if (data.found) this.done(data.found);
      else if (data.step === "reading") this.step(`Reading photo ${data.done + 1} of ${data.total}`, data.done, data.total);
      else if (data.step === "network") this.wait(`The network looks at ${data.total} photos`);
      else this.step("Making the cloud");
    });
    const { palette, registrations, percentile, resolution, patch } = this.about;
    this.worker.postMessage({ files, engine: this.engine, settings: { palette, registrations, percentile, resolution, patch } });
  }

  /** A step that says nothing of how far it is: the seconds count. */
  wait(text) {
    const start = performance.now();
    this.step(text);
    this.clock = setInterval(() => (get("elapsed").textContent = `${Math.round((performance.now() - start) / 1000)} s`), 1000);
  }

  async done(found) {
    clearInterval(this.clock);
    this.worker.terminate();
    this.worker = this.run = null;
    if (!found.cloud.count) return this.stop("The network found nothing to show in these photos.");
    this.found = found;
    const { viewer } = this, { views, width, height } = found.prediction;
    const facts = [["photos", String(views)], ["points", found.cloud.count.toLocaleString("en")], ["scale", "relative: the unit is unknown"],
      ["network", `${this.about.model}, on pictures of ${width} x ${height} pixels`], ["ran on", "this browser's CPU (WebAssembly, one thread)"],
      ["made by lean3r", this.about.version]];
    const header = { ...found.header, title: `${views} photos`, facts, notes: [] };
    get("made").textContent = `A first look by ${this.about.model}: cameras and depth are predicted, not refined. The network took ${found.seconds.toFixed(1)} s.`;
    get("own-notes").replaceChildren(...notes(found).map((note) => element("li", note)));
    this.show("done");
    viewer.set([header], () => new FoundParts(found));
    this.changed({ stage: "A first look: cameras and depth are predicted, not refined." }, true);
    viewer.canvas.focus({ preventScroll: true });
    window.lean3r.found = found; // for scripts
    await fill(viewer, viewer.scenes);
  }
}

/** What the viewer of a result should know. */
function notes({ skipped, cut, disagreement, prediction: { width, height } }) {
  const found = skipped.map(([name, reason]) => `${name} is left out: ${reason}.`);
  if (cut) found.push(`The photos have different shapes: each was cut to ${width}:${height} round its centre. lean3r reconstruct uses them whole.`);
  if (disagreement === null) found.push("No two of these photos overlap, as far as the network can say: cameras and depth are guesses.");
  else if (disagreement > MUCH) found.push(`Where photos overlap, their depths differ by ${Math.round(100 * Math.expm1(disagreement))} % (median): cameras or depth are wrong.`);
  return found;
}

/** An error of the work in the words of the page. */
function explained(text, most) {
  if (/memory|alloc|Array buffer|RangeError/i.test(text)) return `The memory of this page is not enough for so many photos (at most ${most}). Choose fewer. (${text})`;
  return text;
}

begin(async (viewer, changed) => void new Session(viewer, changed));
