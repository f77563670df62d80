// What one token gave to the text, and what the text gave to one token: bars over the stretch.

function makeRows() {
  const title = el("div", { class: "sk-title" });
  const plots = ["from", "to"].map(() => ({ name: el("div", { class: "sk-small" }), canvas: el("canvas", { role: "img" }) }));
  const node = el("section", { class: "sk-panel" }, title, ...plots.flatMap((p) => [p.name, el("div", { class: "sk-holder" }, p.canvas)]));
  let key = "";

  function show(frame, theme) {
    const cross = frame.cross;
    node.hidden = !cross;
    if (!cross) return;
    const width = plots[0].canvas.clientWidth;
    const now = [frame.run, frame.head.join("."), cross.row, cross.column, width, theme.dark].join("|");
    if (now === key || !width) return;
    key = now;
    say(title, "One token");
    [["from", `Attention from ${cross.row_text} to the text`], ["to", `Attention from the text to ${cross.column_text}`]].forEach(([name, text], i) => {
      say(plots[i].name, text);
      const { data } = frame.arrays[name], canvas = plots[i].canvas, height = 84;
      fit(canvas, width, height);
      const ctx = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
      ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
      ctx.clearRect(0, 0, width, height);
      const left = 56, bottom = 16, wide = width - left - 8, tall = height - bottom - 6;
      ctx.font = "11px system-ui, sans-serif";
      ctx.fillStyle = theme.muted;
      ctx.textBaseline = "middle";
      ctx.textAlign = "right";
      const most = Math.max(1e-6, ...Array.from(data).filter((v) => !Number.isNaN(v)));
      ctx.fillText(most.toPrecision(2), left - 4, 8);
      ctx.fillText("0", left - 4, 6 + tall);
      ctx.fillStyle = theme.line;
      ctx.fillRect(left, 6 + tall, wide, 1);
      ctx.fillStyle = theme.dark ? "#56b4e9" : "#0072b2";
      for (let k = 0; k < data.length; k++) {
        if (Number.isNaN(data[k])) continue;
        const h = (data[k] / most) * tall;
        ctx.fillRect(left + (k / data.length) * wide, 6 + tall - h, Math.max(1, wide / data.length - 0.5), h);
      }
      ctx.fillStyle = theme.muted;
      ctx.textBaseline = "top";
      ctx.textAlign = "left";
      ctx.fillText("0", left, 9 + tall);
      ctx.textAlign = "right";
      ctx.fillText(count(frame.total), left + wide, 9 + tall);
      canvas.setAttribute("aria-label", `${text}; the largest is ${most.toPrecision(2)}.`);
    });
  }
  return { node, show };
}
