// One map that is panned and zoomed like a geographic one: coarse pieces lie under fine ones until those have come.

const DIVERGING = [[33, 102, 172], [103, 169, 207], [209, 229, 240], [247, 247, 247], [253, 219, 199], [239, 138, 98], [178, 24, 43]];

// What a level stands for: weights lie on a logarithmic scale, all else between two numbers.
function meaning(frame) {
  const { kind, low, high, constants: { levels } } = frame;
  if (kind === "weights") return (level) => weightOf(levels, level);
  return (level) => low + ((high - low) * (level - 1)) / (levels.top - 1);
}

// In few digits, whatever its size.
const number = (v) => (Math.abs(v) >= 10 ? v.toFixed(0) : Math.abs(v) >= 0.1 || !v ? v.toFixed(2) : `${Number(v.toPrecision(2))}`).replace("-", "−");

// Differences are as far below zero as above.  Colours run with their logarithm, but linearly through zero: up to this
// share of the largest one.
const LINEAR = 1e-3;
const symlog = (share) => Math.sign(share) * Math.log1p(Math.abs(share) / LINEAR) / Math.log1p(1 / LINEAR);
const unsymlog = (place) => Math.sign(place) * LINEAR * Math.expm1(Math.abs(place) * Math.log1p(1 / LINEAR));

function painter(frame, linear) {
  const value = meaning(frame), range = frame.constants.levels.top - 1;
  if (frame.kind === "difference") {
    const place = linear ? (share) => share : symlog;
    return (level) => along(DIVERGING, 0.5 + 0.5 * place((2 * (level - 1)) / range - 1));
  }
  if (frame.kind === "logits") return (level) => VIRIDIS_256[Math.round((255 * (level - 1)) / range)];
  if (linear) return (level) => VIRIDIS_256[Math.round(255 * value(level))];
  return (level) => VIRIDIS_256[Math.round(255 * shadeOf(value(level)))];
}

// A colour as one number, as a canvas has it in memory.
const packed = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r;

// All levels as colours, made once for each way of painting.
const TABLES = new Map();
function tableOf(frame, linear) {
  const key = frame.kind === "logits" ? "logits" : `${frame.kind} ${linear}`;
  if (!TABLES.has(key)) {
    const paint = painter(frame, linear);
    TABLES.set(key, Uint32Array.from({ length: frame.constants.levels.top + 1 }, (_, level) => packed(paint(Math.max(1, level)))));
  }
  return TABLES.get(key);
}

