// The map of recall: lengths across, depths down, a block for each policy.  Cells are buttons: they are made once for a
// shape and change in place, so that neither focus nor what is read of one is lost while others come.

function makeRecall(root, send) {
  const tip = el("div", { class: "sk-tip sk-recall-tip", role: "status", hidden: true });
  const maps = el("div", { class: "sk-recall-maps" }), legend = el("div", { class: "sk-legend sk-small" });
  const holder = el("div", { class: "sk-holder" }, maps, tip);
  root.replaceChildren(el("div", { class: "sk-recall" }, holder, legend));
  let shape = "", blocks = [], frame = null;

  function tell(button, words) {
    tip.hidden = !words;
    if (!words) return;
    say(tip, words);
    placeTip(tip, button.getBoundingClientRect(), holder.getBoundingClientRect());
  }

  function made(lane) {
    const { lengths, depths, maps: given } = frame;
    const name = el("h2", { class: "sk-title" }, given[lane].label);
    const grid = el("div", { class: "sk-recall-grid", role: "group", "aria-label": given[lane].label, style: `--columns: ${lengths.length}` });
    const buttons = depths.map((depth, row) => {
      grid.append(el("span", { class: "sk-small" }, depth));
      return lengths.map((length, column) => {
        const button = el("button", { type: "button", tabindex: row || column ? -1 : 0, onclick: () => send("pick", { lane, row, column, at: Date.now() }) });
        const words = () => frame.maps[lane]?.cells[row]?.[column]?.tip;
        for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => tell(button, words()));
        // What is pressed is told below the maps, and its neighbours are seen again.
        for (const name of ["mouseleave", "blur", "click"]) button.addEventListener(name, () => tell(button, ""));
        grid.append(button);
        return button;
      });
    });
    grid.append(el("span"), ...lengths.map((length) => el("span", { class: "sk-small sk-recall-length" }, length)));
    // One cell of a block is reached by Tab, the others by arrow keys.
    grid.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[e.key];
      const row = buttons.findIndex((of) => of.includes(e.target));
      if (!by || row < 0) return;
      e.preventDefault();
      const to = buttons[row + by[0]]?.[buttons[row].indexOf(e.target) + by[1]];
      if (!to) return;
      e.target.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    });
    return { node: el("section", { class: "sk-recall-map" }, name, grid), buttons };
  }

  return (given, theme) => {
    frame = given;
    const now = JSON.stringify([given.lengths, given.depths, given.maps.map((m) => m.label)]);
    if (now !== shape) {
      shape = now;
      tell(null, "");
      blocks = given.maps.map((_, lane) => made(lane));
      maps.replaceChildren(...blocks.map((b) => b.node));
    }
    given.maps.forEach((map, lane) => map.cells.forEach((line, row) => line.forEach((cell, column) => {
      const button = blocks[lane].buttons[row][column];
      button.className = `sk-${cell.state}`;
      button.style.background = cell.state === "done" || cell.state === "part" ? cell.colour : "";
      button.style.color = cell.state === "done" || cell.state === "part" ? cell.ink : "";
      say(button, cell.text);
      button.setAttribute("aria-label", cell.tip.replaceAll("\n", ". "));
      button.setAttribute("aria-pressed", String([lane, row, column].every((n, i) => n === given.chosen?.[i])));
    })));
    legend.replaceChildren(
      el("span", {}, given.scale[0], el("i", { class: "sk-recall-bar", style: `background: linear-gradient(90deg, ${given.colours.join(", ")})` }), given.scale[1]),
      ...[...(given.dense ? [["sk-fails", "dense fails"]] : []), ["sk-none", "not asked yet"]].map(([name, words]) => el("span", {}, el("i", { class: name }), words)),
      el("span", {}, "depth of the fact in % down, tokens of the text across"));
  };
}

export default (component) => mount(component, makeRecall);
