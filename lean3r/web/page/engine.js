// What the work needs from where the page came from: loaded once, whole and unchanged, before any photo is opened.

/** The bytes of each file that `given` lists: {runtime, wasm, network}. `progress(bytes, of)` says how far it is. */
export async function loadEngine(files, progress) {
  const total = Object.values(files).reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  const load = async ([name, { file, integrity }]) => {
    const answer = await fetch(file, { integrity }).catch(() => null);
    if (!answer?.ok) throw new Error(`${file} is missing beside this page, or is not the one that belongs to it. Write the folder again (lean3r export-page), and copy all of its files.`);
    const pieces = [], reader = answer.body.getReader();
    for (let read = await reader.read(); !read.done; read = await reader.read()) {
      pieces.push(read.value);
      progress((done += read.value.length), total);
    }
    return [name, await new Blob(pieces).arrayBuffer()];
  };
  return Object.fromEntries(await Promise.all(Object.entries(files).map(load)));
}

/** From here on this page, and the workers that it starts, can ask nobody for anything: a policy can only get stricter. */
export function closeNetwork() {
  const meta = document.createElement("meta");
  Object.assign(meta, { httpEquiv: "Content-Security-Policy", content: "connect-src 'none'" });
  document.head.append(meta);
}

/** Why this browser cannot run the network; null if it can. */
export function obstacle() {
  if (location.protocol === "file:")
    return "This page was opened as a file; browsers run it from a web server only. In its folder run\npython -m http.server 8000\nand open http://localhost:8000/";
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) return "This browser has no WebAssembly with SIMD, which the network needs. Browsers since 2023 have it; perhaps it is switched off.";
  if (typeof OffscreenCanvas === "undefined") return "This browser is too old: it cannot prepare pictures beside the page (OffscreenCanvas). Browsers since 2023 can.";
  return null;
}

// A module with one function that splats a byte into a vector.
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);
