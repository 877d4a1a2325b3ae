// Finds faces and says which expressions they have, in the browser: what fer_jax/faces/ does, by ONNX Runtime Web.
import * as ort from "ORT/ort.wasm.min.mjs";

const here = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.wasmPaths = new URL("ORT/", import.meta.url).href;
// More threads would need headers that a plain file server does not send.
ort.env.wasm.numThreads = 1;

const SIZE = 192, CELLS = 48;         // of the detector's picture, and of its cells along a side
const SURE = 0.7, UNSURE = 0.3;       // scores of a second look, and of a closer one
const CLOSE = 0.25;                   // of the picture's side: smaller faces are looked at again
const MAX_OVERLAP = 0.3, MAX_INSIDE = 0.6;
const FRAME_SIDE = 1.14, FRAME_UP = 0.027, MIN_ROLL = 12, MIN_FACE = 24, SMALL_FACE = 30;
// Cividis, from little to much.
const RAMP = [[0, 34, 78], [67, 78, 108], [125, 124, 120], [188, 175, 111], [254, 232, 56]];

const started = (async () => ({
  about: await (await fetch(here("network.json"))).json(),
  detector: await ort.InferenceSession.create(here("detector.onnx")),
  network: await ort.InferenceSession.create(here("network.onnx")),
}))();

function drawing(width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  return context;
}

// Returns what may be a face in a square window of the picture: {box [x, y, width, height], score, points}, in its pixels.
async function look(picture, window, threshold) {
  const { detector } = await started;
  const context = drawing(SIZE, SIZE), scale = SIZE / window.side;
  const left = -window.left * scale, top = -window.top * scale, width = picture.width * scale, height = picture.height * scale;
  context.fillRect(0, 0, SIZE, SIZE);
  // White behind what is transparent, but within the edges, where it would shine through.
  context.fillStyle = "white";
  context.fillRect(Math.ceil(left), Math.ceil(top), Math.floor(width) - 1, Math.floor(height) - 1);
  context.drawImage(picture, left, top, width, height);
  const rgba = context.getImageData(0, 0, SIZE, SIZE).data, rgb = new Uint8Array(SIZE * SIZE * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) for (let k = 0; k < 3; k++) rgb[j++] = rgba[i + k];
  const { values, scores } = await detector.run({ pictures: new ort.Tensor("uint8", rgb, [1, SIZE, SIZE, 3]) });
  const found = [];
  scores.data.forEach((score, cell) => {
    if (score < threshold) return;
    // Places are offsets from the cell's centre, in the detector's pixels.
    const middle = [((cell % CELLS) + 0.5) * SIZE / CELLS, (Math.floor(cell / CELLS) + 0.5) * SIZE / CELLS];
    const raw = values.data.subarray(cell * 16, cell * 16 + 16);
    const place = (i) => [window.left + (raw[i] + middle[0]) / scale, window.top + (raw[i + 1] + middle[1]) / scale];
    const [x, y] = place(0), width = raw[2] / scale, height = raw[3] / scale;
    found.push({ box: [x - width / 2, y - height / 2, width, height], score, points: [4, 6].map(place) });
  });
  return suppress(found);
}

function common(a, b) {
  const width = Math.min(a[0] + a[2], b[0] + b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]);
  return Math.max(width, 0) * Math.max(height, 0);
}
const overlap = (a, b) => common(a, b) / (a[2] * a[3] + b[2] * b[3] - common(a, b));

// One candidate for each face, the best first; its places are the mean of those that overlap with it, by their scores.
function suppress(candidates) {
  const groups = [];
  for (const one of [...candidates].sort((a, b) => b.score - a.score)) {
    const group = groups.find(([best]) => overlap(one.box, best.box) > MAX_OVERLAP);
    if (group) group.push(one);
    else if (!groups.some(([best]) => common(one.box, best.box) > MAX_INSIDE * one.box[2] * one.box[3])) groups.push([one]);
  }
  return groups.map((group) => {
    const total = group.reduce((sum, one) => sum + one.score, 0);
    const mean = (get) => group.reduce((sum, one) => sum + one.score * get(one), 0) / total;
    return {
      box: [0, 1, 2, 3].map((i) => mean((one) => one.box[i])),
      score: group[0].score,
      points: [0, 1].map((p) => [0, 1].map((i) => mean((one) => one.points[p][i]))),
    };
  });
}

async function find(picture) {
  const side = Math.max(picture.width, picture.height);
  const around = (scale) => ({ left: (picture.width - scale * side) / 2, top: (picture.height - scale * side) / 2, side: scale * side });
  let faces = await look(picture, around(1), 0.5);
  // The detector was trained on people at a distance: a face that fills the picture is found in a wider one.
  if (!faces.length) faces = await look(picture, around(2), SURE);
  for (const [number, face] of faces.entries()) {
    if (face.box[2] >= CLOSE * side) continue;
    const [x, y, width, height] = face.box, window = width / CLOSE;
    const closer = await look(picture, { left: x + (width - window) / 2, top: y + (height - window) / 2, side: window }, UNSURE);
    const same = closer.find((other) => overlap(other.box, face.box) > MAX_OVERLAP);
    if (same) faces[number] = { ...same, score: face.score };
  }
  return faces
    .filter((face) => (face.box[2] + face.box[3]) / 2 >= MIN_FACE)
    .sort((a, b) => b.box[2] * b.box[3] - a.box[2] * a.box[3]);
}

// The angle by which the eyes are turned clockwise, in degrees.
function rollOf(face) {
  const [[left, top], [right, bottom]] = face.points;
  return Math.atan2(bottom - top, right - left) * 180 / Math.PI;
}

