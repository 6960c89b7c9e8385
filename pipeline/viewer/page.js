"use strict";
const { store, frames } = JSON.parse(document.getElementById("payload").textContent);
const $ = (id) => document.getElementById(id);

const COLOURS = {
  expert: "#ff5a36",
  annotated: "#27c76f",
  chosen: "#ffe14d",
  sampled: "#ff3df2",
  reference: "#ffffff",
};
const LEVELS = ["#12c9f5", "#ffab1a", "#b98cff", "#9be34a", "#ff7ab8"];
// dark blue to pale yellow, even in lightness
const RAMP = [
  [34, 29, 88],
  [38, 76, 153],
  [42, 128, 178],
  [75, 175, 183],
  [143, 211, 178],
  [214, 236, 178],
  [255, 255, 214],
];
const EDGES = [
  [0, 1],
  [0, 2],
  [0, 4],
  [1, 3],
  [1, 5],
  [2, 3],
  [2, 6],
  [3, 7],
  [4, 5],
  [4, 6],
  [5, 7],
  [6, 7],
];
const NEAR = 0.1; // metres: what is nearer to the image plane is cut off before projection
const PAD = { left: 44, right: 10, top: 10, bottom: 38 }; // around the bird's-eye view, CSS pixels

const state = { frame: 0, score: store.min_score, chosen: null, hovered: null, layer: store.layers - 1 };
const decoded = new Map(); // per frame: images and unpacked arrays, of the neighbourhood only

