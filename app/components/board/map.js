// The attention map of the chosen head: the newest tokens against each other, and the first tokens magnified at the left,
// since a sink is one column of one pixel and would vanish.  A sink without a token has a column to the left of these.

function makeMap() {
  const title = el("h2", { class: "sk-title" });
  const canvas = el("canvas", { class: "sk-map", tabindex: 0, role: "img" });
  const tip = el("div", { class: "sk-tip", role: "status", hidden: true }), pointer = el("div", { class: "sk-here", hidden: true });
  const invite = el("div", { class: "sk-invite" }, "Click a cell above: that head's attention map is drawn here.");
  const holder = el("div", { class: "sk-holder" }, canvas, pointer, tip);
  const legend = el("div", { class: "sk-legend" }, el("span", { class: "sk-evicted" }), "evicted: no longer in the cache");
  const node = el("section", { class: "sk-panel" }, title, invite, holder, legend);
  const picture = document.createElement("canvas");
  let frame = null, theme = null, drawn = "", painted = "", box = null;
  let here = null; // the row where the keyboard is, and the column, counted over the parts of the map from its left

  function paint(name, under) {
    const { data, shape: [rows, columns] } = frame.arrays[name];
    const image = new ImageData(columns, rows);
    // Linear in the level, between those of the dimmest weight and of 1.
    const { levels } = frame.constants, dimmest = levelOf(levels, DIMMEST);
    const colourOf = (level) => VIRIDIS_256[Math.round(255 * Math.max(0, (level - dimmest) / (levels.top - dimmest)))];
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const level = data[r * columns + c], at = 4 * (r * columns + c);
        const [red, green, blue] = level ? colourOf(level) : under(r, c) ? theme.evicted : theme.later;
        image.data[at] = red;
        image.data[at + 1] = green;
        image.data[at + 2] = blue;
        image.data[at + 3] = 255;
      }
    }
    return image;
  }

  function draw() {
    const at = frame.map, width = canvas.clientWidth;
    if (!width) return;
    const type = typeOf(canvas), edge = roomy({ left: 56, right: 64, top: 4, bottom: 36 }, type);
    const side = Math.max(120, Math.min(width - edge.left - edge.right, 420));
    const height = side + edge.top + edge.bottom;
    const resized = fit(canvas, width, height);
    const key = `${frame.run}|${frame.chosen}|${at.layer}|${at.head}|${at.first}|${at.tokens.length}|${frame.lanes?.[frame.chosen]?.label}|${Boolean(frame.arrays.map_extra)}|${theme.dark}|${type.size}`;
    if (!resized && key === drawn) return;
    drawn = key;
    const rows = frame.arrays.map.shape[0], shown = frame.arrays.map_sinks.shape[1];
    const extra = frame.arrays.map_extra ? Math.round(side * 0.04) : 0, begin = extra && extra + 4;
    const strip = Math.round(side * 0.1), gap = 8, wide = side - begin - strip - gap;
    box = { edge, side, extra, begin, strip, gap, wide, rows, shown };
    const ctx = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.imageSmoothingEnabled = false;
    const put = (image, x, across) => {
      picture.width = image.width;
      picture.height = image.height;
      picture.getContext("2d").putImageData(image, 0, 0);
      ctx.drawImage(picture, edge.left + x, edge.top, across, side);
    };
    if (extra) put(paint("map_extra", () => true), 0, extra);
    put(paint("map_sinks", (r, c) => c <= at.first + r), begin, strip);
    // Where a pixel stands for several tokens, smoothing keeps thin lines from flickering.
    ctx.imageSmoothingEnabled = rows > wide;
    put(paint("map", (r, c) => c <= r), begin + strip + gap, wide);

    ctx.font = `${type.small}px system-ui, sans-serif`;
    ctx.fillStyle = theme.muted;
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((s) => rows / s <= 6) || 1000;
    const ticks = [];
    for (let t = Math.ceil(at.first / step) * step; t < at.first + rows; t += step) ticks.push(t);
    // A label at the very edge would be cut off, or run into its neighbour.
    const inside = (t, least) => (t - at.first) / rows > least;
    for (const t of ticks.filter((t) => inside(t, 0.015))) ctx.fillText(count(t), edge.left - 4, edge.top + ((t - at.first + 0.5) / rows) * side);
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    for (const t of ticks.filter((t, i) => i % 2 === 0 && inside(t, 0.08))) {
      ctx.fillText(count(t), edge.left + begin + strip + gap + ((t - at.first + 0.5) / rows) * wide, edge.top + side + 4);
    }
    ctx.fillText(`0–${shown - 1}`, edge.left + begin + strip / 2, edge.top + side + 4);
    ctx.fillText(extra ? "attended token (left: extra sink, first ones magnified)" : "attended token (left: the first ones, magnified)", edge.left + side / 2, edge.top + side + 20 * type.grown);
    ctx.save();
    ctx.translate(7 * type.grown, edge.top + side / 2);
    ctx.rotate(-Math.PI / 2);
    ctx.fillText("query token", 0, -4 * type.grown);
    ctx.restore();
    bar(ctx, edge.left + side + 10, edge.top, 9, side, WEIGHT_MARKS, theme);
    canvas.setAttribute("aria-label", `Attention of layer ${at.layer}, head ${at.head}: tokens ${at.first} to ${at.first + rows - 1}, logarithmic colour. Arrow keys go through its cells.`);
  }

  // The parts of the map from its left: what they are called, where each begins, how wide it is, and its columns.
  const parts = () => [
    ...(box.extra ? [["map_extra", 0, box.extra, 1]] : []), ["map_sinks", box.begin, box.strip, box.shown], ["map", box.begin + box.strip + box.gap, box.wide, box.rows],
  ];

  // Says what stands in a cell, beside a place on the canvas; nothing where there is no such cell.
  function tell(row, name, column, x, y) {
    const at = frame.map, known = frame.arrays[name];
    tip.hidden = row < 0 || row >= box.rows || !known;
    if (tip.hidden) return;
    const key = name === "map_extra" ? "the extra sink" : name === "map_sinks" ? `${JSON.stringify(at.sink_tokens[column])} (${column})` : `${JSON.stringify(at.tokens[column])} (${at.first + column})`;
    const level = known.data[row * known.shape[1] + column];
    const later = name === "map" ? column > row : name === "map_sinks" && column > at.first + row;
    const weight = level ? weightText(frame.constants.levels, level) : later ? "comes later" : "evicted";
    say(tip, `${JSON.stringify(at.tokens[row])} (${at.first + row}) → ${key}: ${weight}`);
    tip.style.left = `${Math.max(0, Math.min(x + 12, canvas.clientWidth - 260))}px`;
    tip.style.top = `${y + 16}px`;
  }

  canvas.addEventListener("mousemove", (e) => {
    if (!frame?.map || !box) return;
    const x = e.offsetX - box.edge.left, under = parts().find(([, begin, wide]) => x >= begin && x < begin + wide);
    const [name, begin, wide, columns] = under || ["", 0, 1, 1];
    tell(Math.floor(((e.offsetY - box.edge.top) / box.side) * box.rows), name, Math.floor(((x - begin) / wide) * columns), e.offsetX, e.offsetY);
  });
  // Shows and says the cell where the keyboard is.
  function stand() {
    pointer.hidden = !here || !frame?.map || !box;
    if (pointer.hidden) return;
    const all = parts(), most = all.reduce((sum, [, , , columns]) => sum + columns, 0) - 1;
    here = { row: Math.max(0, Math.min(box.rows - 1, here.row)), column: Math.max(0, Math.min(most, here.column)) };
    let column = here.column, k = 0;
    while (column >= all[k][3]) column -= all[k++][3];
    const [name, begin, wide, columns] = all[k], w = wide / columns, h = box.side / box.rows;
    const x = box.edge.left + begin + column * w, y = box.edge.top + here.row * h;
    Object.assign(pointer.style, { left: `${x}px`, top: `${y}px`, width: `${w}px`, height: `${h}px` });
    tell(here.row, name, column, x, y);
  }
  canvas.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
    if (!by || !frame?.map || !box) return;
    e.preventDefault();
    // A first press shows where one is: the newest token, and what it gives to the first one.
    const far = e.shiftKey ? 10 : 1;
    here = here ? { row: here.row + far * by[0], column: here.column + far * by[1] } : { row: box.rows - 1, column: 0 };
    stand();
  });
  canvas.addEventListener("blur", () => {
    here = null;
    tip.hidden = pointer.hidden = true;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });

  function show(next, nextTheme) {
    frame = next;
    theme = nextTheme;
    const at = frame.map;
    const name = frame.head ? `Layer ${frame.head[0]}, head ${frame.head[1]}` : "Attention map";
    const sub = at ? ` attention map, tokens ${count(at.first)} to ${count(at.first + at.tokens.length - 1)}${at.note ? `: ${at.note}` : ""}` : "";
    if (painted !== name + sub) {
      painted = name + sub;
      title.replaceChildren(name, el("span", { class: "sk-sub" }, sub));
    }
    invite.hidden = Boolean(at);
    say(invite, frame.invitation || (frame.head ? "The map appears when this lane has read something." : "Click a cell above: that head’s attention map is drawn here."));
    holder.hidden = legend.hidden = !at;
    if (at) draw();
    if (here) stand();
  }
  return { node, show };
}
