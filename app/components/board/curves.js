// Perplexity and memory against tokens read.  Plotly draws; zoom stays with the person who zoomed.

// ms between two drawings: an SVG of thousands of points is not free, and memory moves slowly, once a run is long: where
// its plot would be so much longer, it is drawn at once.
const LEAST_BETWEEN = 350, LEAST_BETWEEN_MEMORY = 4000, MEMORY_AFTER = 250, MEMORY_AT_MOST = 1000, LONGER = 1.1;
const MAX_ROWS = 5;
// Room beside a plot; above it is that for a tick's label at the very top, which stands a little higher than its tick.
const ROOM = { left: 46, bottom: 34, top: 14 };

function times(value) {
  const known = { 0.125: "⅛ ×", 0.25: "¼ ×", 0.5: "½ ×" };
  return known[value] || `${value} ×`;
}

// Ticks at even steps, for a range that is too narrow for those of a logarithmic scale.
function evenTicks(low, high) {
  const least = (high - low) / 6, power = Math.floor(Math.log10(least)), step = [1, 2, 5, 10].map((m) => m * 10 ** power).find((s) => s >= least);
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(Number((k * step).toFixed(Math.max(0, -power))));
  return ticks;
}

// Ticks that suit a logarithmic range [low, high].
function logTicks(low, high, relative) {
  const steps = [];
  for (let e = -3; e <= 6; e++) for (const m of [1, 2, 5]) steps.push(m * 10 ** e);
  const shown = (relative ? [0.125, 0.25, 0.5, ...steps.filter((s) => s >= 1)] : steps.filter((s) => s >= 1)).filter((s) => s >= low * 0.98 && s <= high * 1.02);
  const kept = shown.length > 8 ? shown.filter((s) => Math.abs(Math.log10(s) - Math.round(Math.log10(s))) < 0.01 || s < 1) : shown.length < 2 ? evenTicks(low, high) : shown;
  return { tickvals: kept, ticktext: kept.map((v) => (relative ? times(v) : Number.isInteger(v) ? count(v) : `${v}`)) };
}

// The range that shows what most of the curves do; spikes may leave it at the top.
// Of a recording: what its whole curves do.
function rangeOf(frame) {
  const all = [];
  frame.lanes.forEach((_, i) => {
    const y = (frame.whole || frame.arrays)[`y${i}`]?.data || [];
    for (let k = 0; k < y.length; k += 3) if (Number.isFinite(y[k]) && y[k] > 0) all.push(y[k]);
  });
  if (!all.length) return { relative: [0.45, 4], KL: [0, 1], "top-1": [0, 102] }[frame.mode] || [5, 100];
  all.sort((a, b) => a - b);
  const at = (share) => all[Math.floor(share * (all.length - 1))];
  const [low, middle, most, high] = [at(0.002), at(0.5), at(0.9), at(0.998)];
  if (frame.mode === "KL") return [0, Math.max(0.05, high * 1.15)];
  if (frame.mode === "top-1") return [Math.max(0, low - 8), 102];
  if (frame.mode === "relative") return [Math.min(0.7, low * 0.9), Math.max(2.2, Math.min(high * 1.2, Math.max(30, most * 1.5)))];
  return [low * 0.8, Math.max(Math.min(high * 1.2, middle * 40), low * 3)];
}

// Marks above the plot, where they cover nothing: each gets its left edge, as near to its place as the width lets it,
// and a row in which it meets no other.  Where there are too many, the oldest have none: their lines stay.
// x: token → pixel; [marks with their lines, left and row; rows].
function arranged(marks, x, width, size) {
  const rows = [];
  const placed = [...marks].sort((a, b) => b.x - a.x).flatMap((mark) => {
    const text = lines(mark.text, width - 8, size);
    const wide = Math.max(...text.map((line) => widthOf(line, size))) + 8;
    const left = Math.max(0, Math.min(x(mark.x) + 3, width - wide));
    const free = (row) => !(rows[row] || []).some(([a, b]) => left < b && left + wide > a);
    let row = 0;
    while (!text.every((_, k) => free(row + k))) row++;
    if (row + text.length > MAX_ROWS) return [];
    text.forEach((_, k) => (rows[row + k] ??= []).push([left, left + wide]));
    return [{ mark, text, left, row }];
  });
  return [placed, rows.length];
}

const LOG = { type: "log", of: Math.log10, back: (v) => 10 ** v }, LINEAR = { type: "linear", of: Number, back: Number };

