// Photos -> the network's pictures, as lean3r/inputs/views.py makes them: scaled by one factor, cut round the centre.

const LEAST_SIDE = 16, MOST_ASPECT = 4, BAND_PIXELS = 4_000_000, PHOTO_SIDE = 720;

export class Unusable extends Error {}

/** [columns, rows] in pixels of the network's picture of a photo: whole patches, about resolution^2 in all. */
export function networkSize(width, height, { resolution, patch }) {
  const target = (resolution / patch) ** 2, longest = Math.ceil((2.2 * resolution) / patch);
  let best = null;
  for (let cols = 3; cols <= longest; cols++)
    for (let rows = 3; rows <= longest; rows++) {
      const aspect = Math.abs(Math.log((cols / rows) * (height / width))), area = Math.log((cols * rows) / target);
      const cropped = Math.max(cols, (rows * width) / height) - cols + Math.max(rows, (cols * height) / width) - rows;
      const isLoose = Math.abs((cols * rows) / target - 1) > 0.08 || cropped >= 2;
      const cost = [isLoose, aspect + 0.5 * Math.abs(area)];
      if (!best || cost[0] < best.cost[0] || (cost[0] === best.cost[0] && cost[1] < best.cost[1])) best = { cost, size: [cols * patch, rows * patch] };
    }
  return best.size;
}

/** The size that all pictures of a run have: that of a photo of mean shape. */
export function commonSize(shapes, settings) {
  const mean = (side) => Math.exp(shapes.reduce((sum, shape) => sum + Math.log(shape[side]), 0) / shapes.length);
  return networkSize(mean("width"), mean("height"), settings);
}

/** A photo read for the network: {name, width, height, size, pixels, transform, photo}. Without a `size` [columns, rows]
 * it has its own. Unusable says why it cannot be read. */
export async function readPhoto(file, settings, size) {
  const bitmap = await decoded(file), { width, height } = bitmap;
  if (Math.min(width, height) < LEAST_SIDE) throw new Unusable(`too small: ${width}x${height} pixels; each side needs at least ${LEAST_SIDE}`);
  if (Math.max(width, height) > MOST_ASPECT * Math.min(width, height)) throw new Unusable(`too elongated: ${width}x${height}; at most ${MOST_ASPECT}:1`);
  size ??= networkSize(width, height, settings);
  const [cols, rows] = size, scale = Math.min(width / cols, height / rows);
  const offset = [(width - cols * scale) / 2, (height - rows * scale) / 2];
  const pixels = shrunk(bitmap, size, [...offset, offset[0] + cols * scale, offset[1] + rows * scale]);
  const photo = small(bitmap, PHOTO_SIDE);
  bitmap.close();
  return { name: file.name, width, height, size, pixels, transform: [scale, scale, ...offset], photo };
}

async function decoded(file) {
  if (!file.size) throw new Unusable("the file is empty");
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    const head = new TextDecoder("latin1").decode(await file.slice(4, 12).arrayBuffer());
    if (/^ftyp(hei|hev|mif|msf)/.test(head)) throw new Unusable("this browser cannot read HEIC; save it as JPEG or PNG");
    throw new Unusable("no picture that this browser can read, or damaged; JPEG, PNG and WebP can be read");
  }
}

/** The whole photo, its longer side at most so many pixels. */
function small(bitmap, side) {
  const share = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * share)), Math.max(1, Math.round(bitmap.height * share)));
  const pen = canvas.getContext("2d");
  Object.assign(pen, { imageSmoothingEnabled: true, imageSmoothingQuality: "high", fillStyle: "#fff" });
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.transferToImageBitmap();
}

/** A box [left, top, right, bottom] of a picture at a size [columns, rows]: RGB bytes, by the bicubic filter of Pillow,
 * which averages over all pixels of the box. First the columns, band by band, then the rows. */
function shrunk(bitmap, [cols, rows], [left, top, right, bottom]) {
  const across = taps(bitmap.width, left, right, cols), down = taps(bitmap.height, top, bottom, rows);
  const first = down[0].from, last = down[rows - 1].from + down[rows - 1].weights.length;
  const narrow = new Uint8ClampedArray((last - first) * cols * 3);
  const height = Math.max(1, Math.min(last - first, Math.floor(BAND_PIXELS / bitmap.width)));
  const canvas = new OffscreenCanvas(bitmap.width, height), pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#fff";
  for (let start = first; start < last; start += height) {
    pen.fillRect(0, 0, bitmap.width, height);
    pen.drawImage(bitmap, 0, -start);
    const { data } = pen.getImageData(0, 0, bitmap.width, height), count = Math.min(height, last - start);
    for (let row = 0; row < count; row++)
      for (let col = 0; col < cols; col++) {
        const { from, weights } = across[col];
        let red = 0, green = 0, blue = 0, at = 4 * (row * bitmap.width + from);
        for (let i = 0; i < weights.length; i++, at += 4) {
          red += weights[i] * data[at];
          green += weights[i] * data[at + 1];
          blue += weights[i] * data[at + 2];
        }
        at = 3 * ((start - first + row) * cols + col);
        narrow[at] = red;
        narrow[at + 1] = green;
        narrow[at + 2] = blue;
      }
  }
  const made = new Uint8ClampedArray(rows * cols * 3);
  for (let row = 0; row < rows; row++) {
    const { from, weights } = down[row];
    for (let i = 0; i < 3 * cols; i++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * narrow[(from - first + k) * cols * 3 + i];
      made[3 * row * cols + i] = sum;
    }
  }
  return made;
}

/** For each of `count` pixels between two places of a row of `size` pixels, the pixels that it averages, and how. */
function taps(size, start, end, count) {
  const step = (end - start) / count, wide = Math.max(step, 1), reach = 2 * wide;
  return Array.from({ length: count }, (_, i) => {
    const middle = start + (i + 0.5) * step;
    const from = Math.max(0, Math.floor(middle - reach + 0.5)), to = Math.min(size, Math.floor(middle + reach + 0.5));
    const raw = Float64Array.from({ length: to - from }, (_, k) => cubic((from + k - middle + 0.5) / wide));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { from, weights: raw.map((value) => value / sum) };
  });
}

function cubic(x) {
  const t = Math.abs(x);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}
