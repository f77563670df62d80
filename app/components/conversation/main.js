// The chat page: the lanes of a conversation, the field to write in, and the instruments beside them.

function makeConversation(root, send) {
  const lanes = makeLanes(send), composer = makeComposer(send), grid = makeGrid(send), meters = makeMeters(), card = makeCard();
  const caution = el("div", { class: "sk-caution" });
  const hint = el("div", { class: "sk-hint" });
  root.replaceChildren(
    el("div", { class: "sk-columns sk-talk" },
      el("div", { class: "sk-left" }, composer.note, lanes.node, composer.node,
        el("p", { class: "sk-truth" }, "No policy here extends what a model can recall: what has left the cache is gone. Sinks only keep it fluent."), caution),
      el("div", { class: "sk-right" }, grid.node, hint, meters.node, card.node)));
  return (frame, theme) => {
    for (const part of [composer, lanes, grid, meters, card]) part.show(frame, theme);
    say(caution, frame.caution);
    const row = frame.row;
    say(hint, row ? `Shaded: what the outlined token gave to each, layer ${row.layer}, head ${row.head}; stronger is more, on a logarithmic scale.`
      : frame.lanes.some((l) => l.total) ? `Click a token: what it looked back at, with ${frame.head ? `layer ${frame.head[0]}, head ${frame.head[1]}` : "the head that is chosen above"}.` : "");
    painted(frame, { status: frame.status, totals: frame.lanes.map((l) => l.total) });
  };
}

export default (component) => mount(component, makeConversation);
