// The page of one job: its progress as the service tells it, then its result.
import { HOME, ask, byId, element, size, stateText } from "./shared.js";

const id = location.pathname.split("/").pop();
const at = `api/jobs/${encodeURIComponent(id)}`;
const known = {}; // events do not repeat the files
let result = "";

function show(news) {
  const job = Object.assign(known, news);
  byId("title").textContent = job.title;
  document.title = `${job.title} - lean3r`;
  byId("state").textContent = stateText(job);
  const { total, done, notes = [], views, skipped } = job.progress ?? {};
  const bar = byId("progress");
  bar.hidden = job.state !== "running";
  if (total) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
  const used = views ? `${viewsText(views)}${skipped ? `, ${skipped} skipped` : ""}` : "";
  byId("says").textContent = job.reason || used;
  const warnings = (job.summary.warnings ?? []).map((w) => w.text ?? String(w));
  const skips = [...job.skipped, ...(job.summary.skipped ?? [])].map((s) => `${s.name}: ${s.reason}`);
  const again = job.attempt > 1 ? [`Started ${job.attempt} times: the service or its worker ended on the way.`] : [];
  byId("notes").replaceChildren(...[...again, ...notes, ...warnings, ...skips].map((text) => element("li", text)));
  byId("input").replaceChildren(...job.files.map((file) => element("li", `${file.name} (${size(file.bytes)})`)));
  byId("uploaded").hidden = false;
  const isLive = job.state === "queued" || job.state === "running";
  byId("cancel").hidden = !isLive;
  byId("remove").hidden = isLive;
  byId("result").hidden = job.state !== "done";
  document.documentElement.dataset.state = job.state;
  if (job.state === "done") showResult(job).catch(complain);
}

const viewsText = (count) => (count === 1 ? "1 view" : `${count} views`);

async function showResult(job) {
  if (result === job.id) return;
  result = job.id;
  const { views, points, scale, seconds = {} } = job.summary;
  const whole = Object.values(seconds).reduce((sum, value) => sum + value, 0);
  const facts = [views && viewsText(views), points && `${points.toLocaleString()} points`, scale && `scale: ${scale}`,
    whole && `${whole.toFixed(1)} s`, `kept until ${new Date(1000 * job.expires).toLocaleString()}`];
  byId("facts").textContent = facts.filter(Boolean).join(", ");
  byId("zip").href = `${HOME}${at}/zip`;
  byId("view").href = byId("frame").src = `${HOME}${at}/view`;
  byId("report").href = `${HOME}${at}/report`;
  const { files } = await ask(`${at}/files`);
  byId("files").tBodies[0].replaceChildren(...files.map((file) => {
    const row = element("tr"), cell = element("td");
    const path = file.path.split("/").map(encodeURIComponent).join("/");
    cell.append(element("a", file.path, { href: `${HOME}${at}/files/${path}`, download: "" }));
    row.append(cell, element("td", size(file.bytes)));
    return row;
  }));
}

function complain(error) {
  byId("problem").textContent = error.message;
}

function gone() {
  byId("state").textContent = "There is no such job; perhaps it was removed.";
  for (const name of ["cancel", "remove", "result", "progress"]) byId(name).hidden = true;
  document.documentElement.dataset.state = "gone";
}

byId("cancel").addEventListener("click", () => ask(`${at}/cancel`, { method: "POST" }).then(show).catch(complain));
byId("remove").addEventListener("click", () => {
  ask(at, { method: "DELETE" }).then(() => location.assign(HOME)).catch(complain);
});

function follow() {
  const told = new EventSource(`${HOME}${at}/events`);
  told.addEventListener("job", (event) => show(JSON.parse(event.data)));
  told.addEventListener("end", (event) => { told.close(); show(JSON.parse(event.data)); });
  told.addEventListener("gone", () => { told.close(); gone(); });
  told.onerror = () => {
    byId("state").textContent = "The service does not answer; trying again";
    if (told.readyState === EventSource.CLOSED) setTimeout(start, 3000); // which asks why: the job may be gone
  };
}

function start() {
  ask(at).then((job) => { show(job); follow(); }).catch((error) => {
    if (error.status === 404) return gone();
    if (!error.status) setTimeout(start, 3000);
    return complain(error);
  });
}

start();