// ---- payload ---------------------------------------------------------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const bit = (packed, i) => (packed[i >> 3] >> (7 - (i & 7))) & 1;

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** A canvas of one pixel per cell; paint(i) gives the RGBA of flat cell i. */
function raster(columns, rows, paint) {
  const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) {
    const colour = paint(i);
    if (colour) image.data.set(colour, 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function ramp(share) {
  const at = share * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[low].map((v, i) => Math.round(v + (at - low) * (RAMP[low + 1][i] - v)));
}

/** Both pictures of a frame's BEV map, first row at the bottom (y grows upwards). */
function bevMaps(bev) {
  const { rows, columns } = store.bev;
  const cells = bytes(bev.cells);
  const values = bytes(bev.values);
  const place = new Int32Array(rows * columns).fill(-1);
  for (let i = 0, k = 0; i < place.length; i++) if (bit(cells, i)) place[i] = 4 * k++;
  const at = (i) => place[(rows - 1 - Math.floor(i / columns)) * columns + (i % columns)];
  return {
    energy: raster(columns, rows, (i) => at(i) >= 0 && [...ramp(values[at(i)] / 255), 255]),
    components: raster(columns, rows, (i) => at(i) >= 0 && [...values.subarray(at(i) + 1, at(i) + 4), 255]),
  };
}

function levelMaps(level, number) {
  const { rows, columns } = store.levels[number];
  const cells = bytes(level.cells);
  const colour = [...rgb(LEVELS[number % LEVELS.length]), 105];
  return store.cameras.map((_, camera) =>
    raster(columns, rows, (i) => bit(cells, camera * rows * columns + i) && colour),
  );
}

function load(number) {
  if (decoded.has(number)) return decoded.get(number);
  const frame = frames[number];
  const images = frame.images.map((data) => {
    const image = new Image();
    image.addEventListener("load", draw);
    image.src = `data:image/jpeg;base64,${data}`;
    return image;
  });
  const entry = { images, levels: frame.levels.map(levelMaps), bev: frame.bev ? bevMaps(frame.bev) : null };
  if (store.reading === "bev") {
    entry.sampling = new Uint16Array(bytes(frame.sampling).buffer);
    entry.attention = bytes(frame.attention);
  } else if (store.reading === "cameras") entry.weights = bytes(frame.weights);
  decoded.set(number, entry);
  for (const key of decoded.keys()) if (Math.abs(key - state.frame) > 2 && key !== number) decoded.delete(key);
  return entry;
}

// ---- geometry --------------------------------------------------------------------------------------------------

/** Corners of a box; bit 2 of a corner's number is forward, bit 1 left, bit 0 up. */
function corners([x, y, z, length, width, height, yaw]) {
  const [c, s] = [Math.cos(yaw), Math.sin(yaw)];
  return Array.from({ length: 8 }, (_, i) => {
    const [a, b] = [(((i >> 2) & 1) - 0.5) * length, (((i >> 1) & 1) - 0.5) * width];
    return [x + c * a - s * b, y + s * a + c * b, z + ((i & 1) - 0.5) * height];
  });
}

/** Shares of the image times depth, and depth. */
function project(matrix, [x, y, z]) {
  return [0, 4, 8].map((row) => matrix[row] * x + matrix[row + 1] * y + matrix[row + 2] * z + matrix[row + 3]);
}

/** Lines of a projected box in shares of the image, cut off at the camera; null where none is in the image. */
function outline(matrix, box) {
  const points = corners(box).map((corner) => project(matrix, corner));
  const lines = [];
  for (const [a, b] of EDGES) {
    let [p, q] = [points[a], points[b]];
    if (p[2] < NEAR && q[2] < NEAR) continue;
    if (p[2] < NEAR || q[2] < NEAR) {
      const share = (NEAR - p[2]) / (q[2] - p[2]);
      const cut = p.map((v, i) => v + share * (q[i] - v));
      if (p[2] < NEAR) p = cut;
      else q = cut;
    }
    lines.push([p[0] / p[2], p[1] / p[2], q[0] / q[2], q[1] / q[2]]);
  }
  if (!lines.length) return null;
  const xs = lines.flatMap((l) => [l[0], l[2]]);
  const ys = lines.flatMap((l) => [l[1], l[3]]);
  const area = [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  return area[2] > 0 && area[3] > 0 && area[0] < 1 && area[1] < 1 ? { lines, area } : null;
}

const visible = (frame) => frame.score.flatMap((score, i) => (score >= state.score ? [i] : []));

/** Points that a query's layer samples: BEV metres with opacity, or a LiDAR point with a weight per camera. */
function sampled(frame, entry, query) {
  const K = frame.score.length;
  if (store.reading === "bev") {
    const n = store.positions;
    const base = (state.layer * K + query) * n;
    const [low, high] = store.sampling_range;
    const [x0, y0, , x1, y1] = store.pc_range;
    return Array.from({ length: n }, (_, i) => {
      const [u, v] = [0, 1].map((axis) => low + (entry.sampling[2 * (base + i) + axis] / 65535) * (high - low));
      return { x: x0 + u * (x1 - x0), y: y0 + v * (y1 - y0), weight: entry.attention[base + i] / 255 };
    });
  }
  if (store.reading !== "cameras") return [];
  const n = store.cameras.length;
  const base = (state.layer * K + query) * n;
  const point = frame.points[state.layer][query];
  const weights = Array.from(entry.weights.subarray(base, base + n), (w) => w / 255);
  return [{ x: point[0], y: point[1], point, weights, weight: Math.max(...weights) }];
}

// ---- drawing ---------------------------------------------------------------------------------------------------

function fit(canvas, aspect) {
  const width = canvas.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round((width / aspect) * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, width / aspect);
  return [context, width, width / aspect];
}

/** Lines with a dark rim, so that they show on any background. */
function stroke(context, path, colour, width, dash = []) {
  context.lineCap = dash.length ? "butt" : "round";
  for (const [style, wide, pattern] of [
    ["rgba(0,0,0,.5)", width + 1.6, []],
    [colour, width, dash],
  ]) {
    context.beginPath();
    path(context);
    Object.assign(context, { strokeStyle: style, lineWidth: wide });
    context.setLineDash(pattern);
    context.stroke();
  }
  context.setLineDash([]);
}

function dot(context, x, y, radius, fill, opacity = 1) {
  context.globalAlpha = opacity;
  context.beginPath();
  context.arc(x, y, radius, 0, 7);
  Object.assign(context, { fillStyle: fill, strokeStyle: "#000", lineWidth: 1 });
  context.fill();
  context.stroke();
  context.globalAlpha = 1;
}

function drawCamera(figure, frame, entry, shown, active) {
  const camera = figure.camera;
  const [context, width, height] = fit(figure.canvas, frame.aspect[camera]);
  const image = entry.images[camera];
  if (image.complete) context.drawImage(image, 0, 0, width, height);
  frame.levels.forEach((level, i) => {
    if (!$(`level-${i}`).checked) return;
    const { rows, columns } = store.levels[i];
    context.imageSmoothingEnabled = false;
    const [across, down] = level.size[camera];
    context.drawImage(entry.levels[i][camera], 0, 0, columns * across * width, rows * down * height);
    context.imageSmoothingEnabled = true;
  });
  figure.hits = [];
  const line = (box, colour, thickness, dash) => {
    const found = outline(frame.projection[camera], box);
    if (found) {
      const path = (c) =>
        found.lines.forEach(([a, b, d, e]) => {
          c.moveTo(a * width, b * height);
          c.lineTo(d * width, e * height);
        });
      stroke(context, path, colour, thickness, dash);
    }
    return found;
  };
  if ($("annotated").checked) {
    frame.annotated.forEach((box, i) => {
      const found = line(box, COLOURS.annotated, 1.4, [4, 3]);
      if (found) figure.hits.push({ area: found.area, annotated: i });
    });
  }
  let count = 0;
  if ($("expert").checked) {
    for (const query of [...shown].reverse()) {
      if (query === active) continue;
      const found = line(frame.boxes[query], COLOURS.expert, 1.5);
      if (found) {
        figure.hits.push({ area: found.area, query });
        count++;
      }
    }
    const found = shown.includes(active) && line(frame.boxes[active], COLOURS.chosen, 2.6);
    if (found) {
      figure.hits.push({ area: found.area, query: active });
      count++;
    }
  }
  if (store.reading === "cameras" && active !== null) {
    for (const { point, weights } of sampled(frame, entry, active)) {
      const [u, v, depth] = project(frame.projection[camera], point);
      if (weights[camera] > 0 && depth > NEAR) {
        dot(context, (u / depth) * width, (v / depth) * height, 6, COLOURS.sampled, 0.25 + 0.75 * weights[camera]);
      }
    }
  }
  const name = store.cameras[camera];
  figure.canvas.setAttribute("aria-label", `${name}: ${count} expert boxes`);
}

/** Corners of a triangle that points to an angle (degrees from x to the right, y upwards), CSS pixels, second axis down. */
function egoMarker(angle) {
  const turn = ((90 - angle) * Math.PI) / 180;
  const [c, s] = [Math.cos(turn), Math.sin(turn)];
  return [
    [0, -8],
    [5, 6],
    [-5, 6],
  ].map(([x, y]) => [c * x - s * y, s * x + c * y]);
}

function drawBev(frame, entry, shown, active) {
  const [x0, y0, , x1, y1] = store.pc_range;
  const style = getComputedStyle(document.documentElement);
  const token = (name) => style.getPropertyValue(name).trim();
  const canvas = $("bev");
  const inner = canvas.clientWidth - PAD.left - PAD.right;
  const size = (inner * (y1 - y0)) / (x1 - x0);
  const [context, width, height] = fit(canvas, canvas.clientWidth / (size + PAD.top + PAD.bottom));
  const X = (x) => PAD.left + ((x - x0) / (x1 - x0)) * inner;
  const Y = (y) => PAD.top + ((y1 - y) / (y1 - y0)) * size;
  bevScale = { X, Y };
  context.fillStyle = token("--void");
  context.fillRect(PAD.left, PAD.top, inner, size);
  const map = document.querySelector("[name=map]:checked").value;
  if (entry.bev && map !== "none") {
    context.imageSmoothingEnabled = false;
    context.drawImage(entry.bev[map], PAD.left, PAD.top, inner, size);
    context.imageSmoothingEnabled = true;
  }
  const step = x1 - x0 > 60 ? 20 : 10; // metres between grid lines
  Object.assign(context, { font: "11px system-ui, sans-serif", textAlign: "center", textBaseline: "top" });
  for (let v = Math.ceil(x0 / step) * step; v <= x1; v += step) {
    Object.assign(context, { fillStyle: token("--grid") });
    context.fillRect(X(v), PAD.top, 1, size);
    context.fillStyle = token("--faint");
    context.fillText(v, X(v), PAD.top + size + 5);
  }
  Object.assign(context, { textAlign: "right", textBaseline: "middle" });
  for (let v = Math.ceil(y0 / step) * step; v <= y1; v += step) {
    context.fillStyle = token("--grid");
    context.fillRect(PAD.left, Y(v), inner, 1);
    context.fillStyle = token("--faint");
    context.fillText(v, PAD.left - 5, Y(v));
  }
  Object.assign(context, { fillStyle: token("--ink"), textAlign: "center", textBaseline: "bottom" });
  context.fillText(`x (${frame.directions.x}), m`, PAD.left + inner / 2, height - 1);
  context.save();
  context.translate(3, PAD.top + size / 2);
  context.rotate(-Math.PI / 2);
  context.textBaseline = "top";
  context.fillText(`y (${frame.directions.y}), m`, 0, 0);
  context.restore();

  context.save();
  context.beginPath();
  context.rect(PAD.left, PAD.top, inner, size);
  context.clip();
  const footprint = (box, colour, thickness, dash) => {
    const c = corners(box);
    const front = [(c[4][0] + c[6][0]) / 2, (c[4][1] + c[6][1]) / 2];
    stroke(
      context,
      (path) => {
        [4, 6, 2, 0].forEach((i, k) => path[k ? "lineTo" : "moveTo"](X(c[i][0]), Y(c[i][1])));
        path.closePath();
        path.moveTo(X(box[0]), Y(box[1]));
        path.lineTo(X(front[0]), Y(front[1]));
      },
      colour,
      thickness,
      dash,
    );
  };
  if ($("annotated").checked) frame.annotated.forEach((box) => footprint(box, COLOURS.annotated, 1.4, [4, 3]));
  const others = shown.filter((query) => query !== active);
  if ($("expert").checked) {
    for (const query of [...others].reverse()) footprint(frame.boxes[query], COLOURS.expert, 1.5);
    if (shown.includes(active)) footprint(frame.boxes[active], COLOURS.chosen, 2.6);
  }
  if (frame.reference && $("reference").checked) {
    for (const query of others)
      dot(context, X(frame.reference[query][0]), Y(frame.reference[query][1]), 2.2, COLOURS.reference);
  }
  if (active !== null) {
    const positions = sampled(frame, entry, active);
    const most = Math.max(...positions.map((p) => p.weight), 1e-9);
    for (const p of positions) dot(context, X(p.x), Y(p.y), 3.6, COLOURS.sampled, 0.12 + 0.88 * (p.weight / most));
    if (frame.reference && $("reference").checked) {
      dot(context, X(frame.reference[active][0]), Y(frame.reference[active][1]), 2, COLOURS.reference);
    }
  }
  context.beginPath(); // the ego vehicle
  egoMarker(frame.directions.forward).forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](X(0) + x, Y(0) + y));
  context.closePath();
  Object.assign(context, { fillStyle: "#fff", strokeStyle: "#000", lineWidth: 1.2 });
  context.fill();
  context.stroke();
  context.restore();
  canvas.setAttribute("aria-label", `Bird's-eye view: ${$("expert").checked ? shown.length : 0} expert boxes`);
}

let bevScale = null;
let requested = 0;

function draw() {
  if (!requested)
    requested = requestAnimationFrame(() => {
      requested = 0;
      const frame = frames[state.frame];
      const entry = load(state.frame);
      const shown = visible(frame);
      const active = state.hovered ?? state.chosen;
      for (const figure of figures) drawCamera(figure, frame, entry, shown, active);
      drawBev(frame, entry, shown, active);
    });
}

// ---- words -----------------------------------------------------------------------------------------------------

function element(name, text = "", properties = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, properties);
}

