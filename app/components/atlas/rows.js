// What one token gave to the text, and what the text gave to one token: bars over the stretch.

function makeRows(redraw) {
  const plots = ["from", "to"].map((name) => ({ name, title: el("div", { class: "sk-small" }), bars: el("div", { class: "sk-plot sk-bars", role: "img" }) }));
  const of = el("span", { class: "sk-sub" });
  const node = el("section", { class: "sk-panel" }, el("div", { class: "sk-title" }, "One token", of), ...plots.flatMap((p) => [p.title, p.bars]));
  let plotly = null, key = "";
  loadPlotly().then((P) => { plotly = P; redraw(); }, () => say(plots[0].bars, NO_PLOTS));

  function show(frame, theme) {
    const cross = frame.cross;
    node.hidden = !cross;
    if (!cross) return;
    // Of two stretches only the first is asked.
    say(of, cross.of && ` ${cross.of}`);
    // A bar is as high as the highest of its tokens.
    const wide = cross.tokens, most = wide > 1 ? `; each bar is the largest of ${wide} tokens` : "";
    const texts = { from: `Attention from ${cross.row_text} to the text${most}`, to: `Attention from the text to ${cross.column_text}${most}` };
    for (const plot of plots) say(plot.title, texts[plot.name]);
    const width = plots[0].bars.clientWidth, type = typeOf(plots[0].bars);
    const now = [frame.run, frame.head.join("."), cross.row, cross.column, width, plots[0].bars.clientHeight, type.size, theme.dark].join("|");
    if (now === key || !width || !plotly) return;
    key = now;
    for (const plot of plots) {
      const { data } = frame.arrays[plot.name];
      const colour = theme.dark ? "#56b4e9" : "#0072b2";
      const highest = Math.max(frame.constants.levels.floor, ...data.filter((v) => !Number.isNaN(v)));
      const ends = [0, Math.round(frame.total / 2), frame.total];
      const axis = { gridcolor: theme.line, zerolinecolor: theme.line, fixedrange: true };
      plotly.react(plot.bars, [{
        type: "bar", x: Array.from(data, (_, k) => k * wide), y: data, offset: 0, width: wide,
        // A bar that is narrower than a pixel is seen by its line.
        marker: { color: colour, line: { color: colour, width: 1 } }, hovertemplate: `%{y:.2~g} ${wide > 1 ? "from" : "at"} %{x:,d}${wide > 1 ? " on" : ""}<extra></extra>`,
      }], {
        width, height: plot.bars.clientHeight, margin: roomy({ l: 56, r: 24, t: 8, b: 20 }, type), showlegend: false, ...bare(theme, type.small),
        // A label at the very end of a range is left out where rounding puts it beyond.
        xaxis: { ...axis, showgrid: false, range: [0, 1.001 * frame.total], tickvals: ends, ticktext: ends.map(count) },
        yaxis: { ...axis, range: [0, 1.02 * highest], tickvals: [0, highest], ticktext: ["0", highest.toPrecision(2)] },
      }, PLOT_CONFIG);
      plot.bars.setAttribute("aria-label", `${texts[plot.name]}; the largest is ${highest.toPrecision(2)}.`);
    }
  }
  return { node, show };
}
