// One card a lane: the number that matters large, the rest small, and the lane's own switch.

const DASHES = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2", longdash: "9 3", longdashdot: "9 2 2 2" };

function sample(colour, dash) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "sk-sample");
  svg.setAttribute("viewBox", "0 0 22 10");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [k, v] of Object.entries({ x1: 0, x2: 22, y1: 5, y2: 5, stroke: colour, "stroke-width": 3, "stroke-dasharray": DASHES[dash] || "" })) {
    line.setAttribute(k, v);
  }
  svg.append(line);
  return svg;
}

function makeCards(send) {
  const node = el("div", { class: "sk-cards" });
  let cards = [];

  function makeCard(i) {
    const part = (name) => el("span", { class: `sk-${name}` });
    const parts = Object.fromEntries(["name", "big", "small", "rolling", "read", "kept", "rate"].map((n) => [n, part(n)]));
    const look = el("span", { class: "sk-look" });
    const form = el("div", { class: "sk-form", hidden: true });
    const change = el("button", { class: "sk-link", type: "button", "aria-haspopup": "true", onclick: (e) => { e.stopPropagation(); toggle(form, i); } }, "switch ▾");
    const compare = el("button", { class: "sk-link", type: "button", title: "Compare all lanes with this one", onclick: (e) => { e.stopPropagation(); send("pick", { reference: i, at: Date.now() }); } }, "compare with this");
    const choose = el("button", { class: "sk-choose", type: "button", title: "Show this lane's sink mass, map and text", onclick: () => send("pick", { lane: i, at: Date.now() }) }, look, parts.name);
    const card = el("div", { class: "sk-card", onclick: (e) => { if (!e.target.closest("button,.sk-form")) send("pick", { lane: i, at: Date.now() }); } },
      el("div", { class: "sk-row" }, choose, change),
      el("div", { class: "sk-row sk-main" }, parts.big, parts.small),
      el("div", { class: "sk-row" }, parts.rolling, parts.read),
      el("div", { class: "sk-row" }, parts.kept, parts.rate),
      el("div", { class: "sk-row" }, compare),
      form);
    return { card, look, form, change, compare, choose, ...parts, looks: "" };
  }

  let frame = null;

  function toggle(form, i) {
    const open = form.hidden;
    for (const c of cards) c.form.hidden = true;
    if (!open) return;
    fill(form, i, frame.lanes[i].policy);
    form.hidden = false;
    form.querySelector("button,select,input").focus();
  }

  function parsed(text) {
    const [name, rest = ""] = text.split(":");
    return { name, values: Object.fromEntries(rest.split(",").filter(Boolean).map((p) => p.split("="))) };
  }

  // A policy of another kind with the same number of cached tokens: what one press offers.
  function offers(now) {
    const n = (k) => Number(now.values[k] || 0);
    const total = n("sinks") + n("window");
    if (now.name === "streaming") return [["Drop the sinks", `window:window=${total}`, ""]];
    if (now.name === "window" && total > 4) return [["Bring the sinks back", `streaming:sinks=4,window=${total - 4},positions=cache`, "pin"]];
    return [];
  }

  function fill(form, i, policy) {
    const now = parsed(policy);
    const apply = (text, pin) => {
      send("change", { lane: i, policy: text, pin, at: Date.now() });
      form.hidden = true;
    };
    const quick = offers(now).map(([text, to, pin]) => el("button", { type: "button", class: "sk-go", onclick: () => apply(to, pin === "pin") }, text));
    const select = el("select", { "aria-label": "Policy" }, ...frame.schema.map((p) => el("option", { value: p.name, selected: p.name === now.name }, p.title)));
    const fields = el("div", { class: "sk-fields" });
    const ask = el("div", { class: "sk-ask" });
    const written = () => {
      const values = [...fields.querySelectorAll("[name]")].map((f) => `${f.name}=${f.value}`).join(",");
      return select.value + (values ? `:${values}` : "");
    };
    const choices = () => {
      const wanted = Number(fields.querySelector("[name=sinks]")?.value || 0);
      const gone = wanted > frame.lanes[i].sinks_held && frame.lanes[i].read > wanted;
      ask.replaceChildren(...(gone
        ? [el("p", {}, "The keys of the first tokens have left this lane's cache."),
           el("button", { type: "button", class: "sk-go", onclick: () => apply(written(), true) }, "Pin the sinks again"),
           el("button", { type: "button", onclick: () => apply(written(), false) }, "Go on without")]
        : [el("button", { type: "button", onclick: () => apply(written(), false) }, "Apply")]));
    };
    const settings = () => {
      const kind = frame.schema.find((p) => p.name === select.value);
      fields.replaceChildren(el("p", {}, kind.help), ...kind.settings.map((s) => {
        const value = now.name === kind.name && now.values[s.name] !== undefined ? now.values[s.name] : s.default;
        const input = s.choices.length
          ? el("select", { name: s.name }, ...s.choices.map((c) => el("option", { value: c, selected: c === value }, c)))
          : el("input", { name: s.name, type: "number", min: s.low, max: s.high, step: 1, value });
        input.addEventListener("input", choices);
        return el("label", { title: s.help }, s.name, input);
      }));
      choices();
    };
    select.addEventListener("change", settings);
    form.replaceChildren(...quick, select, fields, ask);
    form.onkeydown = (e) => { if (e.key === "Escape") { form.hidden = true; cards[i].change.focus(); } };
    settings();
  }

  function show(next, theme) {
    frame = next;
    if (cards.length !== frame.lanes.length) {
      cards = frame.lanes.map((_, i) => makeCard(i));
      node.replaceChildren(...cards.map((c) => c.card));
    }
    frame.lanes.forEach((lane, i) => {
      const c = cards[i];
      const colour = laneColour(lane.color, theme);
      if (c.looks !== colour + lane.dash) {
        c.looks = colour + lane.dash;
        c.card.style.setProperty("--lane", colour);
        c.look.replaceChildren(sample(colour, lane.dash));
      }
      const reference = i === frame.reference;
      say(c.name, lane.label);
      say(c.big, reference ? "1.00 ×" : lane.relative == null ? "–" : `${digits(lane.relative)} ×`);
      const error = lane.error == null ? "" : ` ± ${lane.error.toFixed(3)}`;
      say(c.small, reference ? "the reference" : lane.excess == null ? `last ${frame.roll} tokens`
        : `all: ${lane.excess < 0 ? "−" : "+"}${Math.abs(lane.excess).toFixed(3)}${error} nats/token`);
      c.big.title = `Perplexity over the last ${frame.roll} tokens, times that of ${frame.lanes[frame.reference].label} on the same tokens`;
      say(c.rolling, `${digits(lane.rolling)} rolling perplexity`);
      say(c.read, `${count(lane.read)} read`);
      say(c.kept, `${count(lane.kept)} kept · ${size(lane.bytes)}`);
      say(c.rate, lane.state === "end of text" ? "end of text" : lane.rate == null ? "" : `${digits(lane.rate)} tokens/s`);
      say(c.compare, reference ? "others are compared with this" : "compare with this");
      c.compare.disabled = reference;
      c.change.disabled = !["running", "paused"].includes(frame.status);
      flag(c.card, "sk-chosen", i === frame.chosen);
      c.choose.setAttribute("aria-pressed", i === frame.chosen);
    });
  }
  return { node, show };
}
