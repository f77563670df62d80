// The range of each channel of the keys of the chosen head, at the first tokens and at all others, where a lane stores
// its keys in few bits: a scale for each channel has to reach from end to end.

const RANGE_COLOURS = { first: "#d55e00", others: "#56b4e9" };

function makeRanges() {
  const sub = el("span", { class: "sk-sub" }), said = el("div", { class: "sk-small" });
  const canvas = el("canvas", { class: "sk-ranges", role: "img" });
  const tip = el("div", { class: "sk-tip", hidden: true });
  const sampleOf = (kind) => {
    const node = el("span", { class: "sk-range" });
    node.style.background = RANGE_COLOURS[kind];
    return node;
  };
  const firsts = el("span", {});
  const legend = el("div", { class: "sk-legend" }, sampleOf("first"), firsts, sampleOf("others"), "all others");
  const node = el("section", { class: "sk-panel", hidden: true },
    el("h2", { class: "sk-title" }, "Ranges of its keys", sub), el("div", { class: "sk-holder" }, canvas, tip), legend, said);
  const ROOM = { left: 46, right: 10, top: 6, bottom: 32 };
  let edge = ROOM;
  let frame = null, theme = null, drawn = "";

  // Least and greatest of a channel: at the first tokens, and at all others.
  function at(channel) {
    const { data, shape: [, , dim] } = frame.arrays.key_ranges;
    const [first, others] = [0, 2].map((row) => [data[row * dim + channel], data[(row + 1) * dim + channel]]);
    return { first, others };
  }
  const span = ([low, high]) => (Number.isNaN(low) ? "evicted" : `${low.toFixed(2)} to ${high.toFixed(2)}`);

  function draw() {
    const width = canvas.clientWidth, { data, shape: [, , dim] } = frame.arrays.key_ranges;
    if (!width) return;
    const type = typeOf(canvas), height = Math.round(170 * type.grown), resized = fit(canvas, width, height);
    edge = roomy(ROOM, type);
    const { layer, kv_head } = frame.map, key = `${frame.run}|${frame.chosen}|${layer}|${kv_head}|${theme.dark}|${type.size}|${data.join()}`;
    if (!resized && key === drawn) return;
    drawn = key;
    const known = data.filter((v) => !Number.isNaN(v)), low = Math.min(0, ...known), high = Math.max(0, ...known);
    const wide = (width - edge.left - edge.right) / dim, tall = height - edge.top - edge.bottom;
    const y = (v) => edge.top + ((high - v) / (high - low || 1)) * tall;
    const ctx = canvas.getContext("2d"), ratio = window.devicePixelRatio || 1;
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, width, height);
    ctx.font = `${type.small}px system-ui, sans-serif`;
    ctx.textBaseline = "middle";
    ctx.textAlign = "right";
    const step = [1, 2, 5].flatMap((m) => [0.01, 0.1, 1, 10, 100, 1000].map((e) => m * e)).sort((a, b) => a - b).find((s) => (high - low) / s <= 5) || 1e4;
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) {
      ctx.fillStyle = theme.line;
      ctx.fillRect(edge.left, y(v), width - edge.left - edge.right, 1);
      ctx.fillStyle = theme.muted;
      ctx.fillText(Number(v.toFixed(2)), edge.left - 6, Math.min(y(v), edge.top + tall - 4));
    }
    for (const [kind, share] of [["others", 0.9], ["first", 0.45]]) {
      ctx.fillStyle = RANGE_COLOURS[kind];
      for (let channel = 0; channel < dim; channel++) {
        const [from, to] = at(channel)[kind];
        // One number is a line.
        if (!Number.isNaN(from)) ctx.fillRect(edge.left + (channel + (1 - share) / 2) * wide, y(to), Math.max(1, share * wide), Math.max(1.5, y(from) - y(to)));
      }
    }
    ctx.fillStyle = theme.muted;
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    for (let channel = 0; channel < dim; channel += dim > 64 ? 32 : 16) ctx.fillText(channel, edge.left + (channel + 0.5) * wide, edge.top + tall + 4);
    ctx.fillText("channel", edge.left + (dim * wide) / 2, height - 13 * type.grown);
    canvas.setAttribute("aria-label", `Range of each of ${dim} channels of the keys of layer ${layer}, KV head ${kv_head}, at the first tokens and at all others. ${said.textContent}`);
  }

  canvas.addEventListener("mousemove", (e) => {
    const dim = frame?.arrays.key_ranges?.shape[2];
    const channel = Math.floor(((e.offsetX - edge.left) / (canvas.clientWidth - edge.left - edge.right)) * dim);
    tip.hidden = !(channel >= 0 && channel < dim);
    if (tip.hidden) return;
    const { first, others } = at(channel);
    say(tip, `channel ${channel}\nfirst tokens: ${span(first)}\nall others: ${span(others)}`);
    tip.style.left = `${Math.max(0, Math.min(e.offsetX + 12, canvas.clientWidth - 190))}px`;
    tip.style.top = `${e.offsetY + 16}px`;
  });
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });

  function show(next, nextTheme) {
    frame = next;
    theme = nextTheme;
    node.hidden = !frame.arrays.key_ranges;
    if (node.hidden) return;
    const { layer, kv_head, beyond, widened } = frame.map, dim = frame.arrays.key_ranges.shape[2];
    say(sub, ` layer ${layer}, KV head ${kv_head}, before rotation, ${frame.lanes[frame.chosen].label}`);
    say(firsts, `first ${frame.constants.sink_tokens} tokens`);
    say(said, widened == null ? "The first tokens have left this cache." : beyond
      ? `In ${beyond} of ${dim} channels the first tokens reach beyond all others: a scale that is shared with them is up to ${digits(widened)} times as coarse.`
      : "In no channel do the first tokens reach beyond all others.");
    draw();
  }
  return { node, show };
}
