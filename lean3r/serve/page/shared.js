// What both pages need. Texts from outside go into the page as text only.

const STATES = {
  queued: "Waiting", running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled",
  expired: "Expired: the result was removed",
};

export const HOME = new URL("..", import.meta.url).href; // a proxy may put the service under a path of its own

export const byId = (id) => document.getElementById(id);

export function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Of an address relative to the start page. */
export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(HOME + path, options);
  } catch {
    throw new Error("the service does not answer");
  }
  if (answer.status === 401) location.assign(HOME);
  const isJson = (answer.headers.get("content-type") ?? "").startsWith("application/json");
  const content = isJson ? await answer.json() : null;
  if (!answer.ok) throw Object.assign(new Error(content?.error ?? `error ${answer.status}`), { status: answer.status });
  return content;
}

export function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  const [unit, name] = bytes < 1e5 ? [1e3, "kB"] : bytes < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  return `${Number((bytes / unit).toFixed(1)).toLocaleString()} ${name}`;
}

export function stateText(job) {
  if (job.state === "queued") return job.place === 1 ? "Waiting: the next" : `Waiting: number ${job.place}`;
  const { stage, done, total } = job.progress ?? {};
  if (job.state === "running" && stage) return `Running: ${stage}${total ? ` ${done} of ${total}` : ""}`;
  return STATES[job.state] ?? job.state;
}
