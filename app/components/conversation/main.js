// The chat page: the lanes of a conversation, and the instruments beside them; below the lanes, the field to write in.

const NO_POLICY = "No policy here extends what a model can recall: what has left the cache is gone. Sinks only keep it fluent.";

// A conversation on a root, live or recorded: `above` and `below` stand around its lanes.
function makeTalk(root, send, above, below) {
  const lanes = makeLanes(send), grid = makeGrid(send), meters = makeMeters(), card = makeCard();
  const caution = el("div", { class: "sk-caution" });
  const hint = el("div", { class: "sk-hint" });
  root.replaceChildren(
    el("div", { class: "sk-columns sk-talk" },
      el("div", { class: "sk-left" }, above, lanes.node, below, el("p", { class: "sk-truth" }, NO_POLICY), caution),
      el("div", { class: "sk-right" }, grid.node, hint, meters.node, card.node)));
  return (frame, theme) => {
    for (const part of [lanes, grid, meters, card]) part.show(frame, theme);
    say(caution, frame.caution);
    const row = frame.row;
    say(hint, frame.hint ?? (row ? `Shaded: what the outlined token gave to each, layer ${row.layer}, head ${row.head}; stronger is more, on a logarithmic scale.`
      : frame.lanes.some((l) => l.total) ? `Click a token: what it looked back at, with ${frame.head ? `layer ${frame.head[0]}, head ${frame.head[1]}` : "the head that is chosen above"}.` : ""));
    painted(frame, { status: frame.status, totals: frame.lanes.map((l) => l.total) });
  };
}

function makeConversation(root, send) {
  const composer = makeComposer(send), talk = makeTalk(root, send, composer.note, composer.node);
  return (frame, theme) => {
    composer.show(frame);
    talk(frame, theme);
  };
}

const makePage = (root, send, redraw, first) => (first.recording ? makeRecordedTalk(root, send, redraw, first) : makeConversation(root, send));

export default (component) => mount(component, makePage);
