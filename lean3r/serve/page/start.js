// The start page: an upload with options, and the list of jobs.
import { HOME, ask, byId, element, size, stateText } from "./shared.js";

const ROLES = ["cameras", "masks"]; // the fields of the form beside the pictures
const EVERY = 3000; // milliseconds between two looks at the list
let limits = null;
let chosen = [];
let sending = null;

function choose(files) {
  chosen = [...files].filter((file) => !file.name.startsWith("."));
  check();
}

const sent = () => [...chosen.map((file) => ["files", file]), ...ROLES.flatMap((role) => [...byId(role).files].map((file) => [role, file]))];

function check() {
  const files = sent();
  const bytes = files.reduce((sum, [, file]) => sum + file.size, 0);
  byId("chosen").textContent = files.length ? `${files.length} ${files.length === 1 ? "file" : "files"}, ${size(bytes)}` : "";
  let problem = "";
  if (limits && bytes > limits.bytes) {
    problem = `These files have ${size(bytes)}; at most ${size(limits.bytes)} are taken at once (lean3r serve --upload-gb).`;
  }
  if (limits && files.length > limits.files) {
    problem = `These are ${files.length} files; at most ${limits.files} are taken at once (lean3r serve --upload-files).`;
  }
  byId("problem").textContent = problem;
  byId("send").disabled = !chosen.length || Boolean(problem || sending);
}

async function dropped(transfer) {
  const found = [];
  async function take(entry) {
    if (entry.isFile) found.push(await new Promise((good, bad) => entry.file(good, bad)));
    else {
      const reader = entry.createReader();
      for (;;) {
        const some = await new Promise((good, bad) => reader.readEntries(good, bad));
        if (!some.length) break;
        for (const one of some) await take(one);
      }
    }
  }
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return choose(transfer.files);
  for (const entry of entries) await take(entry);
  return choose(found);
}

function optionField(option) {
  const id = `option-${option.name}`;
  const place = element("div");
  const label = element("label", option.name.replaceAll("_", " "), { for: id });
  let input;
  if (option.kind === "choice") {
    input = element("select");
    for (const value of option.choices) input.append(element("option", value, { value }));
    input.value = input.dataset.usual = option.default ?? "";
  } else if (option.kind === "flag") {
    input = element("input", "", { type: "checkbox" });
  } else {
    input = element("input", "", { type: option.kind === "text" ? "text" : "number", step: "any" });
    input.placeholder = option.default === null ? (option.value ?? "") : String(option.default);
  }
  input.id = id;
  input.dataset.option = option.name;
  input.setAttribute("aria-describedby", `${id}-help`);
  place.append(label, input, element("p", option.help, { id: `${id}-help` }));
  return place;
}

function options() {
  const given = {};
  for (const input of document.querySelectorAll("[data-option]")) {
    if (input.type === "checkbox") { if (input.checked) given[input.dataset.option] = true; }
    else if (input.tagName === "SELECT") {
      if (input.value !== input.dataset.usual) given[input.dataset.option] = input.value;
    } else if (input.value.trim()) given[input.dataset.option] = input.value.trim();
  }
  return given;
}

function send(event) {
  event.preventDefault();
  const form = new FormData();
  form.append("options", JSON.stringify(options()));
  for (const [field, file] of sent()) form.append(field, file, file.name);
  const request = new XMLHttpRequest(); // fetch does not tell how much was sent
  sending = request;
  const bar = byId("sent");
  request.open("POST", `${HOME}api/jobs`);
  request.upload.onprogress = (now) => { if (now.lengthComputable) bar.value = now.loaded / now.total; };
  request.upload.onload = () => bar.removeAttribute("value"); // the service checks what arrived
  request.onload = () => {
    sending = null;
    let answer = {};
    try { answer = JSON.parse(request.responseText); } catch { /* not from the service */ }
    if (request.status === 201) location.assign(`${HOME}jobs/${answer.id}`);
    else over([answer.error ?? `error ${request.status}`, ...(answer.skipped ?? []).map((s) => `${s.name}: ${s.reason}`)].join("\n"));
  };
  request.onerror = () => over("The upload did not arrive; the service does not answer, or it refused the size.");
  request.onabort = () => over("");
  byId("problem").textContent = "";
  byId("send").disabled = true;
  bar.value = 0;
  bar.hidden = byId("stop").hidden = false;
  request.send(form);
}

function over(problem) {
  sending = null;
  byId("problem").textContent = problem;
  byId("send").disabled = !chosen.length;
  byId("sent").hidden = byId("stop").hidden = true;
}

async function list() {
  try {
    const jobs = await ask("api/jobs?limit=50");
    const rows = jobs.map((job) => {
      const row = element("tr");
      const link = element("a", job.title, { href: `${HOME}jobs/${job.id}` });
      const first = element("td");
      first.append(link);
      row.append(first, element("td", stateText(job)), element("td", new Date(1000 * job.created).toLocaleString()));
      return row;
    });
    // A new table only where something changed: the focus must not get lost.
    const body = byId("jobs").tBodies[0];
    const text = JSON.stringify(jobs.map((job) => [job.id, stateText(job)]));
    if (body.dataset.shown !== text) {
      body.replaceChildren(...rows);
      body.dataset.shown = text;
    }
    byId("jobs").hidden = !jobs.length;
    byId("none").hidden = Boolean(jobs.length);
  } catch (error) {
    byId("none").textContent = error.message;
    byId("none").hidden = false;
  }
}

const drop = byId("drop");
for (const name of ["dragover", "dragenter"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  dropped(event.dataTransfer);
});
byId("files").addEventListener("change", (event) => choose(event.target.files));
for (const role of ROLES) byId(role).addEventListener("change", check);
byId("upload").addEventListener("submit", send);
byId("stop").addEventListener("click", () => sending?.abort());
addEventListener("beforeunload", (event) => { if (sending) event.preventDefault(); }); // an upload would be lost

ask("api/options").then((about) => {
  limits = about.limits;
  const { files, bytes, minutes, keep_hours: hours } = limits;
  byId("limits").textContent = `At most ${files} files and ${size(bytes)}, and ${minutes} minutes of work; `
    + `results are kept for ${hours} hours, or until others need their place.`;
  byId("options").replaceChildren(...about.options.map(optionField));
  check();
}).catch((error) => { byId("problem").textContent = error.message; });
list();
setInterval(list, EVERY);