function rows(table, pairs) {
  table.replaceChildren(
    ...pairs.map(([name, value]) => {
      const row = element("tr");
      row.append(element("th", name, { scope: "row" }), element("td", value));
      return row;
    }),
  );
}

const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const metres = (values) => values.map((v) => (Math.abs(v) < 0.05 ? "0.0" : v.toFixed(1))).join(", ");

function named(label) {
  return store.classes[label] ?? `class ${label}`;
}

function updateList() {
  const frame = frames[state.frame];
  const shown = visible(frame);
  if (!shown.includes(state.chosen)) state.chosen = null;
  if (!shown.includes(state.hovered)) state.hovered = null;
  $("from").textContent = state.score.toFixed(2);
  $("shown").textContent = `${shown.length} of ${frame.score.length} queries`;
  $("list").replaceChildren(
    ...shown.map((query) => {
      const row = element("div", "", { id: `query-${query}`, query });
      row.setAttribute("role", "option");
      row.append(
        element("span", `#${query}`),
        element("span", named(frame.label[query])),
        element("span", frame.score[query].toFixed(2)),
        element("span", `${metres(frame.boxes[query].slice(0, 2))} m`),
      );
      return row;
    }),
  );
  updateChosen();
}

function updateChosen() {
  const frame = frames[state.frame];
  const query = state.chosen;
  for (const row of $("list").children) row.setAttribute("aria-selected", row.query === query);
  if (query === null) {
    $("list").removeAttribute("aria-activedescendant");
    const where = { bev: "the BEV positions it samples", cameras: "the points it projects into the images" }[
      store.reading
    ];
    $("chosen").textContent = `Choose a box in a picture or a line of the list${where ? ` to see ${where}` : ""}.`;
    return;
  }
  $("list").setAttribute("aria-activedescendant", `query-${query}`);
  $(`query-${query}`).scrollIntoView({ block: "nearest" });
  const box = frame.boxes[query];
  const facts = [
    ["class, score", `${named(frame.label[query])}, ${frame.score[query].toFixed(3)}`],
    ["centre x, y, z", `${metres(box.slice(0, 3))} m`],
    ["length, width, height", `${metres(box.slice(3, 6))} m`],
    ["heading", `${((box[6] * 180) / Math.PI).toFixed(0)}° (${frame.directions.yaw})`],
    ["speed", `${Math.hypot(box[7], box[8]).toFixed(1)} m/s`],
  ];
  if (frame.reference) facts.push(["reference x, y, z", `${metres(frame.reference[query])} m`]);
  if (store.reading === "cameras") {
    const { weights } = sampled(frame, load(state.frame), query)[0];
    const seen = store.cameras.flatMap((name, i) =>
      weights[i] > 0 ? [`${name} ${(weights[i] * frame.largest).toFixed(2)}`] : [],
    );
    facts.push([`weights, layer ${state.layer + 1}`, seen.join(", ") || "not visible in any camera"]);
  } else if (store.reading === "bev") {
    const largest = Math.max(...sampled(frame, load(state.frame), query).map((p) => p.weight));
    facts.push([
      `positions, layer ${state.layer + 1}`,
      `${store.positions}, largest attention ${(largest * frame.largest).toFixed(2)}`,
    ]);
  }
  const table = element("table");
  rows(table, facts);
  $("chosen").replaceChildren(table);
}

