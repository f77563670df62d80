// One plotly figure that is drawn again in place: what a person zoomed stays, and nothing jumps.

function makeChart(root, send, redraw) {
  const node = el("div", { class: "sk-plot sk-chart" });
  root.replaceChildren(node);
  let plotly = null, text = "", figure = null;
  loadPlotly().then((P) => { plotly = P; redraw(); }, () => say(node, NO_PLOTS));

  // A figure is made for a light page: what is black there is white here.
  function suited(x, theme) {
    if (Array.isArray(x)) return x.map((v) => suited(v, theme));
    if (x && typeof x === "object" && !ArrayBuffer.isView(x)) return Object.fromEntries(Object.entries(x).map(([k, v]) => [k, suited(v, theme)]));
    return typeof x === "string" ? laneColour(x, theme) : x;
  }

  const titled = (title, size) => (title ? { title: { ...title, font: { size } } } : {});
  const axis = (given, theme, size) => ({ gridcolor: theme.line, zerolinecolor: theme.line, linecolor: theme.line, automargin: true, fixedrange: true, ...given, ...titled(given?.title, size) });

  return (given, theme) => {
    if (text !== given.figure) figure = JSON.parse(text = given.figure);
    node.style.setProperty("--height", `${given.height}px`);
    node.style.setProperty("--projected", `${given.projected}vh`);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", given.alt);
    if (!plotly || !node.clientWidth) return;
    const layout = suited(figure.layout, theme);
    const size = parseFloat(getComputedStyle(root).fontSize);
    const axes = Object.fromEntries(Object.keys({ xaxis: 0, yaxis: 0, ...layout }).filter((k) => /^[xy]axis\d*$/.test(k)).map((k) => [k, axis(layout[k], theme, size)]));
    const annotations = layout.annotations?.map((a) => ({ ...a, font: { ...a.font, size: size * 0.92 } }));
    plotly.react(node, suited(figure.data, theme), {
      ...layout, ...axes, annotations, width: node.clientWidth, height: node.clientHeight, uirevision: "same", ...bare(theme, size),
    }, PLOT_CONFIG);
  };
}

export default (component) => mount(component, makeChart);
