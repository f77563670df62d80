// Sink mass of every head, or the error of its output: layers across, heads up.  A cell is chosen by click; arrow keys move to one, Enter chooses it.

// How to get what a run did not measure.
const notMeasured = ({ recorded, status }) => recorded ? "This run did not measure it: read it live with Measure fidelity, or with stream --fidelity."
  : `Not measured: tick Measure fidelity at the left, with two lanes or more, and press ${status === "ready" ? "Start" : "Restart"}.`;

function makeGrid(send, choices = []) {
  const sub = el("span", { class: "sk-sub" }), name = el("span", {});
  const buttons = choices.map((grid) => [grid, el("button", { type: "button", onclick: () => send("pick", { grid, at: Date.now() }) }, grid)]);
  const title = el("div", { class: "sk-head" }, el("h2", { class: "sk-title" }, name, sub), ...(buttons.length ? [el("div", { class: "sk-segments" }, ...buttons.map(([, b]) => b))] : []));
  const canvas = el("canvas", { class: "sk-grid", tabindex: 0, role: "img" });
  const tip = el("div", { class: "sk-tip", role: "status", hidden: true });
  const node = el("section", { class: "sk-panel" }, title, el("div", { class: "sk-holder" }, canvas, tip));
  const ROOM = { left: 34, right: 44, top: 4, bottom: 34 };
  let frame = null, theme = null, edge = ROOM, drawn = "";
  let here = null; // the cell where the keyboard is

  const cell = (x, y) => {
    const [layers, heads] = frame.arrays.grid.shape;
    const w = (canvas.clientWidth - edge.left - edge.right) / layers;
    const h = (canvas.clientHeight - edge.top - edge.bottom) / heads;
    const layer = Math.floor((x - edge.left) / w), head = heads - 1 - Math.floor((y - edge.top) / h);
    return layer >= 0 && layer < layers && head >= 0 && head < heads ? [layer, head] : null;
  };
  const choose = (at) => send("pick", { head: at, at: Date.now() });
  canvas.addEventListener("click", (e) => {
    const at = frame?.arrays.grid && cell(e.offsetX, e.offsetY);
    here = null;
    if (at) choose(at);
  });
  function tell(at, x, y) {
    tip.hidden = !at;
    if (!at) return;
    const [, heads] = frame.arrays.grid.shape;
    const value = frame.arrays.grid.data[at[0] * heads + at[1]];
    say(tip, `layer ${at[0]}, head ${at[1]}: ${Number.isNaN(value) ? "not known" : value.toFixed(2)}`);
    tip.style.left = `${Math.min(x + 12, canvas.clientWidth - 150)}px`;
    tip.style.top = `${y + 14}px`;
  }
  canvas.addEventListener("mousemove", (e) => tell(frame?.arrays.grid && cell(e.offsetX, e.offsetY), e.offsetX, e.offsetY));
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  canvas.addEventListener("keydown", (e) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], Enter: null, " ": null }[e.key];
    if (move === undefined || !frame?.arrays.grid) return;
    e.preventDefault();
    const [layers, heads] = frame.arrays.grid.shape;
    const [layer, head] = here || frame.head || [0, 0];
    if (!move) {
      choose([layer, head]);
      return;
    }
    // A first press shows where one is.
    here = here ? [(layer + move[0] + layers) % layers, (head + move[1] + heads) % heads] : [layer, head];
    const [x, y, w, h] = box(here);
    tell(here, x + w, y + h);
    draw();
  });
  canvas.addEventListener("blur", () => {
    here = null;
    tip.hidden = true;
    if (frame) draw();
  });

  function show(next, nextTheme) {
    frame = next;
    theme = nextTheme;
    const label = frame.lanes[frame.chosen].label;
    say(name, errors() ? "Output error" : "Sink mass");
    say(sub, !errors() ? ` attention to the first ${frame.constants.sink_tokens} tokens, ${label}`
      : frame.measured ? ` of each head’s attention: ‖o − o′‖ / ‖o′‖, where o′ is that of ${frame.lanes[0].label}; ${label}` : ` ${notMeasured(frame)}`);
    for (const [grid, button] of buttons) {
      flag(button, "sk-on", frame.grid === grid);
      button.setAttribute("aria-pressed", frame.grid === grid);
    }
    draw();
  }

  const errors = () => frame.grid === "output error";
  const shape = () => frame.arrays.grid?.shape || [30, 9];
  function box([layer, head]) {
    const [layers, heads] = shape();
    const w = (canvas.clientWidth - edge.left - edge.right) / layers, h = (canvas.clientHeight - edge.top - edge.bottom) / heads;
    return [edge.left + layer * w - 1, edge.top + (heads - 1 - head) * h - 1, w + 1, h + 1];
  }

  function draw() {
    const grid = frame.arrays.grid;
    const [layers, heads] = shape();
    const width = canvas.clientWidth, type = typeOf(canvas);
    if (!width) return;
    edge = roomy(ROOM, type);
    const height = Math.round(Math.max(120 * type.grown, Math.min(230 * type.grown, heads * 22 + edge.top + edge.bottom)));
    const resized = fit(canvas, width, height);
    const key = `${frame.published}|${frame.grid}|${frame.chosen}|${frame.head}|${here}|${theme.dark}|${frame.run}|${type.size}`;
    if (!resized && key === drawn) return;
    drawn = key;
    const ctx = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = `${type.small}px system-ui, sans-serif`;
    const w = (width - edge.left - edge.right) / layers, h = (height - edge.top - edge.bottom) / heads;
    const gap = w > 6 ? 1 : 0;
    for (let layer = 0; layer < layers; layer++) {
      for (let head = 0; head < heads; head++) {
        const value = grid ? grid.data[layer * heads + head] : NaN;
        ctx.fillStyle = Number.isNaN(value) ? theme.line : css(VIRIDIS_256[Math.round(255 * Math.max(0, Math.min(1, value)))]);
        ctx.fillRect(edge.left + layer * w, edge.top + (heads - 1 - head) * h, w - gap, h - gap);
      }
    }
    // What is chosen has a frame; where the keyboard is, a dashed one further out.
    const framed = (at, grow, dash) => {
      const [x, y, wide, high] = box(at);
      for (const [line, colour] of [[4, "#000"], [2, "#fff"]]) {
        ctx.setLineDash(colour === "#fff" ? dash : []);
        ctx.lineWidth = line;
        ctx.strokeStyle = colour;
        ctx.strokeRect(x - grow, y - grow, wide + 2 * grow, high + 2 * grow);
      }
      ctx.setLineDash([]);
    };
    if (frame.head) framed(frame.head, 0, []);
    if (here) framed(here, 4, [4, 3]);
    ctx.fillStyle = theme.muted;
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    for (let l = 0; l < layers; l += layers > 40 ? 10 : 5) ctx.fillText(l, edge.left + (l + 0.5) * w, height - edge.bottom + 4);
    ctx.fillText("layer", edge.left + (layers * w) / 2, height - type.smallLine);
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    for (let i = 0; i < heads; i += heads > 16 ? 4 : 2) ctx.fillText(i, edge.left - 5, edge.top + (heads - 0.5 - i) * h);
    ctx.save();
    ctx.translate(9 * type.grown, edge.top + (heads * h) / 2);
    ctx.rotate(-Math.PI / 2);
    ctx.textAlign = "center";
    ctx.fillText("head", 0, 0);
    ctx.restore();
    // An error may be larger than what it is an error of.
    bar(ctx, width - edge.right + 10, edge.top, 9, heads * h, [[0.02, "0"], [0.5, "0.5"], [0.98, errors() ? "≥ 1" : "1"]], theme);
    if (grid) {
      let best = 0;
      for (let i = 1; i < grid.data.length; i++) if (grid.data[i] > grid.data[best] || Number.isNaN(grid.data[best])) best = i;
      const largest = Number.isNaN(grid.data[best]) ? "none is known" : `the largest is ${grid.data[best].toFixed(2)}, layer ${Math.floor(best / heads)}, head ${best % heads}`;
      canvas.setAttribute("aria-label", `${errors() ? "Output error" : "Sink mass"} of ${layers} layers of ${heads} heads; ${largest}. Arrow keys move, Enter chooses a head.`);
    } else canvas.setAttribute("aria-label", `${errors() ? "Output error" : "Sink mass"} of every head, layers across and heads up: ${errors() && !frame.measured ? notMeasured(frame) : "nothing was read yet."}`);
  }
  return { node, show };
}
