// One card a lane: the number that matters large, the rest small, and the lane's own switch.

function makeCards(send) {
  const cells = el("div", { class: "sk-cards" });
  const node = el("section", {}, el("h2", { class: "sk-unseen" }, "Lanes"), cells);
  let cards = [];

  function makeCard(i) {
    const part = (name) => el("span", { class: `sk-${name}` });
    const parts = Object.fromEntries(["name", "big", "small", "rolling", "read", "kept", "rate"].map((n) => [n, part(n)]));
    const swatch = el("span", { class: "sk-swatch" });
    const { button: change, form } = makeSwitch(send, i, () => frame);
    const compare = el("button", { class: "sk-link sk-compare", type: "button", title: "Compare all lanes with this one", onclick: (e) => { e.stopPropagation(); send("pick", { reference: i, at: Date.now() }); } }, "compare with this");
    const choose = el("button", { class: "sk-choose", type: "button", title: "Show this lane's sink mass, map and text", onclick: () => send("pick", { chosen: i, at: Date.now() }) }, swatch, parts.name);
    const card = el("div", { class: "sk-card", onclick: (e) => { if (!e.target.closest("button,.sk-form")) send("pick", { chosen: i, at: Date.now() }); } },
      el("div", { class: "sk-row" }, choose, change),
      el("div", { class: "sk-row sk-main" }, parts.big, parts.small),
      el("div", { class: "sk-row" }, parts.rolling, parts.read),
      el("div", { class: "sk-row" }, parts.kept, parts.rate),
      el("div", { class: "sk-row" }, compare),
      form);
    return { card, swatch, form, change, compare, choose, ...parts, style: "" };
  }

  let frame = null;

  function show(next, theme) {
    frame = next;
    if (cards.length !== frame.lanes.length) {
      cards = frame.lanes.map((_, i) => makeCard(i));
      cells.replaceChildren(...cards.map((c) => c.card));
    }
    frame.lanes.forEach((lane, i) => {
      const c = cards[i];
      const colour = laneColour(lane.color, theme);
      if (c.style !== colour + lane.dash) {
        c.style = colour + lane.dash;
        c.card.style.setProperty("--lane", colour);
        c.swatch.replaceChildren(sample(colour, lane.dash));
      }
      const alone = frame.lanes.length === 1, reference = i === frame.reference;
      say(c.name, lane.label);
      say(c.big, alone ? digits(lane.rolling) : reference && lane.read ? "1.00 ×" : lane.relative == null ? "–" : `${digits(lane.relative)} ×`);
      const error = lane.error == null ? "" : ` ± ${lane.error.toFixed(3)}`;
      say(c.small, alone ? `perplexity, last ${frame.roll} tokens` : reference ? "the reference" : lane.excess == null ? `last ${frame.roll} tokens`
        : `all: ${lane.excess.toFixed(3) < 0 ? "−" : "+"}${Math.abs(lane.excess).toFixed(3)}${error} nats/token`);
      c.big.title = alone ? "" : `Perplexity over the last ${frame.roll} tokens, times that of ${frame.lanes[frame.reference].label} on the same tokens`;
      const kept = `${count(lane.kept)} ${lane.slots ? `tokens in ${count(lane.slots)} slots` : "kept"} · ${size(lane.bytes)}`;
      say(c.rolling, alone ? kept : `${digits(lane.rolling)} rolling perplexity`);
      say(c.read, `${count(lane.read)} read`);
      say(c.kept, alone ? "" : kept);
      say(c.rate, lane.state === "end of text" ? "end of text" : lane.rate == null ? "" : `${digits(lane.rate)} tokens/s`);
      c.compare.hidden = alone;
      say(c.compare, reference ? "others are compared with this" : "compare with this");
      c.compare.disabled = reference;
      c.change.hidden = Boolean(frame.recorded);
      c.change.disabled = frame.steers === false || !["running", "paused"].includes(frame.status);
      flag(c.card, "sk-chosen", i === frame.chosen);
      c.choose.setAttribute("aria-pressed", i === frame.chosen);
    });
  }
  return { node, show };
}