function updateScale() {
  const map = document.querySelector("[name=map]:checked").value;
  if (!store.bev) $("scale").textContent = "The store holds no BEV map.";
  else if (map === "energy") {
    const stops = RAMP.map((colour) => `rgb(${colour})`).join(",");
    const bar = element("span", "", { className: "ramp" });
    bar.style.background = `linear-gradient(90deg, ${stops})`;
    $("scale").replaceChildren(
      "L2 norm of the features ",
      store.bev.energy[0].toFixed(2),
      bar,
      store.bev.energy[1].toFixed(2),
      ", one scale for all frames; grey: not stored",
    );
  } else if (map === "components") {
    const parts = ["#e5484d", "#30a46c", "#3b82f6"].map((colour, i) => {
      const swatch = element("span", "", { className: "swatch" });
      const key = element("i");
      key.style.background = colour;
      swatch.append(key, `component ${i + 1}, ${percent(store.bev.explained[i])}`);
      return swatch;
    });
    $("scale").replaceChildren(...parts, "of the variance; one basis for all frames of this page; grey: not stored");
  } else $("scale").textContent = "";
}

// ---- actions ---------------------------------------------------------------------------------------------------

function show(number) {
  state.frame = Math.min(Math.max(number, 0), frames.length - 1);
  state.chosen = state.hovered = null;
  $("tip").hidden = true;
  $("frame").value = state.frame;
  $("position").textContent = `${state.frame + 1} / ${frames.length}`;
  $("previous").disabled = state.frame === 0;
  $("next").disabled = state.frame === frames.length - 1;
  load(state.frame);
  updateList();
  draw();
  // the next one is likely wanted
  if (state.frame + 1 < frames.length) setTimeout(load, 50, state.frame + 1);
}

