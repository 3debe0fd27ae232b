// Where the bytes of a result come from: out of this page, or from the program that serves it.

const unzip = async (bytes) => {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const plain = atob(text), bytes = new Uint8Array(plain.length);
  for (let i = 0; i < plain.length; i++) bytes[i] = plain.charCodeAt(i);
  return bytes;
}

/** What the page was given: {results: [header]} or {live: true}. */
export function given() {
  return JSON.parse(document.getElementById("given").textContent);
}

export class Parts {
  /** `base` is the address of the parts, or null if they are in this page. */
  constructor(number, base) {
    this.number = number;
    this.base = base;
  }

  /** The bytes of a part; none if there is no such part, or nobody who has it. */
  async bytes(name) {
    if (this.base === null) {
      const element = document.getElementById(`part-${this.number}-${name}`);
      return element ? fromBase64(element.textContent.trim()) : new Uint8Array(0);
    }
    try {
      const answer = await fetch(`${this.base}/${name}`);
      return answer.ok ? new Uint8Array(await answer.arrayBuffer()) : new Uint8Array(0);
    } catch {
      return new Uint8Array(0);
    }
  }

  /** The content of a compressed part, or null. */
  async unpacked(name) {
    const bytes = await this.bytes(name);
    return bytes.length ? unzip(bytes) : null;
  }

  /** A picture, or null. */
  async picture(name, from = 0, to = undefined) {
    const bytes = (await this.bytes(name)).subarray(from, to);
    return bytes.length ? decoded(bytes) : null;
  }

  /** The small pictures, as [view, picture], one after the other. */
  async *thumbs() {
    const bytes = await this.bytes("thumbs");
    if (bytes.length < 4) return;
    const numbers = new DataView(bytes.buffer, bytes.byteOffset), count = numbers.getUint32(0, true);
    let at = 4 + 4 * count;
    for (let view = 0; view < count; view++) {
      const start = at;
      at += numbers.getUint32(4 + 4 * view, true);
      const bitmap = at > start && (await decoded(bytes.subarray(start, at)));
      if (bitmap) yield [view, bitmap];
    }
  }
}

async function decoded(bytes) {
  try {
    return await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  } catch {
    return null;
  }
}
