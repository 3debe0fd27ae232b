// Depth and confidence of a view as pictures of the whole photo (lean3r/export/depth.py).

/** A map as an ImageBitmap in the shape of the photo: `level(value)` from 0 to 1 says its place in the palette. */
function coloured(map, level, palette, { size: [cols, rows], width, height, transform: [scale, , left, top] }) {
  const image = new ImageData(cols, rows), last = palette.length / 3 - 1;
  map.forEach((value, i) => {
    const at = 3 * Math.round(Math.min(1, Math.max(0, level(value))) * last), rgb = value > 0 ? palette.slice(at, at + 3) : [0, 0, 0];
    image.data.set([...rgb, 255], 4 * i);
  });
  const inner = new OffscreenCanvas(cols, rows), outer = new OffscreenCanvas(Math.round(width / scale), Math.round(height / scale));
  inner.getContext("2d").putImageData(image, 0, 0);
  const pen = outer.getContext("2d");
  pen.fillRect(0, 0, outer.width, outer.height);
  pen.drawImage(inner, left / scale, top / scale);
  return outer.transferToImageBitmap();
}

/** Depth: warm is near. */
export function depthPicture(depth, palette, picture) {
  const inverse = Float32Array.from(depth, (z) => 1 / z).sort();
  const [far, near] = [0.01, 0.99].map((share) => inverse[Math.round(share * (inverse.length - 1))]);
  return coloured(depth, (z) => (1 / z - far) / Math.max(near - far, 1e-12), palette, picture);
}

/** Confidence, by its rank among all points. */
export function confPicture(conf, quantiles, palette, picture) {
  const rank = (value) => {
    const above = quantiles.findIndex((quantile) => quantile >= value);
    if (above <= 0) return above === 0 ? 0 : 1;
    const [low, high] = [quantiles[above - 1], quantiles[above]];
    return (above - 1 + (value - low) / Math.max(high - low, 1e-12)) / (quantiles.length - 1);
  };
  return coloured(conf, rank, palette, picture);
}
