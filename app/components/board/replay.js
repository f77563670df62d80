// The board of a recording.

function makeRecordedBoard(root, send, redraw, data) {
  function possible(recording, view) {
    const lanes = recording.lanes.length, { modes, paints, grids, compared } = recording.constants;
    view.chosen = Math.min(view.chosen, lanes - 1);
    view.reference = Math.min(view.reference, lanes - 1);
    if (view.head && !(view.head[0] < recording.layers && view.head[1] < recording.heads)) view.head = null;
    if (lanes === 1 && compared.includes(view.mode)) view.mode = modes[1];
    if (!grids.includes(view.grid)) view.grid = grids[0];
    if (!modes.includes(view.mode)) view.mode = modes[0];
    if (!view.head || !paints.includes(view.paint)) view.paint = paints[0];
  }
  function look(view, value) {
    for (const name of Object.keys(view)) if (name in value) view[name] = value[name];
  }
  function fill(recording, view, player, note, pick) {
    const { modes, paints, grids } = recording.constants, wholes = {};
    const cards = makeCards(pick), curves = makeCurves(pick, modes), grid = makeGrid(pick, grids), map = makeMap(), strip = makeStrip(pick, paints), card = makeCard();
    root.replaceChildren(player.node, note, ...boardParts({ cards, curves, grid, map, strip, card }));
    const whole = data.whole ? recording.lanes.map((_, i) => makeGrid((what, value) => pick(what, { ...value, chosen: i }))) : [];
    if (whole.length) root.append(el("h2", { class: "sk-title" }, "Over all that was read"), el("div", { class: "sk-whole" }, ...whole.map((g) => g.node)));
    // What was read in all was read under all policies of a lane.
    const named = recording.lanes.map(({ changes }) => changes.map(([, name]) => name).join(" → "));
    return (frame, theme) => {
      // The whole curves say how much room the plots need, so that nothing jumps while it plays.
      frame.whole ??= wholes[`${view.mode}|${view.reference}`] ??= recording.frameAt(recording.total, view).arrays;
      for (const part of [cards, curves, grid, map, strip, card]) part.show(frame, theme);
      const lanes = frame.lanes.map((lane, i) => ({ ...lane, label: named[i] || lane.label }));
      whole.forEach((of, i) => of.show({ ...frame, lanes, published: "all", chosen: i, head: i === view.chosen ? view.head : null, arrays: { grid: recording.wholeGrid(i, view.grid) } }, theme));
    };
  }
  const stops = (recording, view) => recording.stops(view.chosen);
  return makeReplay(root, send, redraw, data, { noun: "recording", open: openRecording, part: "chunk", stops, look, possible, fill });
}
