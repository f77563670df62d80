// A recording on a page: fetched, opened and played here, and no server is asked while somebody looks at it.

// `kind` says what is drawn of it: its `noun`; `open(bytes)`, which gives its frames; what one `part` of it is, and where
// these end, `stops(recording, view)`; `look(view, value)` takes up a press, and `possible(recording, view)` keeps to what
// there is; `fill(recording, view, player, note, pick)` puts it on the root, and returns (frame, theme) => { draws it }.
function makeReplay(root, send, redraw, data, { noun, open, part, stops, look, possible, fill }) {
  const words = el("div", { class: "sk-note", role: "status" }, `Opening the ${noun} …`);
  root.replaceChildren(words);
  const note = el("div", { class: "sk-note sk-empty", role: "status", "aria-live": "polite" });
  const view = { ...data.view };
  let recording = null, player = null, draw = null, frame = null, made = "", beyond = "", jumps = 0;

  const press = (what) => send("press", { what, at: Date.now() });
  const settled = () => send("rest", { ...view, at: player.position, when: Date.now() });
  // What is pressed on a live page is sent to the server; here it is done at once.
  function pick(what, value) {
    if (what !== "pick") return;
    look(view, value);
    redraw();
    settled();
  }
  function opened(bytes) {
    recording = open(bytes);
    player = makePlayer(recording, {
      move: (_, jumped) => { jumps += jumped; redraw(); }, settled, press,
      stopsOf: () => stops(recording, view), part, actions: data.actions || [], pace: data.pace,
    });
    draw = fill(recording, view, player, note, pick);
    if (data.at || data.pace) player.goTo(data.at || 1);
    if (data.pace && !stillPreferred()) player.toggle(true);
    if (data.at > recording.total) {
      beyond = `The address of this page asks for token ${count(data.at)}, and this ${noun} has ${count(recording.total)}: its end is shown.`;
      settled();
    }
    redraw();
  }
  // Beside the recording, not after it.
  loadPlotly().catch(() => {});
  recordingBytes(data.recording).then(opened).catch((e) => {
    showUnopened(root, words, e.message || `The ${noun} could not be opened: reload the page.`, data.actions, press);
  });

  return (now, theme) => {
    if (!draw) return;
    const told = [now.note, player.position === recording.total && beyond].filter(Boolean).join(" ");
    say(note, told);
    flag(note, "sk-empty", !told);
    possible(recording, view);
    const key = `${player.position}|${JSON.stringify(view)}`;
    if (key !== made) {
      made = key;
      frame = recording.frameAt(player.position, view);
    }
    frame.jumps = jumps;
    draw(frame, theme);
  };
}
