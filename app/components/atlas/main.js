// The atlas: a large map or two that look at the same place, small ones, and the rows and columns of one token.

function makeAtlas(root, send, redraw) {
  const shared = { x: 0, y: 0, z: null, linear: false };
  let frame = null, waiting = 0, resting = 0, last = "", told = null;
  const tell = (rested) => {
    const region = worlds[0].wanted(), now = JSON.stringify([region, frame?.head, frame?.kind, frame?.pool, frame?.run]);
    const place = worlds[0].place();
    if (now === last && !(rested && `${place}` !== `${told}`)) return;
    last = now;
    told = place;
    send("region", { ...region, place, at: Date.now() });
  };
  // What is drawn next is asked for at once; the address says where one rests.
  const ask = () => {
    clearTimeout(waiting);
    clearTimeout(resting);
    waiting = setTimeout(tell, 15);
    resting = setTimeout(tell, 400, true);
  };
  const both = { asked: ask, moved: () => worlds.forEach((w) => w.draw()), chosen: (at) => send("pick", { ...at, at: Date.now() }) };
  const worlds = [makeWorld(shared, both), makeWorld(shared, both)];
  const many = makeMany(send), rows = makeRows(redraw), grid = makeGrid(send);
  const tools = el("div", { class: "sk-tools" },
    el("button", { type: "button", "aria-label": "Zoom in", onclick: () => worlds[0].zoom(2) }, "+"),
    el("button", { type: "button", "aria-label": "Zoom out", onclick: () => worlds[0].zoom(0.5) }, "−"),
    el("button", { type: "button", onclick: () => worlds[0].whole() }, "whole text"),
    el("span", { class: "sk-small" }, "wheel or + − to zoom, drag or arrow keys to move, click or Enter for one token's row and column, shift + arrow keys for the next"));
  const legend = el("div", { class: "sk-legend" });
  const pair = el("div", { class: "sk-pairs" }, worlds[0].node, worlds[1].node);
  root.replaceChildren(el("div", { class: "sk-atlas" },
    el("div", { class: "sk-columns" },
      el("div", { class: "sk-left" }, tools, pair, legend),
      el("div", { class: "sk-right" }, grid.node, rows.node)),
    many.node));

  return (next, theme) => {
    frame = next;
    window.__sinkscope_atlas = { tile: frame.tile, scale: frame.region.scale, head: frame.head, low: frame.low, high: frame.high, marked: frame.cross && [frame.cross.row, frame.cross.column] };
    shared.linear = frame.colour === "linear";
    const two = frame.headings.length > 1;
    flag(root.firstChild, "sk-two", two);
    worlds[1].node.hidden = !two;
    worlds[0].show(frame, theme, frame.arrays.map, frame.arrays.first, frame.headings[0]);
    if (two) worlds[1].show(frame, theme, frame.arrays.other, frame.arrays.other_first, frame.headings[1]);
    legend.replaceChildren(el("span", {}, el("i", { style: `background:${css(theme.evicted)}` }), "evicted"), el("span", {}, el("i", { style: `background:${css(theme.later)};border:1px solid ${theme.line}` }), "comes later"));
    rows.show(frame, theme);
    grid.show(frame, theme);
    many.show(frame, theme, shared.linear);
    ask();
  };
}

export default (component) => mount(component, makeAtlas);
