// Perplexity and memory against tokens read.  Plotly draws; zoom stays with the person who zoomed.

// ms between two drawings: an SVG of thousands of points is not free, and memory moves slowly.
const LEAST_BETWEEN = 380, LEAST_BETWEEN_MEMORY = 2000;

function times(value) {
  const known = { 0.125: "⅛ ×", 0.25: "¼ ×", 0.5: "½ ×" };
  return known[value] || `${value} ×`;
}

// Ticks that suit a logarithmic range [low, high].
function logTicks(low, high, relative) {
  const steps = [];
  for (let e = -3; e <= 6; e++) for (const m of [1, 2, 5]) steps.push(m * 10 ** e);
  const shown = (relative ? [0.125, 0.25, 0.5, ...steps.filter((s) => s >= 1)] : steps.filter((s) => s >= 1)).filter((s) => s >= low * 0.98 && s <= high * 1.02);
  const kept = shown.length > 8 ? shown.filter((s) => Math.abs(Math.log10(s) - Math.round(Math.log10(s))) < 0.01 || s < 1) : shown;
  return { tickvals: kept, ticktext: kept.map((v) => (relative ? times(v) : count(v))) };
}

// The range that shows what most of the curves do; spikes may leave it at the top.
function rangeOf(frame) {
  const all = [];
  frame.lanes.forEach((_, i) => {
    const y = frame.arrays[`y${i}`]?.data || [];
    for (let k = 0; k < y.length; k += 3) if (Number.isFinite(y[k]) && y[k] > 0) all.push(y[k]);
  });
  if (!all.length) return frame.mode === "relative" ? [0.5, 4] : [5, 100];
  all.sort((a, b) => a - b);
  const at = (share) => all[Math.floor(share * (all.length - 1))];
  const [low, middle, high] = [at(0.002), at(0.5), at(0.998)];
  if (frame.mode === "relative") return [Math.min(0.7, low * 0.9), Math.max(2.2, Math.min(high * 1.2, 30))];
  return [low * 0.8, Math.max(Math.min(high * 1.2, middle * 40), low * 3)];
}