function choose(query) {
  state.chosen = query;
  updateChosen();
  draw();
}

/** What lies under a pointer: the smallest box, as {query} or {annotated}. */
function under(hits) {
  const size = (hit) => (hit.area[2] - hit.area[0]) * (hit.area[3] - hit.area[1]);
  return hits.sort((a, b) => (a.query === undefined) - (b.query === undefined) || size(a) - size(b))[0] ?? null;
}

function underCamera(figure, x, y) {
  const { clientWidth: w, clientHeight: h } = figure.canvas;
  const [u, v] = [x / w, y / h];
  return under(figure.hits.filter(({ area }) => u >= area[0] && u <= area[2] && v >= area[1] && v <= area[3]));
}

function underBev(px, py) {
  const frame = frames[state.frame];
  const { X, Y } = bevScale;
  const slack = 4 / (X(1) - X(0)); // small boxes are easier to hit
  const inside = (box) => {
    const x = (px - X(box[0])) / (X(1) - X(0));
    const y = (py - Y(box[1])) / (Y(1) - Y(0));
    const [c, s] = [Math.cos(box[6]), Math.sin(box[6])];
    return Math.abs(c * x + s * y) <= box[3] / 2 + slack && Math.abs(c * y - s * x) <= box[4] / 2 + slack;
  };
  const area = (box) => [0, 0, box[3], box[4]];
  const hits = $("expert").checked
    ? visible(frame)
        .filter((q) => inside(frame.boxes[q]))
        .map((query) => ({ query, area: area(frame.boxes[query]) }))
    : [];
  if ($("annotated").checked) {
    frame.annotated.forEach((box, annotated) => {
      if (inside(box)) hits.push({ annotated, area: area(box) });
    });
  }
  if (!hits.some((hit) => hit.query !== undefined) && frame.reference && $("reference").checked) {
    for (const query of visible(frame)) {
      const [x, y] = frame.reference[query];
      if (Math.hypot(X(x) - px, Y(y) - py) < 6) hits.push({ query, area: [0, 0, 0, 0] });
    }
  }
  return under(hits);
}