// A square of the picture around (x, y), over white: its canvas, left and top. The picture's edge is repeated beyond it.
function region(picture, x, y, side) {
  const size = Math.ceil(side), left = Math.floor(x - size / 2), top = Math.floor(y - size / 2);
  const context = drawing(size, size), { canvas } = context;
  const [x0, y0] = [left, top].map((start) => Math.min(Math.max(-start, 0), size - 1));
  const [x1, y1] = [picture.width - left, picture.height - top].map((end) => Math.max(Math.min(end, size), 1));
  context.fillStyle = "white";
  context.fillRect(x0, y0, x1 - x0, y1 - y0);
  context.drawImage(picture, -left, -top);
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, x0, 0, 1, size, 0, 0, x0, size);
  context.drawImage(canvas, x1 - 1, 0, 1, size, x1, 0, size - x1, size);
  context.drawImage(canvas, 0, y0, size, 1, 0, 0, size, y0);
  context.drawImage(canvas, 0, y1 - 1, size, 1, 0, y1, size, size - y1);
  return { canvas, left, top };
}

// A face as the network is shown it, upright, `width` by `height`.
function cut(picture, face, width, height) {
  const [boxLeft, boxTop, w, h] = face.box, side = (w + h) / 2, frame = FRAME_SIDE * side;
  const x = boxLeft + w / 2, y = boxTop + h / 2 - FRAME_UP * side;
  const roll = rollOf(face), isTurned = Math.abs(roll) > MIN_ROLL;
  // With the corners of a frame that is turned, and what smoothing reads beyond it.
  const { canvas, left, top } = region(picture, x, y, (isTurned ? Math.SQRT2 : 1) * frame + 4);
  const context = drawing(width, height);
  context.translate(width / 2, height / 2);
  context.scale(width / frame, height / frame);
  if (isTurned) context.rotate(-roll * Math.PI / 180);
  context.drawImage(canvas, left - x, top - y);
  return context;
}

function pixels(context, channels) {
  const { width, height } = context.canvas, rgba = context.getImageData(0, 0, width, height).data;
  const values = new Uint8Array(width * height * channels);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    if (channels === 1) values[j++] = Math.round(0.299 * rgba[i] + 0.587 * rgba[i + 1] + 0.114 * rgba[i + 2]);
    else for (let k = 0; k < 3; k++) values[j++] = rgba[i + k];
  }
  return values;
}

// A picture of the face with what counted for a class over it, as a data URL; map: [rows, columns] of any values, of
// `part` [left, top, width, height] of the face, in shares.
async function draw(picture, face, map, rows, columns, part) {
  const side = 192, context = cut(picture, face, side, side), small = drawing(columns, rows);
  const most = Math.max(...map, 1e-9), image = small.createImageData(columns, rows);
  map.forEach((value, i) => {
    const share = Math.max(value, 0) / most, at = share * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
    for (let k = 0; k < 3; k++) image.data[4 * i + k] = RAMP[low][k] + (at - low) * (RAMP[low + 1][k] - RAMP[low][k]);
    image.data[4 * i + 3] = 255 * 0.75 * share;
  });
  small.putImageData(image, 0, 0);
  context.resetTransform();
  context.drawImage(small.canvas, ...part.map((share) => share * side));
  const bytes = new Uint8Array(await (await context.canvas.convertToBlob()).arrayBuffer());
  // One by one: a call takes 65,536 arguments at most in Safari, and a sharp face has more bytes.
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return `data:image/png;base64,${btoa(text)}`;
}

// Returns the faces of a picture, a Blob, as `fer_jax.Classifier` does.
export async function predict(blob, explains) {
  let picture;
  try {
    picture = await createImageBitmap(blob);
  } catch {
    throw new Error("this is not a picture that can be read");
  }
  try {
    return await answer(picture, explains);
  } finally {
    // The collector of garbage doesn't see the decoded pixels, 190 MB of a large photograph.
    picture.close();
  }
}

async function answer(picture, explains) {
  const { about, network } = await started;
  const faces = await find(picture);
  if (!faces.length) return [];
  const [height, width, channels] = about.image_shape, count = height * width * channels;
  const images = new Uint8Array(faces.length * count);
  faces.forEach((face, i) => images.set(pixels(cut(picture, face, width, height), channels), i * count));
  const given = await network.run({ images: new ort.Tensor("uint8", images, [faces.length, height, width, channels]) });
  const names = about.class_names, [, , rows, columns] = given.cam.dims;
  return Promise.all(faces.map(async (face, i) => {
    const probabilities = Array.from(given.probabilities.data.subarray(i * names.length, (i + 1) * names.length));
    const best = probabilities.indexOf(Math.max(...probabilities));
    const [x, y, w, h] = face.box, left = Math.max(0, Math.round(x)), top = Math.max(0, Math.round(y));
    const found = {
      box: [left, top, Math.min(picture.width, Math.round(x + w)) - left, Math.min(picture.height, Math.round(y + h)) - top],
      emotions: Object.fromEntries(names.map((name, k) => [name, probabilities[k]])),
      emotion: names[best],
      score: probabilities[best],
      face_score: face.score,
      eyes: face.points,
      roll: rollOf(face),
    };
    if ((w + h) / 2 < SMALL_FACE) found.small = true;
    if (explains) {
      const first = (i * names.length + best) * rows * columns;
      found.explanation = await draw(picture, face, given.cam.data.subarray(first, first + rows * columns), rows, columns, about.part);
    }
    return found;
  }));
}
