// A recorded conversation: the player stands where a person would write.

function makeRecordedTalk(root, send, redraw, data) {
  function possible(recording, view) {
    view.chosen = Math.min(view.chosen, recording.lanes.length - 1);
    if (view.head && !(view.head[0] < recording.layers && view.head[1] < recording.heads)) view.head = null;
    if (view.token && !(view.token[0] < recording.lanes.length && view.token[1] < recording.tokensOf(view.token[0]))) view.token = null;
  }
  function look(view, { lane, head, token, paint }) {
    if (lane !== undefined) view.chosen = lane;
    if (head !== undefined) view.head = head;
    if (token !== undefined) view.token = token === null ? null : [view.chosen, token];
    if (paint !== undefined) view.paint = paint;
  }
  function fill(recording, view, player, note, pick) {
    const paint = el("button", { type: "button", title: "Colour every token by its NLL: the stronger the colour, the more surprising", onclick: () => pick("pick", { paint: !view.paint }) }, "Surprise");
    player.node.querySelector(".sk-steps").after(paint);
    const talk = makeTalk(root, pick, note, player.node);
    return (frame, theme) => {
      paint.setAttribute("aria-pressed", view.paint);
      flag(paint, "sk-on", view.paint);
      talk(frame, theme);
    };
  }
  const seen = { ...data, view: { paint: false, ...data.view } }, stops = (recording) => recording.stops;
  return makeReplay(root, send, redraw, seen, { noun: "conversation", open: openTalk, part: "turn", stops, look, possible, fill });
}
