// Plotly, loaded once, and what all plots have in common.

let plotlyScript = null;

// plotly.js comes from this server.  It is served as plain text, so it becomes a script here.
function loadPlotly() {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  plotlyScript ??= fetch(new URL("app/static/plotly.min.js", document.baseURI))
    .then((answer) => answer.blob())
    .then((blob) => new Promise((resolve, reject) => {
      const script = el("script", { src: URL.createObjectURL(new Blob([blob], { type: "text/javascript" })) });
      script.onload = () => resolve(window.Plotly);
      script.onerror = reject;
      document.head.append(script);
    }));
  return plotlyScript;
}

const PLOT_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
const NO_PLOTS = "The plotting script could not be loaded: reload the page.";
// What all plots have in common.
const bare = (theme, size = 12) => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false, font: { family: PLOT_FONT, size, color: theme.muted },
});
const PLOT_CONFIG = { displayModeBar: false, responsive: false, doubleClick: false, scrollZoom: false };

// Pixels by which the numbers beside a plot stand lower: higher, where the 0 of both axes would touch at the origin.
const ABOVE_ORIGIN = -5;

// Plotly takes text for markup; so does nothing that comes from here.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// Pixels that a text takes in a plot.
const pen = document.createElement("canvas").getContext("2d");
function widthOf(text, size) {
  pen.font = `${size}px ${PLOT_FONT}`;
  return pen.measureText(text).width;
}

// A text in lines that are no wider than some pixels, as far as its words let it.
function lines(text, room, size) {
  const found = [];
  for (const word of text.split(" ")) {
    const longer = found.length ? `${found[found.length - 1]} ${word}` : word;
    if (found.length && widthOf(longer, size) <= room) found[found.length - 1] = longer;
    else found.push(word);
  }
  return found;
}

// Room for the widest label at the right of a plot, a value behind it: what does not fit into two fifths of the width
// goes into more lines, `most` of them.
function roomFor(lanes, width, type) {
  const names = lanes.map((lane) => `${lane.brief}, 00.0`);
  const room = Math.min(Math.max(...names.map((name) => widthOf(name, type.size))), width * 0.4 - 10);
  return { type, room, right: Math.ceil(room) + 10, most: Math.max(...names.map((name) => lines(name, room, type.size).length)) };
}
// Beside the area of a plot, which ends at `right` and is `height` high from `top` on, at a share of that height.
const endLabel = (text, share, colour, { room, type }, { right, top, height }) => {
  const shown = lines(text, room, type.size);
  return { text: shown, left: right + 6, top: top + (1 - share) * height - (shown.length * type.line) / 2, size: type.size, line: type.line, colour };
};

// Texts over a plot: [{ text: [lines], left, top, size, line, colour }], in pixels from its corner.  Plotly would draw
// them twice with every drawing, for a quarter of the time that it takes.
function textsOver(plot) {
  const layer = el("div", { class: "sk-texts" }), spans = [];
  layer.style.fontFamily = PLOT_FONT;
  return (texts) => {
    if (layer.parentNode !== plot) plot.append(layer);
    while (spans.length > texts.length) spans.pop().remove();
    texts.forEach(({ text, left, top, size, line, colour }, i) => {
      if (!spans[i]) layer.append((spans[i] = el("span")));
      const place = `left: ${left}px; top: ${top}px; font-size: ${size}px; line-height: ${line}px; color: ${colour}`;
      say(spans[i], text.join("\n"));
      if (spans[i].place !== place) spans[i].style.cssText = spans[i].place = place;
    });
  };
}

// Labels at curve ends, moved apart where they would touch; places are shares of the height.
function apart(places, least) {
  const order = places.map((y, i) => [Math.max(0.02, y), i]).sort((a, b) => a[0] - b[0]);
  for (let k = 1; k < order.length; k++) order[k][0] = Math.max(order[k][0], order[k - 1][0] + least);
  // Down again from the top; a label of several lines is half above its place.
  let highest = Math.min(0.98, 1.04 - least / 2);
  for (const label of order.reverse()) {
    label[0] = Math.min(label[0], highest);
    highest = label[0] - least;
  }
  const out = [];
  for (const [y, i] of order) out[i] = y;
  return out;
}