const last = (array) => array?.data.at(-1) ?? 0;

function makeCurves(send, names) {
  const title = el("h2", { class: "sk-title" });
  const modes = names.map((mode) => {
    const button = el("button", { type: "button", onclick: () => send("pick", { mode, at: Date.now() }) }, mode);
    return [mode, button];
  });
  const plot = el("div", { class: "sk-plot", role: "img" });
  const memory = el("div", { class: "sk-plot sk-memory", role: "img" });
  const whole = el("button", { type: "button", class: "sk-link", onclick: () => unzoom() }, "double-click: whole curve");
  const better = el("span", {}, "lower is better"), missing = el("div", { class: "sk-invite", hidden: true });
  const below = el("div", { class: "sk-below" }, better, el("span", {}, "drag to zoom, ", whole));
  const node = el("div", {},
    el("section", { class: "sk-panel" }, el("div", { class: "sk-head" }, title, el("div", { class: "sk-segments" }, ...modes.map(([, b]) => b))), missing, plot, below),
    el("section", { class: "sk-panel" }, el("h2", { class: "sk-title" }, "KV-cache memory", el("span", { class: "sk-sub" }, " MB, measured; dotted: what dense would take, predicted")), memory));
  const showTexts = textsOver(plot), showMemoryTexts = textsOver(memory);
  let plotly = null, frame = null, theme = null, latest = 0, lastMemory = 0, timer = 0, memoryTimer = 0, drawn = "", titled = "";
  let scale = LOG, type = null, edge = ROOM, above = 0, heldFor = "", memoryDrawn = "", memoryUpTo = 0, memoryDue = 0;
  let zoom = null, zoomOf = "", listening = false; // the ranges that a person zoomed to, and the curve that they belong to
  loadPlotly().then((P) => { plotly = P; draw(); }, () => say(plot, NO_PLOTS));

  const base = (height, { right, type }, top) => ({
    ...bare(theme, type.size), margin: { l: edge.left, r: right, t: top, b: edge.bottom }, height, showlegend: false, hovermode: "closest", dragmode: "zoom",
    xaxis: { gridcolor: theme.line, zeroline: false, rangemode: "tozero", tickformat: "~s", fixedrange: false, ticklabeloverflow: "allow" },
  });

  // Plotly gives up a zoom as soon as new data move the range that it began from: so it is kept here.
  function listen() {
    listening = true;
    plot.on("plotly_relayout", (change) => {
      if (!("xaxis.range[0]" in change) && !("yaxis.range[0]" in change)) return;
      const { xaxis, yaxis } = plot.layout;
      zoom = { x: [...xaxis.range], y: [...yaxis.range] };
      zoomOf = subject();
      // What is written over the plot goes with it.
      draw();
    });
    plot.on("plotly_doubleclick", unzoom);
  }
  function unzoom() {
    zoom = null;
    draw();
  }
  const subject = () => `${frame.run}|${frame.mode}`;

  function traces(x, y, unit) {
    return frame.lanes.map((lane, i) => {
      const at = frame.arrays[x + i]?.data || [];
      return {
        type: "scatter", mode: "lines", x: at, y: frame.arrays[y + i]?.data || [], name: plain(lane.label), ...(lane.past.length ? { customdata: Array.from(at, (t) => plain(nameAt(lane, t))) } : {}),
        line: { color: laneColour(lane.color, theme), width: 2, dash: lane.dash, simplify: true },
        hovertemplate: `%{y:.3~g} ${unit} at %{x:,d}<extra>%{${lane.past.length ? "customdata" : "fullData.name"}}</extra>`, connectgaps: false,
      };
    });
  }

  function endLabels(area, low, high, labels) {
    const ends = frame.lanes.flatMap((lane, i) => {
      const y = frame.arrays[`y${i}`]?.data;
      if (!y?.length) return [];
      const clipped = scale.of(Math.max(low, Math.min(high, y[y.length - 1])));
      return Number.isFinite(clipped) ? [{ lane, share: (clipped - scale.of(low)) / (scale.of(high) - scale.of(low)) }] : [];
    });
    const places = apart(ends.map((e) => e.share), (labels.most * type.line) / area.height);
    return ends.map((e, k) => endLabel(e.lane.brief, places[k], inkColour(e.lane.color, theme), labels, area));
  }

  function draw() {
    clearTimeout(timer);
    timer = 0;
    if (!plotly || !frame || !plot.clientWidth) return;
    latest = performance.now();
    const height = plot.clientHeight, width = plot.clientWidth, labels = roomFor(frame.lanes, width, (type = typeOf(plot)));
    edge = roomy(ROOM, type);
    if (zoomOf !== subject()) zoom = null;
    scale = frame.constants.fidelity.includes(frame.mode) ? LINEAR : LOG;
    const [low, high] = zoom ? zoom.y.map(scale.back) : rangeOf(frame);
    const relative = frame.mode === "relative";
    const longest = Math.max(64, frame.recorded ? frame.total : 0, ...frame.lanes.map((_, i) => last(frame.arrays[`x${i}`])));
    const range = zoom ? zoom.x : [0, longest * 1.005];
    const x = (token) => edge.left + ((token - range[0]) / (range[1] - range[0])) * (width - edge.left - labels.right);
    const [marks, rows] = arranged(frame.marks.filter((m) => m.x >= range[0] && m.x <= range[1]), x, width, type.small);
    // A plot that has made room for marks keeps it: nothing jumps when they move.
    const held = `${frame.run}|${width}|${type.size}`;
    above = heldFor === held ? Math.max(above, rows) : rows;
    heldFor = held;
    const top = edge.top + above * type.smallLine;
    const layout = base(height, labels, top);
    layout.width = width;
    layout.yaxis = { type: scale.type, range: [low, high].map(scale.of), gridcolor: theme.line, zeroline: false, ticklabeloverflow: "allow", ...(scale === LOG ? logTicks(low, high, relative) : { nticks: 6, ticklabelshift: ABOVE_ORIGIN }) };
    layout.xaxis.range = range;
    const tint = (mark, of) => (mark.kind === "switch" ? of(frame.lanes[mark.lane].color, theme) : theme.muted);
    layout.shapes = frame.marks.map((m) => ({
      type: "line", x0: m.x, x1: m.x, yref: "paper", y0: 0, y1: 1, layer: "below",
      line: { color: tint(m, laneColour), width: m.kind === "switch" ? 1.5 : 1, dash: m.kind === "switch" ? "solid" : "dot" },
    }));
    const texts = marks.map(({ mark, text, left, row }) => ({
      text, left, top: top - (row + text.length) * type.smallLine, size: type.small, line: type.smallLine, colour: tint(mark, inkColour),
    }));
    if (relative) layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, layer: "below", line: { color: theme.muted, width: 1 } });
    plotly.react(plot, traces("x", "y", { relative: "×", KL: "nats", "top-1": "%" }[frame.mode] || "perplexity"), layout, PLOT_CONFIG);
    const area = { right: width - labels.right, top, height: height - top - edge.bottom };
    showTexts([...texts, ...endLabels(area, low, high, labels)]);
    if (!listening) listen();

    clearTimeout(memoryTimer);
    // A jump is answered by what is looked at first.  Where drawings follow each other faster than that, as on a slow machine
    // that plays, memory does not wait for their end.
    memoryDue ||= latest + MEMORY_AT_MOST;
    if (frame.recorded && latest < memoryDue) memoryTimer = setTimeout(() => drawMemory(width, labels, range), MEMORY_AFTER);
    else if (frame.recorded || latest - lastMemory > LEAST_BETWEEN_MEMORY || range[1] > LONGER * memoryUpTo || frame.status !== "running" || memoryDrawn !== memoryState(width)) drawMemory(width, labels, range);
    const facts = frame.lanes.map((l, i) => `${l.label}: ${i === frame.reference ? "the reference" : `${digits(l.relative)} times`}, rolling perplexity ${digits(l.rolling)}`);
    const measured = frame.lanes.map((l, i) => `${l.label}: ${digits(frame.arrays[`y${i}`]?.data.at(-1))}`);
    plot.setAttribute("aria-label", scale === LOG ? `Perplexity against tokens read. ${facts.join("; ")}.` : `${titled}. ${measured.join("; ")}.`);
    memory.setAttribute("aria-label", `Cache memory. ${frame.lanes.map((l) => `${l.label}: ${size(l.bytes)}`).join("; ")}.`);
    painted(frame, { mode: frame.mode });
  }

  // What a person or the system changed is seen at once.
  const memoryState = (width) => `${frame.run}|${theme.dark}|${width}|${type.size}|${frame.lanes.map((l) => l.brief)}`;

  function drawMemory(width, labels, range) {
    lastMemory = performance.now();
    memoryDue = 0;
    memoryDrawn = memoryState(width);
    memoryUpTo = range[1];
    const height = Math.max(Math.round(136 * type.grown), edge.top + edge.bottom + frame.lanes.length * labels.most * type.line);
    memory.style.height = `${height}px`;
    const small = base(height, labels, edge.top);
    small.width = width;
    small.xaxis.title = { text: "tokens read", standoff: 4, font: { size: type.size } };
    const tops = frame.lanes.map((_, i) => last(frame.arrays[`my${i}`]));
    const top = Math.max(1, ...tops, ...frame.lanes.map((_, i) => last(frame.whole?.[`my${i}`])));
    small.yaxis = { gridcolor: theme.line, zeroline: false, range: [0, top * 1.12], nticks: 4, ticklabeloverflow: "allow", ticklabelshift: ABOVE_ORIGIN };
    small.xaxis.range = range;
    const predicted = { type: "scatter", mode: "lines", x: frame.arrays.px?.data || [], y: frame.arrays.py?.data || [], line: { color: theme.muted, width: 1.5, dash: "dot" }, hovertemplate: "%{y:.0f} MB predicted<extra>Dense</extra>" };
    plotly.react(memory, [predicted, ...traces("mx", "my", "MB")], small, PLOT_CONFIG);
    showMemoryTexts(ends(tops, top, labels, { right: width - labels.right, top: edge.top, height: height - edge.top - edge.bottom }));
  }

  // Lanes with caches of one size lie on one line, and get one label, whose number is that of each.
  function ends(tops, top, labels, area) {
    const groups = [];
    frame.lanes.forEach((lane, i) => {
      if (!tops[i]) return;
      const same = groups.find((g) => digits(g.value) === digits(tops[i]));
      if (same) same.lanes.push(lane);
      else groups.push({ value: tops[i], lanes: [lane] });
    });
    const places = apart(groups.map((g) => g.value / (top * 1.12)), (labels.most * type.line) / area.height);
    return groups.map((g, k) => {
      const [first, ...others] = g.lanes;
      return endLabel(`${others.length ? `${g.lanes.length} lanes` : first.brief}, ${digits(g.value)}`, places[k], others.length ? theme.muted : inkColour(first.color, theme), labels, area);
    });
  }

  function show(next, nextTheme) {
    frame = next;
    theme = nextTheme;
    const alone = frame.lanes.length === 1;
    for (const [mode, button] of modes) {
      button.disabled = alone && frame.constants.compared.includes(mode);
      button.title = button.disabled ? "One lane alone has none to be compared with" : "";
      flag(button, "sk-on", frame.mode === mode);
      button.setAttribute("aria-pressed", frame.mode === mode);
    }
    const reference = frame.lanes[frame.reference].label, first = frame.lanes[0].label;
    const words = {
      relative: [`Perplexity, times that of ${reference}`, ` same tokens, last ${frame.roll}, log scale`],
      rolling: ["Rolling perplexity", ` last ${frame.roll} tokens, log scale`],
      cumulative: ["Cumulative perplexity", " all tokens so far, log scale"],
      KL: [`KL divergence from ${first}`, ` nats per token, last ${frame.roll} tokens`],
      "top-1": [`Same most probable token as ${first}`, ` % of the last ${frame.roll} tokens`],
    }[frame.mode];
    say(better, frame.mode === "top-1" ? "higher is better" : "lower is better");
    missing.hidden = frame.measured || !frame.constants.fidelity.includes(frame.mode);
    say(missing, notMeasured(frame));
    if (titled !== words.join()) {
      titled = words.join();
      title.replaceChildren(words[0], el("span", { class: "sk-sub" }, words[1]));
    }
    const choice = `${frame.run}|${frame.mode}|${frame.reference}|${theme.dark}|${plot.clientWidth}|${plot.clientHeight}|${typeOf(plot).size}|${frame.marks.length}|${frame.lanes.map((l) => l.brief)}|${frame.jumps}`;
    if (`${choice}|${frame.published}` === drawn) return;
    // What a person did is answered at once; what the lanes read can wait a little.
    const wait = drawn.startsWith(`${choice}|`) ? LEAST_BETWEEN - (performance.now() - latest) : 0;
    drawn = `${choice}|${frame.published}`;
    if (wait <= 0) draw();
    else timer ||= setTimeout(draw, wait);
  }
  return { node, show };
}