function makeCurves(send) {
  const title = el("div", { class: "sk-title" });
  const modes = ["relative", "rolling", "cumulative"].map((mode) => {
    const button = el("button", { type: "button", onclick: () => send("pick", { mode, at: Date.now() }) }, mode);
    return [mode, button];
  });
  const plot = el("div", { class: "sk-plot", role: "img" });
  const memory = el("div", { class: "sk-plot sk-memory", role: "img" });
  const node = el("div", {},
    el("section", { class: "sk-panel" }, el("div", { class: "sk-head" }, title, el("div", { class: "sk-segments" }, ...modes.map(([, b]) => b))), plot),
    el("section", { class: "sk-panel" }, el("div", { class: "sk-title" }, "KV-cache memory", el("span", { class: "sk-sub" }, " MB, measured; dotted: what dense would take, predicted")), memory));
  let plotly = null, frame = null, theme = null, last = 0, lastMemory = 0, timer = 0, drawn = "", titled = "";
  let zoom = null, zoomOf = "", listening = false; // the ranges that a person zoomed to, and the curve that they belong to
  loadPlotly().then((P) => { plotly = P; draw(); }, () => say(plot, "The plotting script could not be loaded: reload the page."));

  const base = (height, right) => ({
    margin: { l: 46, r: right, t: 8, b: 34 }, height, showlegend: false, hovermode: "closest", dragmode: "zoom",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: PLOT_FONT, size: 12, color: theme.muted },
    xaxis: { gridcolor: theme.line, zeroline: false, rangemode: "tozero", tickformat: "~s", fixedrange: false },
  });

  // Plotly gives up a zoom as soon as new data move the range that it began from: so it is kept here.
  function listen() {
    listening = true;
    plot.on("plotly_relayout", (change) => {
      if (!("xaxis.range[0]" in change) && !("yaxis.range[0]" in change)) return;
      const { xaxis, yaxis } = plot.layout;
      zoom = { x: [...xaxis.range], y: [...yaxis.range] };
      zoomOf = subject();
    });
    plot.on("plotly_doubleclick", () => {
      zoom = null;
      draw();
    });
  }
  const subject = () => `${frame.run}|${frame.mode}`;

  function traces(x, y, unit, mark) {
    return frame.lanes.map((lane, i) => ({
      type: "scatter", mode: "lines", name: lane.label, x: frame.arrays[x + i]?.data || [], y: frame.arrays[y + i]?.data || [],
      line: { color: laneColour(lane.color, theme), width: 2, dash: lane.dash, simplify: true },
      hovertemplate: `%{y:.3~g} ${unit} at %{x:,d}<extra>${lane.label}</extra>`, connectgaps: false, ...mark,
    }));
  }

  function endLabels(height, low, high, log) {
    const ends = [];
    frame.lanes.forEach((lane, i) => {
      const x = frame.arrays[`x${i}`]?.data, y = frame.arrays[`y${i}`]?.data;
      if (!x?.length) return;
      const clipped = Math.max(low, Math.min(high, y[y.length - 1]));
      const share = log ? (Math.log10(clipped) - Math.log10(low)) / (Math.log10(high) - Math.log10(low)) : (clipped - low) / (high - low);
      ends.push({ lane, share });
    });
    const places = apart(ends.map((e) => e.share), 16 / height);
    return ends.map((e, k) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 6, yref: "paper", y: places[k], yanchor: "middle", showarrow: false, align: "left",
      text: brief(e.lane),
      font: { color: laneColour(e.lane.color, theme), size: 12 },
    }));
  }
  // A lane's title; where others have the same one, with what they do not have in common.
  function brief(lane) {
    const same = frame.lanes.filter((l) => l.title === lane.title).map((l) => l.label.split(", "));
    if (same.length === 1) return lane.title;
    const own = lane.label.split(", ").filter((part) => !same.every((parts) => parts.includes(part)));
    const whole = lane.label.startsWith(own[0]) ? own.join(", ") : [lane.title, ...own].join(", ");
    const text = whole.replace("Sinks + window", "Sinks");
    // There is room for some seventeen letters; what is particular comes first.
    return text.length > 17 && own.length ? own.join(", ").replace("Sinks + window", "Sinks") : text;
  }

  function draw() {
    clearTimeout(timer);
    timer = 0;
    if (!plotly || !frame || !plot.clientWidth) return;
    last = performance.now();
    const height = plot.clientHeight, width = plot.clientWidth, right = width < 500 ? 92 : 128;
    if (zoomOf !== subject()) zoom = null;
    const [low, high] = zoom ? zoom.y.map((v) => 10 ** v) : rangeOf(frame);
    const relative = frame.mode === "relative";
    const layout = base(height, right);
    layout.width = width;
    layout.yaxis = { type: "log", range: [Math.log10(low), Math.log10(high)], gridcolor: theme.line, zeroline: false, ...logTicks(low, high, relative) };
    const longest = Math.max(64, ...frame.lanes.map((_, i) => { const x = frame.arrays[`x${i}`]?.data; return x?.length ? x[x.length - 1] : 0; }));
    layout.xaxis.range = zoom ? zoom.x : [0, longest * 1.005];
    layout.shapes = frame.marks.map((m) => ({
      type: "line", x0: m.x, x1: m.x, yref: "paper", y0: 0, y1: 1, layer: "below",
      line: { color: m.kind === "switch" ? laneColour(frame.lanes[m.lane].color, theme) : theme.muted, width: m.kind === "switch" ? 1.5 : 1, dash: m.kind === "switch" ? "solid" : "dot" },
    }));
    const level = {};
    layout.annotations = frame.marks.filter((m) => m.x <= longest).map((m) => {
      const row = Object.keys(level).filter((x) => Math.abs(x - m.x) < longest * 0.2).length;
      level[m.x] = true;
      const late = m.x > longest * 0.75;
      return {
        x: m.x, yref: "paper", y: 1 - row * 0.07, yanchor: "top", xanchor: late ? "right" : "left", xshift: late ? -4 : 4, showarrow: false, text: m.text,
        font: { size: 11, color: m.kind === "switch" ? laneColour(frame.lanes[m.lane].color, theme) : theme.muted }, bgcolor: theme.background,
      };
    });
    if (relative) layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, layer: "below", line: { color: theme.muted, width: 1 } });
    layout.annotations.push(...endLabels(height - 42, low, high, true));
    plotly.react(plot, traces("x", "y", relative ? "×" : "perplexity", {}), layout, PLOT_CONFIG);
    if (!listening) listen();

    if (last - lastMemory > LEAST_BETWEEN_MEMORY || frame.status !== "running") drawMemory(width, right, layout.xaxis.range);
    const facts = frame.lanes.map((l, i) => `${l.label}: ${i === frame.reference ? "the reference" : `${digits(l.relative)} times`}, rolling perplexity ${digits(l.rolling)}`);
    plot.setAttribute("aria-label", `Perplexity against tokens read. ${facts.join("; ")}.`);
    memory.setAttribute("aria-label", `Cache memory. ${frame.lanes.map((l) => `${l.label}: ${size(l.bytes)}`).join("; ")}.`);
    window.__sinkscope = { seq: frame.seq, published: frame.published, painted: Date.now() / 1000, mode: frame.mode };
    (window.__sinkscopeFrames ??= []).push(window.__sinkscope);
    if (window.__sinkscopeFrames.length > 600) window.__sinkscopeFrames.shift();
  }

  function drawMemory(width, right, range) {
    lastMemory = performance.now();
    const small = base(memory.clientHeight, right);
    small.width = width;
    small.xaxis.title = { text: "tokens read", standoff: 4 };
    const tops = frame.lanes.map((_, i) => { const y = frame.arrays[`my${i}`]?.data; return y?.length ? y[y.length - 1] : 0; });
    const top = Math.max(1, ...tops);
    small.yaxis = { gridcolor: theme.line, zeroline: false, range: [0, top * 1.12], nticks: 4 };
    small.xaxis.range = range;
    const predicted = { type: "scatter", mode: "lines", x: frame.arrays.px?.data || [], y: frame.arrays.py?.data || [], line: { color: theme.muted, width: 1.5, dash: "dot" }, hovertemplate: "%{y:.0f} MB predicted<extra>Dense</extra>" };
    small.annotations = ends(tops, top, memory.clientHeight - 42);
    plotly.react(memory, [predicted, ...traces("mx", "my", "MB", {})], small, PLOT_CONFIG);
  }

  // Lanes with caches of one size lie on one line, and get one label.
  function ends(tops, top, height) {
    const groups = [];
    frame.lanes.forEach((lane, i) => {
      if (!tops[i]) return;
      const near = groups.find((g) => Math.abs(g.value - tops[i]) < top * 0.06);
      if (near) near.lanes.push(lane);
      else groups.push({ value: tops[i], lanes: [lane] });
    });
    const places = apart(groups.map((g) => g.value / (top * 1.12)), 15 / height);
    return groups.map((g, k) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 6, yref: "paper", y: places[k], yanchor: "middle", showarrow: false,
      text: g.lanes.length > 1 ? `${g.lanes.length} lanes, ${digits(g.value)}` : `${g.lanes[0].title.replace("Sinks + window", "Sinks + win.")}, ${digits(g.value)}`,
      font: { size: 12, color: g.lanes.length > 1 ? theme.muted : laneColour(g.lanes[0].color, theme) },
    }));
  }

  function show(next, nextTheme) {
    frame = next;
    theme = nextTheme;
    for (const [mode, button] of modes) {
      flag(button, "sk-on", frame.mode === mode);
      button.setAttribute("aria-pressed", frame.mode === mode);
    }
    const reference = frame.lanes[frame.reference].label;
    const words = {
      relative: [`Perplexity, times that of ${reference}`, ` same tokens, last ${frame.roll}, log scale`],
      rolling: ["Rolling perplexity", ` last ${frame.roll} tokens, log scale`],
      cumulative: ["Cumulative perplexity", " all tokens so far, log scale"],
    }[frame.mode];
    if (titled !== words.join()) {
      titled = words.join();
      title.replaceChildren(words[0], el("span", { class: "sk-sub" }, words[1]));
    }
    const choice = `${frame.run}|${frame.mode}|${frame.reference}|${theme.dark}|${plot.clientWidth}|${frame.marks.length}`;
    if (`${choice}|${frame.published}` === drawn) return;
    // What a person did is answered at once; what the lanes read can wait a little.
    const wait = drawn.startsWith(`${choice}|`) ? LEAST_BETWEEN - (performance.now() - last) : 0;
    drawn = `${choice}|${frame.published}`;
    if (wait <= 0) draw();
    else timer ||= setTimeout(draw, wait);
  }
  return { node, show };
}