// An array of levels as a picture; level 0 was never met: it comes later in the text, or had been evicted.  `wide`: how
// many keys a cell has, where that is not as many as queries.
function pictured({ data, shape: [rows, columns] }, [r0, c0], scale, table, theme, wide = scale) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  const later = packed(theme.later), evicted = packed(theme.evicted);
  for (let row = 0, i = 0; row < rows; row++) {
    const last = r0 + row * scale + scale - 1;
    for (let column = 0; column < columns; column++, i++) {
      pixels[i] = data[i] ? table[data[i]] : c0 + column * wide > last ? later : evicted;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// `shared` is the place where both maps of a pair look; `asked` is called when it has moved, `chosen` for a click.
function makeWorld(shared, { asked, chosen, moved }) {
  const canvas = el("canvas", { class: "sk-world", tabindex: 0, role: "img" });
  const tip = el("div", { class: "sk-tip", hidden: true });
  const title = el("div", { class: "sk-title" });
  const node = el("section", { class: "sk-panel" }, title, el("div", { class: "sk-holder" }, canvas, tip));
  // The first tokens stand magnified at the left, behind a gap: a sink in one of thousands of columns would vanish.
  const ROOM = { band: 40, gap: 8, strip: 78, right: 64, top: 6, bottom: 66 };
  let { band, gap, strip } = ROOM, edge = { ...ROOM, left: strip + band + gap }, type = null;
  let frame = null, theme = null, tiles = [], key = "", side = 400, held = null;
  let here = null; // the pair where the keyboard is, which a frame may not show yet

  const total = () => frame.total;
  const fitted = () => side / total();
  const zoomed = (factor, x, y) => {
    const z = Math.max(fitted(), Math.min(28, shared.z * factor));
    shared.x += x / shared.z - x / z;
    shared.y += y / shared.z - y / z;
    shared.z = z;
    settle();
  };
  // Nothing is looked at beyond the text.
  function bound() {
    const span = side / shared.z;
    shared.x = Math.max(0, Math.min(total() - span, shared.x));
    shared.y = Math.max(0, Math.min(total() - span, shared.y));
  }
  function settle() {
    bound();
    moved();
    asked();
  }

  // What should be computed: whole cells of a power of two of tokens, snapped so that small moves ask for the same.
  function wanted() {
    const scale = shared.z >= 1 ? 1 : 2 ** Math.floor(Math.log2(1 / shared.z));
    const snap = 16 * scale, span = side / shared.z;
    const range = (from) => [
      Math.max(0, Math.floor(from / snap) * snap),
      Math.min(total(), Math.ceil((from + span) / snap) * snap),
    ];
    return { rows: range(shared.y), columns: range(shared.x), scale };
  }

  function draw() {
    const width = canvas.clientWidth;
    if (!width || !frame) return;
    type = typeOf(canvas);
    const room = roomy(ROOM, type);
    ({ band, gap, strip } = room);
    edge = { ...room, left: strip + band + gap };
    side = Math.max(160, Math.min(width - edge.left - edge.right, 640));
    if (shared.z == null) {
      const [y, x, span] = frame.place || [0, 0, total()];
      Object.assign(shared, { x, y, z: Math.max(fitted(), side / Math.max(1, span)) });
      bound();
    } else if (shared.side !== side) shared.z = Math.max(fitted(), shared.z * (side / shared.side));
    shared.side = side;
    const height = side + edge.top + edge.bottom;
    fit(canvas, width, height);
    const ctx = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.save();
    ctx.beginPath();
    ctx.rect(edge.left, edge.top, side, side);
    ctx.clip();
    ctx.fillStyle = css(theme.later);
    ctx.fillRect(edge.left, edge.top, side, side);
    ctx.imageSmoothingEnabled = false;
    for (const tile of tiles) {
      const { rows, columns, scale, picture } = tile;
      ctx.drawImage(picture, edge.left + (columns[0] - shared.x) * shared.z, edge.top + (rows[0] - shared.y) * shared.z,
        picture.width * scale * shared.z, picture.height * scale * shared.z);
    }
    ctx.restore();
    ctx.save();
    ctx.beginPath();
    ctx.rect(strip, edge.top, band, side);
    ctx.clip();
    ctx.imageSmoothingEnabled = false;
    for (const { rows, scale, firsts } of tiles) {
      ctx.drawImage(firsts.picture, strip, edge.top + (rows[0] - shared.y) * shared.z, band, firsts.picture.height * scale * shared.z);
    }
    ctx.restore();
    axes(ctx);
    mark(ctx);
    canvas.setAttribute("aria-label", `${frame.title}: queries ${count(shared.y)} to ${count(shared.y + side / shared.z)}, keys from ${count(shared.x)}. Drag or arrow keys move, + and − zoom, 0 shows all; Enter chooses a pair of tokens, shift and arrow keys the one beside it.`);
  }

  // The pair that was pressed: a frame that both colours of cells let see, and where it stands on both axes.
  function mark(ctx) {
    if (!frame.cross) return;
    const { row, column } = frame.cross, least = 9;
    const framed = (x, y, wide, high) => {
      const [w, h] = [Math.max(wide, least), Math.max(high, least)];
      for (const [line, colour] of [[4, "#000"], [2, "#fff"]]) {
        ctx.lineWidth = line;
        ctx.strokeStyle = colour;
        ctx.strokeRect(x + wide / 2 - w / 2, y + high / 2 - h / 2, w, h);
      }
    };
    const arrow = (x, y, [dx, dy]) => {
      ctx.fillStyle = theme.text;
      ctx.beginPath();
      ctx.moveTo(x, y);
      ctx.lineTo(x - 6 * dx - 4 * dy, y - 6 * dy - 4 * dx);
      ctx.lineTo(x - 6 * dx + 4 * dy, y - 6 * dy + 4 * dx);
      ctx.fill();
    };
    const z = shared.z, x = edge.left + (column - shared.x) * z, y = edge.top + (row - shared.y) * z;
    if (y + z <= edge.top || y >= edge.top + side) return;
    arrow(strip - 1, y + z / 2, [1, 0]);
    if (column < frame.firsts.length) framed(strip + (column * band) / frame.firsts.length, y, band / frame.firsts.length, z);
    if (x + z <= edge.left || x >= edge.left + side) return;
    framed(x, y, z, z);
    arrow(x + z / 2, edge.top + side + 1, [0, -1]);
  }

  function axes(ctx) {
    ctx.font = `${type.small}px system-ui, sans-serif`;
    ctx.fillStyle = theme.muted;
    const span = side / shared.z, texts = shared.z >= 11 ? frame.texts : null;
    const tokenText = (piece, width) => {
      const text = piece.replace(/\n/g, "↵").replace(/ /g, "·");
      return text.length > width ? `${text.slice(0, width - 1)}…` : text;
    };
    const step = texts ? 1 : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000].find((s) => span / s <= 6) || 20000;
    const label = (t, width) => {
      if (!texts) return count(t);
      return tokenText(texts[t] ?? "", width);
    };
    for (let t = Math.ceil(shared.y / step) * step; t < shared.y + span; t += step) {
      ctx.textAlign = "right";
      ctx.textBaseline = "middle";
      const y = edge.top + (t - shared.y + (texts ? 0.5 : 0)) * shared.z;
      if (y > edge.top + 4 && y < edge.top + side - 2) ctx.fillText(label(t, 11), strip - 8, y);
    }
    for (let t = Math.ceil(shared.x / step) * step; t < shared.x + span; t += step) {
      const x = edge.left + (t - shared.x + (texts ? 0.5 : 0)) * shared.z;
      if (x > edge.left + side - 8 || (!texts && x < edge.left + 8)) continue;
      ctx.save();
      ctx.translate(x, edge.top + side + 5);
      if (texts) ctx.rotate(Math.PI / 2);
      ctx.textAlign = texts ? "left" : "center";
      ctx.textBaseline = texts ? "middle" : "top";
      ctx.fillText(label(t, 6), 0, 0);
      ctx.restore();
    }
    const shown = frame.firsts.length, each = band / shown;
    for (let t = 0; t < shown; t++) {
      ctx.save();
      ctx.translate(strip + (t + 0.5) * each, edge.top + side + 5);
      if (texts) ctx.rotate(Math.PI / 2);
      ctx.textAlign = texts ? "left" : "center";
      ctx.textBaseline = texts ? "middle" : "top";
      ctx.fillText(texts ? tokenText(frame.firsts[t], 6) : t, 0, 0);
      ctx.restore();
    }
    ctx.textAlign = "center";
    ctx.textBaseline = "alphabetic";
    const said = ["attended token (left: the first ones, magnified)", "attended token"];
    const room = side + band + gap + edge.right;
    ctx.fillText(said.find((text) => ctx.measureText(text).width < room) || "", strip + (side + band + gap) / 2, edge.top + side + edge.bottom - 5);
    ctx.save();
    ctx.translate(Math.round(11 * type.grown), edge.top + side / 2);
    ctx.rotate(-Math.PI / 2);
    ctx.fillText("query token", 0, 0);
    ctx.restore();
    legend(ctx);
  }

  function legend(ctx) {
    const x = edge.left + side + 9, height = side, paint = painter(frame, shared.linear), { levels } = frame.constants;
    const logarithmic = frame.kind === "weights" && !shared.linear;
    for (let i = 0; i < height; i++) {
      const share = 1 - i / height;
      const level = logarithmic ? levelOf(levels, DIMMEST ** (1 - share))
        : frame.kind === "difference" && !shared.linear ? 1 + (levels.top - 1) * (0.5 + 0.5 * unsymlog(2 * share - 1))
          : frame.kind === "weights" ? levelOf(levels, Math.max(share, levels.floor)) : 1 + (levels.top - 1) * share;
      ctx.fillStyle = css(paint(level));
      ctx.fillRect(x, edge.top + i, 9, 1.5);
    }
    // Powers of ten on both sides of zero, as far as they stand apart from the ends.
    const tens = [0, -1, -2].map((k) => 10 ** (Math.floor(Math.log10(frame.high)) + k)).filter((v) => v < 0.7 * frame.high);
    const symmetric = [0, frame.high, ...tens].flatMap((v) => (v ? [v, -v] : [0]).map((u) => [0.5 + 0.49 * symlog(u / frame.high), number(u)]));
    const marks = logarithmic ? WEIGHT_MARKS
      : frame.kind === "weights" ? [[0.01, "0"], [0.5, "0.5"], [0.99, "1"]]
        : frame.kind === "difference" && !shared.linear ? symmetric
          : [[0.01, number(frame.low)], [0.5, number((frame.low + frame.high) / 2)], [0.99, number(frame.high)]];
    ctx.fillStyle = theme.muted;
    ctx.textAlign = "left";
    ctx.textBaseline = "middle";
    for (const [share, text] of marks) ctx.fillText(text, x + 12, edge.top + height * (1 - share));
  }

  const under = (e) => [e.offsetX - edge.left, e.offsetY - edge.top];
  // The pair of tokens under a pointer, in the map or among the first tokens at its left; null beside them.
  function pairAt(e) {
    const [x, y] = under(e);
    if (!frame || y < 0 || y >= side) return null;
    const row = Math.min(total() - 1, Math.floor(shared.y + y / shared.z));
    if (x >= 0 && x < side) return { row, column: Math.min(total() - 1, Math.floor(shared.x + x / shared.z)), first: false };
    const inside = e.offsetX - strip;
    return inside >= 0 && inside < band ? { row, column: Math.floor((inside / band) * frame.firsts.length), first: true } : null;
  }
  canvas.addEventListener("wheel", (e) => {
    if (!pairAt(e)) return;
    e.preventDefault();
    const [x, y] = under(e);
    zoomed(2 ** (-e.deltaY / 240), Math.max(0, x), y);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (e) => {
    if (!pairAt(e)) return;
    held = { x: e.offsetX, y: e.offsetY, moved: 0 };
    canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener("pointermove", (e) => {
    if (held) {
      shared.x -= (e.offsetX - held.x) / shared.z;
      shared.y -= (e.offsetY - held.y) / shared.z;
      held.moved += Math.abs(e.offsetX - held.x) + Math.abs(e.offsetY - held.y);
      Object.assign(held, { x: e.offsetX, y: e.offsetY });
      settle();
    }
    point(e);
  });
  canvas.addEventListener("pointerup", (e) => {
    const pair = pairAt(e);
    here = null;
    if (held && held.moved < 4 && pair) chosen({ row: pair.row, column: pair.column });
    held = null;
  });
  canvas.addEventListener("pointercancel", () => { held = null; });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("dblclick", (e) => { if (pairAt(e)) zoomed(2, Math.max(0, under(e)[0]), under(e)[1]); });
  // By keys: the pair in the middle of what is shown, and from there the cell beside it.
  function choose(by) {
    const cell = Math.max(1, Math.round(1 / shared.z)), { cross } = frame;
    const inside = (t) => Math.max(0, Math.min(total() - 1, Math.floor(t)));
    const from = by && (here || (cross && [cross.row, cross.column]));
    here = from ? from.map((t, k) => inside(t + by[k] * cell)) : [shared.y, shared.x].map((t) => inside(t + side / shared.z / 2));
    chosen({ row: here[0], column: here[1] });
  }
  canvas.addEventListener("blur", () => { here = null; });
  canvas.addEventListener("keydown", (e) => {
    const far = side / shared.z / 5;
    const by = e.shiftKey && { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
    if (frame && (by || e.key === "Enter")) {
      e.preventDefault();
      choose(by);
      return;
    }
    const act = {
      ArrowLeft: () => { shared.x -= far; settle(); }, ArrowRight: () => { shared.x += far; settle(); },
      ArrowUp: () => { shared.y -= far; settle(); }, ArrowDown: () => { shared.y += far; settle(); },
      "+": () => zoomed(2, side / 2, side / 2), "=": () => zoomed(2, side / 2, side / 2), "-": () => zoomed(0.5, side / 2, side / 2),
      0: () => { Object.assign(shared, { x: 0, y: 0, z: fitted() }); settle(); },
    }[e.key];
    if (!act || !frame) return;
    e.preventDefault();
    act();
  });

  function point(e) {
    const pair = pairAt(e);
    tip.hidden = !pair;
    if (!pair) return;
    const { row: r, column: c, first } = pair;
    const tile = [...tiles].reverse().find((t) => r >= t.rows[0] && r < t.rows[1] && (first || (c >= t.columns[0] && c < t.columns[1])));
    const name = (t) => {
      const text = frame.texts[t] ?? frame.firsts[t];
      return `${text !== undefined ? `${JSON.stringify(text)} ` : ""}(${count(t)})`;
    };
    let what = "…";
    if (tile) {
      const row = Math.floor((r - tile.rows[0]) / tile.scale);
      const level = first ? tile.firsts.data[row * tile.firsts.width + c] : tile.data[row * tile.width + Math.floor((c - tile.columns[0]) / tile.scale)];
      const said = frame.kind === "weights" ? weightText(frame.constants.levels, level) : number(meaning(frame)(level));
      what = level ? said : c > r ? "comes later" : "evicted";
      if (tile.scale > 1) what += `, ${frame.pool} of ${tile.scale} × ${first ? 1 : tile.scale}`;
    }
    say(tip, `${name(r)} → ${name(c)}: ${what}`);
    tip.style.left = `${Math.max(0, Math.min(e.offsetX + 12, canvas.clientWidth - 260))}px`;
    tip.style.top = `${e.offsetY + 16}px`;
  }

  function show(next, nextTheme, array, first, heading) {
    const now = [next.run, next.head.join("."), next.kind, next.pool, heading, nextTheme.dark, shared.linear, next.low, next.high].join("|");
    if (now !== key) tiles = [];
    if (shared.total !== next.total) shared.z = null;
    shared.total = next.total;
    frame = next;
    theme = nextTheme;
    key = now;
    const { rows, columns, scale } = frame.region;
    if (array && !tiles.some((t) => t.seq === frame.tile)) {
      tiles = tiles.filter((t) => t.scale > scale || t.rows[0] < rows[0] || t.rows[1] > rows[1] || t.columns[0] < columns[0] || t.columns[1] > columns[1]);
      const picture = pictured(array, [rows[0], columns[0]], scale, tableOf(frame, shared.linear), theme);
      const table = tableOf(frame, shared.linear);
      const firsts = { picture: pictured(first, [rows[0], 0], scale, table, theme, 1), data: first.data, width: first.shape[1] };
      tiles.push({ seq: frame.tile, rows, columns, scale, picture, data: array.data, width: array.shape[1], firsts });
      tiles.sort((a, b) => b.scale - a.scale);
      // The coarsest lies under all others: of these the oldest goes.
      if (tiles.length > 24) tiles.splice(tiles.indexOf(tiles.slice(1).reduce((a, b) => (a.seq < b.seq ? a : b))), 1);
    }
    title.replaceChildren(frame.title, el("span", { class: "sk-sub" }, ` ${heading}`));
    draw();
  }
  // What part is looked at, in whole tokens; none where all is.
  function place() {
    const span = Math.round(side / shared.z);
    return span < total() ? [Math.round(shared.y), Math.round(shared.x), span] : null;
  }
  return { node, show, draw, wanted, place, zoom: (f) => zoomed(f, side / 2, side / 2), whole: () => { Object.assign(shared, { x: 0, y: 0, z: fitted() }); settle(); } };
}
