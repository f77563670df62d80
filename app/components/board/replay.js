// The board of a recording: what is looked at and which position is chosen here, and no server is asked.

function makeReplay(root, send, redraw, data) {
  const words = el("div", { class: "sk-note", role: "status" }, "Opening the recording …");
  root.replaceChildren(words);
  const note = el("div", { class: "sk-note sk-empty", role: "status", "aria-live": "polite" });
  const view = { ...data.view };
  let recording = null, player = null, parts = [], whole = [], frame = null, made = "", wholes = {}, jumps = 0;

  const settled = () => send("rest", { ...view, at: player.position, when: Date.now() });
  // What is pressed on a live page is sent to the server; here it is done at once.
  function pick(what, value) {
    if (what !== "pick") return;
    for (const name of Object.keys(view)) if (name in value) view[name] = value[name];
    redraw();
    settled();
  }
  function possible() {
    const lanes = recording.lanes.length, { modes, paints } = recording.constants;
    view.chosen = Math.min(view.chosen, lanes - 1);
    view.reference = Math.min(view.reference, lanes - 1);
    if (view.head && !(view.head[0] < recording.layers && view.head[1] < recording.heads)) view.head = null;
    if (lanes === 1 && view.mode === modes[0]) view.mode = modes[1];
    if (!modes.includes(view.mode)) view.mode = modes[0];
    if (!view.head || !paints.includes(view.paint)) view.paint = paints[0];
  }
  function opened(bytes) {
    recording = openRecording(bytes);
    const { modes, paints } = recording.constants;
    player = makePlayer(recording, {
      move: (_, jumped) => { jumps += jumped; redraw(); }, settled, press: (what) => send("press", { what, at: Date.now() }),
      stopsOf: () => recording.stops(view.chosen), actions: data.actions || [], pace: data.pace,
    });
    const cards = makeCards(pick), curves = makeCurves(pick, modes), grid = makeGrid(pick), map = makeMap(), strip = makeStrip(pick, paints), card = makeCard();
    parts = [cards, curves, grid, map, strip, card];
    root.replaceChildren(player.node, note, ...boardParts({ cards, curves, grid, map, strip, card }));
    if (data.whole) {
      whole = recording.lanes.map((_, i) => makeGrid((what, value) => pick(what, { ...value, chosen: i })));
      root.append(el("h2", { class: "sk-title" }, "Over all that was read"), el("div", { class: "sk-whole" }, ...whole.map((g) => g.node)));
    }
    if (data.at || data.pace) player.goTo(data.at || 1);
    if (data.pace && !stillPreferred()) player.toggle(true);
    redraw();
  }
  // Beside the recording, not after it.
  loadPlotly().catch(() => {});
  recordingBytes(data.recording).then(opened).catch((e) => {
    say(words, e.message || "The recording could not be opened: reload the page.");
    flag(words, "sk-bad", true);
  });

  return (now, theme) => {
    if (!recording) return;
    say(note, now.note || "");
    flag(note, "sk-empty", !now.note);
    possible();
    const key = `${player.position}|${JSON.stringify(view)}`;
    if (key !== made) {
      made = key;
      // The whole curves say how much room the plots need, so that nothing jumps while it plays.
      wholes[`${view.mode}|${view.reference}`] ??= recording.frameAt(recording.total, view).arrays;
      frame = recording.frameAt(player.position, view);
      frame.whole = wholes[`${view.mode}|${view.reference}`];
    }
    frame.jumps = jumps;
    for (const part of parts) part.show(frame, theme);
    whole.forEach((grid, i) => grid.show({ ...frame, published: "all", chosen: i, head: i === view.chosen ? view.head : null, arrays: { grid: recording.wholeGrid(i) } }, theme));
  };
}