function listen(canvas, find) {
  const at = (event) => find(event.offsetX, event.offsetY);
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const hit = at(event);
    const frame = frames[state.frame];
    const tip = $("tip");
    tip.hidden = !hit;
    canvas.style.cursor = hit?.query !== undefined ? "pointer" : "";
    if (hit) {
      const place = metres((frame.boxes[hit.query] ?? frame.annotated[hit.annotated]).slice(0, 2));
      tip.textContent =
        hit.query !== undefined
          ? `${named(frame.label[hit.query])} ${frame.score[hit.query].toFixed(2)}\nquery #${hit.query} at ${place} m`
          : `${named(frame.annotated_label[hit.annotated])}, annotated\nat ${place} m`;
      tip.style.left = `${Math.min(event.clientX + 12, window.innerWidth - tip.offsetWidth - 4)}px`;
      tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 4)}px`;
    }
    const query = hit?.query ?? null;
    if (query !== state.hovered) {
      state.hovered = query;
      draw();
    }
  });
  canvas.addEventListener("pointerleave", () => {
    state.hovered = null;
    $("tip").hidden = true;
    draw();
  });
  canvas.addEventListener("click", (event) => choose(at(event)?.query ?? null));
}

const figures = store.grid.map((camera) => {
  const holder = element("figure");
  const canvas = element("canvas", "", { id: store.cameras[camera] });
  canvas.setAttribute("role", "img");
  const button = element("button", "⤢", { type: "button", title: `Enlarge ${store.cameras[camera]}` });
  button.setAttribute("aria-label", `Enlarge ${store.cameras[camera]}`);
  button.setAttribute("aria-pressed", "false");
  const figure = { camera, canvas, hits: [] };
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", holder.classList.toggle("large"));
    draw();
  });
  holder.append(canvas, element("figcaption", store.cameras[camera]), button);
  $("cameras").append(holder);
  listen(canvas, (x, y) => underCamera(figure, x, y));
  return figure;
});

function flat(value, path = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value))
    return [[path, Array.isArray(value) ? value.join(", ") : String(value)]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, path ? `${path}.${key}` : key));
}

function start() {
  document.title = `${store.name}: cached frames`;
  $("title").textContent = store.name;
  const stored = [
    ...(store.bev?.coverage != null ? [`BEV ${percent(store.bev.coverage)}`] : []),
    ...store.levels.flatMap((level, i) => (level.coverage != null ? [`level ${i} ${percent(level.coverage)}`] : [])),
  ];
  $("facts").textContent =
    `${frames.length} of ${store.total} frames, ${store.layout} layout` +
    (stored.length ? `, stored cells: ${stored.join(", ")}` : ", whole maps stored");
  let group = null;
  frames.forEach((frame, i) => {
    if (group?.label !== frame.scene) {
      group = element("optgroup", "", { label: frame.scene });
      $("frame").append(group);
    }
    group.append(element("option", `${frame.scene}, frame ${frame.order}, ${frame.token}`, { value: i }));
  });
  store.levels.forEach((level, i) => {
    const label = element("label");
    const key = element("i", "", { className: "key level" });
    key.style.background = LEVELS[i % LEVELS.length];
    label.append(
      element("input", "", { type: "checkbox", id: `level-${i}`, checked: i === 0 }),
      key,
      `level ${i}, stride ${[...new Set(level.stride.map((pixels) => +pixels.toFixed(2)))].join(" × ")}`,
    );
    $("levels").append(label);
  });
  $("levels").hidden = !store.levels.length;
  $("map").hidden = !store.bev;
  $("reference-label").hidden = !frames[0].reference;
  $("reading").hidden = !store.layers;
  $("reading-name").textContent =
    store.reading === "bev" ? "Sampled positions, opacity: attention" : "Projected points, opacity: weight";
  for (let layer = 0; layer < store.layers; layer++) $("layer").append(element("option", layer + 1, { value: layer }));
  $("layer").value = state.layer;
  $("score").value = state.score;
  rows($("manifest"), flat(store.manifest));

  $("previous").addEventListener("click", () => show(state.frame - 1));
  $("next").addEventListener("click", () => show(state.frame + 1));
  $("frame").addEventListener("change", (event) => show(Number(event.target.value)));
  $("score").addEventListener("input", (event) => {
    state.score = Number(event.target.value);
    updateList();
  });
  $("layer").addEventListener("change", (event) => {
    state.layer = Number(event.target.value);
    updateChosen();
  });
  $("controls").addEventListener("input", () => {
    updateScale();
    draw();
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("list").addEventListener("click", (event) => {
    const row = event.target.closest("[role=option]");
    if (row) choose(row.query === state.chosen ? null : row.query);
  });
  listen($("bev"), underBev);
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select, input:not([type=checkbox])"))
      return;
    const shown = visible(frames[state.frame]);
    const at = shown.indexOf(state.chosen);
    const actions = {
      ArrowLeft: () => show(state.frame - 1),
      ArrowRight: () => show(state.frame + 1),
      ArrowDown: () => shown.length && choose(shown[Math.min(at + 1, shown.length - 1)]),
      ArrowUp: () => shown.length && choose(shown[Math.max(at - 1, 0)]),
      Escape: () => choose(null),
    };
    // outside the list up and down scroll the page
    if (event.key.match(/ArrowUp|ArrowDown/) && document.activeElement !== $("list")) return;
    if (actions[event.key]) {
      event.preventDefault();
      actions[event.key]();
    }
  });
  new ResizeObserver(draw).observe($("cameras"));
  new ResizeObserver(draw).observe($("side"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  updateScale();
  show(0);
}

start();
