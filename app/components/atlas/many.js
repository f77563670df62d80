// Small maps side by side: all heads of a layer, or all layers of a head.  A press opens one in the large map.

function makeMany(send) {
  const title = el("div", { class: "sk-title" });
  const board = el("div", { class: "sk-many" });
  const node = el("section", { class: "sk-panel" }, title, board);
  let cells = [], key = "";

  function show(frame, theme, linear) {
    const many = frame.many || [];
    node.hidden = !many.length;
    const now = [frame.run, frame.kind, frame.pool, many.map((m) => `${m.layer}.${m.head}${m.ready ? "" : "?"}`).join(), frame.head.join("."), theme.dark, linear].join("|");
    if (node.hidden || now === key) return;
    key = now;
    say(title, frame.many_title);
    if (cells.length !== many.length) {
      cells = many.map((m, i) => {
        const canvas = el("canvas", {}), text = el("span", {});
        const button = el("button", { type: "button", onclick: () => send("pick", { layer: cells[i].layer, head: cells[i].head, at: Date.now() }) }, canvas, text);
        return { canvas, text, button };
      });
      board.replaceChildren(...cells.map((c) => c.button));
    }
    many.forEach((m, i) => {
      const cell = cells[i];
      Object.assign(cell, { layer: m.layer, head: m.head });
      say(cell.text, `${m.layer}.${m.head}`);
      cell.button.setAttribute("aria-label", `Layer ${m.layer}, head ${m.head}`);
      flag(cell.button, "sk-on", m.layer === frame.head[0] && m.head === frame.head[1]);
      const array = frame.arrays[`many${i}`];
      if (!array) {
        // What it shows is of another stretch or head.
        cell.canvas.width = cell.canvas.height = 1;
        return;
      }
      const picture = pictured(array, [0, 0], frame.many_scale, tableOf(frame, linear), theme);
      cell.canvas.width = picture.width;
      cell.canvas.height = picture.height;
      cell.canvas.getContext("2d").drawImage(picture, 0, 0);
    });
  }
  return { node, show };
}
