// The chat page: puts the parts together, draws the newest frame once per screen refresh, and drops older ones.

function makeConversation(root) {
  const talk = { send: () => {} };
  const send = (name, value) => talk.send(name, value);
  const lanes = makeLanes(send), composer = makeComposer(send), grid = makeGrid(send), meters = makeMeters(), card = makeCard();
  const caution = el("div", { class: "sk-caution" });
  const hint = el("div", { class: "sk-hint" });
  root.replaceChildren(
    el("div", { class: "sk-columns sk-talk" },
      el("div", { class: "sk-left" }, composer.note, lanes.node, composer.node,
        el("p", { class: "sk-truth" }, "No policy here extends what a model can recall: what has left the cache is gone. Sinks only keep it fluent."), caution),
      el("div", { class: "sk-right" }, grid.node, hint, meters.node, card.node)));

  let newest = null, asked = false;
  const draw = () => {
    asked = false;
    if (!newest || !root.isConnected) return;
    const frame = decode(newest), theme = themeOf(root);
    flag(root, "sk-dark", theme.dark);
    for (const part of [composer, lanes, grid, meters, card]) part.show(frame, theme);
    say(caution, frame.caution);
    const row = frame.row;
    say(hint, row ? `Shaded: what the outlined token gave to each, layer ${row.layer}, head ${row.head}; stronger is more, on a logarithmic scale.`
      : frame.lanes.some((l) => l.total) ? `Click a token: what it looked back at, with ${frame.head ? `layer ${frame.head[0]}, head ${frame.head[1]}` : "the head that is chosen above"}.` : "");
    window.__sinkscope = { seq: frame.seq, published: frame.published, painted: Date.now() / 1000, status: frame.status, totals: frame.lanes.map((l) => l.total) };
    (window.__sinkscopeFrames ??= []).push(window.__sinkscope);
    if (window.__sinkscopeFrames.length > 600) window.__sinkscopeFrames.shift();
  };
  const ask = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(draw);
  };
  talk.show = (bytes) => { newest = bytes; ask(); };
  new ResizeObserver(ask).observe(root);
  watchTheme(root, ask);
  return talk;
}

export default function (component) {
  const root = component.parentElement.querySelector(".sk");
  root.talk ??= makeConversation(root);
  root.talk.send = component.setTriggerValue;
  if (component.data) root.talk.show(component.data);
}
