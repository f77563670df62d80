// A recorded conversation on the page: the player stands where a person would write, and no server is asked.

function makeRecorded(root, send, redraw, data) {
  const words = el("div", { class: "sk-note", role: "status" }, "Opening the conversation …");
  root.replaceChildren(words);
  const note = el("div", { class: "sk-note sk-empty", role: "status", "aria-live": "polite" });
  const paint = el("button", { type: "button", "aria-pressed": "false", title: "Colour every token by its NLL: darker is more surprising", onclick: () => { view.paint = !view.paint; redraw(); } }, "Surprise");
  const view = { ...data.view, paint: false };
  let recording = null, player = null, talk = null, frame = null, made = "";

  function settled() {
    const { paint: _, ...rest } = view;
    send("rest", { ...rest, at: player.position, when: Date.now() });
  }
  function pick(what, { lane, head, token }) {
    if (what !== "pick") return;
    if (lane !== undefined) view.chosen = lane;
    if (head !== undefined) view.head = head;
    if (token !== undefined) view.token = token === null ? null : [view.chosen, token];
    redraw();
    settled();
  }
  function possible() {
    view.chosen = Math.min(view.chosen, recording.lanes.length - 1);
    if (view.head && !(view.head[0] < recording.layers && view.head[1] < recording.heads)) view.head = null;
    if (view.token && !(view.token[0] < recording.lanes.length && view.token[1] < recording.tokensOf(view.token[0]))) view.token = null;
  }
  function opened(bytes) {
    recording = openTalk(bytes);
    player = makePlayer(recording, {
      move: redraw, settled, press: (what) => send("press", { what, at: Date.now() }),
      stopsOf: () => recording.stops, part: "turn", actions: data.actions || [],
    });
    player.node.querySelector(".sk-steps").after(paint);
    talk = makeTalk(root, pick, note, player.node);
    if (data.at) player.goTo(data.at);
    redraw();
  }
  recordingBytes(data.recording).then(opened).catch((e) => {
    say(words, e.message || "The conversation could not be opened: reload the page.");
    flag(words, "sk-bad", true);
  });

  return (now, theme) => {
    if (!recording) return;
    say(note, now.note || "");
    flag(note, "sk-empty", !now.note);
    possible();
    paint.setAttribute("aria-pressed", view.paint);
    flag(paint, "sk-on", view.paint);
    const key = `${player.position}|${JSON.stringify(view)}`;
    if (key !== made) {
      made = key;
      frame = recording.frameAt(player.position, view);
    }
    talk(frame, theme);
  };
}
