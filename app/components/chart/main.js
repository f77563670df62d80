// One plotly figure that is drawn again in place: what a person zoomed stays, and nothing jumps.

function makeChart(root) {
  const node = el("div", { class: "sk-plot sk-chart", role: "img" });
  root.replaceChildren(node);
  const chart = {};
  let plotly = null, newest = null, asked = false;
  loadPlotly().then((P) => { plotly = P; ask(); }, () => say(node, "The plotting script could not be loaded: reload the page."));

  function ask() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(draw);
  }

  // A figure is made for a light page: what is black there is white here.
  function suited(x, theme) {
    if (Array.isArray(x)) return x.map((v) => suited(v, theme));
    if (x && typeof x === "object" && !ArrayBuffer.isView(x)) return Object.fromEntries(Object.entries(x).map(([k, v]) => [k, suited(v, theme)]));
    return typeof x === "string" ? laneColour(x, theme) : x;
  }

  const titled = (title, size) => (title ? { title: { ...title, font: { size } } } : {});
  const axis = (given, theme, size) => ({ gridcolor: theme.line, zerolinecolor: theme.line, linecolor: theme.line, automargin: true, fixedrange: true, ...given, ...titled(given?.title, size) });

  function draw() {
    asked = false;
    if (!plotly || !newest || !root.isConnected || !node.clientWidth) return;
    const { data, layout } = newest.figure, theme = themeOf(root);
    const given = suited(layout, theme);
    const size = parseFloat(getComputedStyle(root).fontSize);
    const axes = Object.fromEntries(Object.keys({ xaxis: 0, yaxis: 0, ...given }).filter((k) => /^[xy]axis\d*$/.test(k)).map((k) => [k, axis(given[k], theme, size)]));
    const annotations = given.annotations?.map((a) => ({ ...a, font: { ...a.font, size: size * 0.92 } }));
    plotly.react(node, suited(data, theme), {
      ...given, ...axes, annotations, width: node.clientWidth, height: node.clientHeight, uirevision: "same", dragmode: false,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: PLOT_FONT, size, color: theme.muted },
    }, PLOT_CONFIG);
  }

  chart.show = (next) => {
    newest = { ...next, figure: JSON.parse(next.figure) };
    node.style.setProperty("--height", `${next.height}px`);
    node.style.setProperty("--projected", `${next.projected}vh`);
    node.setAttribute("aria-label", next.alt);
    ask();
  };
  new ResizeObserver(ask).observe(root);
  watchTheme(root, ask);
  return chart;
}

export default function (component) {
  const root = component.parentElement.querySelector(".sk");
  root.chart ??= makeChart(root);
  if (component.data) root.chart.show(component.data);
}
