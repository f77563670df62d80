// What a conversation costs: milliseconds per token and cache memory, against its length.

function makeMeters() {
  const times = el("div", { class: "sk-plot sk-meter", role: "img" }), memory = el("div", { class: "sk-plot sk-meter", role: "img" });
  const node = el("section", { class: "sk-panel" },
    el("h2", { class: "sk-title" }, "Time per token", el("span", { class: "sk-sub" }, " ms, answers only, lower quartile")), times,
    el("h2", { class: "sk-title" }, "KV cache", el("span", { class: "sk-sub" }, " MB, measured, against tokens of conversation")), memory);
  const texts = new Map([times, memory].map((place) => [place, textsOver(place)]));
  let plotly = null, frame = null, theme = null, drawn = "", last = 0, timer = 0;
  loadPlotly().then((P) => { plotly = P; draw(); }, () => say(times, NO_PLOTS));

  function plot(place, name, unit) {
    const type = typeOf(place), labels = roomFor(frame.lanes, place.clientWidth, type), height = place.clientHeight;
    const edge = roomy({ left: 40, top: 6, bottom: 24 }, type);
    const area = { right: place.clientWidth - labels.right, top: edge.top, height: height - edge.top - edge.bottom };
    const curves = frame.lanes.map((lane, i) => ({ lane, x: frame.arrays[`x${i}`]?.data || [], y: frame.arrays[name + i]?.data || [] }));
    const longest = Math.max(64, ...curves.map((c) => c.x[c.x.length - 1] || 0));
    const all = curves.flatMap((c) => [...c.y]).sort((a, b) => a - b);
    // A first answer warms up: it shall not press the rest flat.
    const top = (name === "ms" ? (all[Math.floor(0.98 * (all.length - 1))] || 50) * 1.5 : (all[all.length - 1] || 5) * 1.15);
    const ends = curves.filter((c) => c.y.length);
    const places = apart(ends.map((c) => Math.min(0.95, c.y[c.y.length - 1] / top)), (labels.most * type.line) / area.height);
    plotly.react(place, curves.map((c) => ({
      // A single point is no line yet.
      type: "scatter", mode: c.y.length === 1 ? "markers" : "lines", x: c.x, y: c.y, customdata: Array.from(c.x, (t) => plain(nameAt(c.lane, t))), line: { color: laneColour(c.lane.color, theme), width: 2, dash: c.lane.dash },
      hovertemplate: `%{y:.3~g} ${unit} at %{x:,d}<extra>%{customdata}</extra>`,
    })), {
      height, width: place.clientWidth, margin: { l: edge.left, r: labels.right, t: edge.top, b: edge.bottom }, showlegend: false, hovermode: "closest", ...bare(theme, type.size),
      xaxis: { gridcolor: theme.line, zeroline: false, range: [0, longest * 1.01], tickformat: "~s", fixedrange: true },
      yaxis: { gridcolor: theme.line, zeroline: false, range: [0, top], nticks: 4, ticklabelshift: ABOVE_ORIGIN, fixedrange: true },
    }, PLOT_CONFIG);
    texts.get(place)(ends.map((c, k) => endLabel(`${c.lane.brief}, ${digits(c.y[c.y.length - 1])}`, places[k], inkColour(c.lane.color, theme), labels, area)));
    const values = curves.map((c) => `${c.lane.label}: ${c.y.length ? `${digits(c.y[c.y.length - 1])} ${unit}` : "nothing yet"}`).join("; ");
    place.setAttribute("aria-label", `${name === "ms" ? "Time per token" : "KV cache"}. ${values}`);
  }

  function draw() {
    clearTimeout(timer);
    timer = 0;
    if (!plotly || !frame || !times.clientWidth) return;
    last = performance.now();
    plot(times, "ms", "ms");
    plot(memory, "mb", "MB");
  }

  function show(next, nextTheme) {
    frame = next;
    theme = nextTheme;
    const key = `${frame.run}|${frame.published}|${theme.dark}|${times.clientWidth}|${times.clientHeight}|${typeOf(times).size}|${frame.lanes.map((l) => l.color)}`;
    if (key === drawn) return;
    drawn = key;
    const wait = 900 - (performance.now() - last);
    if (wait <= 0) draw();
    else timer ||= setTimeout(draw, wait);
  }
  return { node, show };
}
