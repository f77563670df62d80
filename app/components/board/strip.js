// The text as it streams.  Every token is data: it is set as text, whatever it looks like.

function makeStrip(send, paints) {
  const sub = el("span", { class: "sk-sub" });
  const choice = (paint, text) => el("button", { type: "button", onclick: () => send("pick", { paint, at: Date.now() }) }, text);
  const words = { nll: "surprise", attention: "attention received" };
  const buttons = Object.fromEntries(paints.map((paint) => [paint, choice(paint, words[paint])]));
  const text = el("div", { class: "sk-text", tabindex: 0, "aria-label": "The text as it is read" });
  const node = el("section", { class: "sk-panel" },
    el("div", { class: "sk-head" }, el("h2", { class: "sk-title" }, "Text", sub), el("div", { class: "sk-segments" }, ...Object.values(buttons))), text);
  let drawn = "", first = 0, spans = [], held = "";

  function background(value, frame, theme) {
    if (Number.isNaN(value)) return "";
    if (frame.paint === "nll") return surpriseColour(value, theme);
    return `rgba(0,114,178,${(shadeOf(value) * 0.75).toFixed(2)})`;
  }

  function show(frame, theme) {
    const lane = frame.lanes[frame.chosen];
    for (const [paint, button] of Object.entries(buttons)) {
      flag(button, "sk-on", frame.paint === paint);
      button.setAttribute("aria-pressed", frame.paint === paint);
    }
    buttons.attention.disabled = !frame.head;
    buttons.attention.title = frame.head ? "" : "Choose a head first: click a cell of the sink mass grid";
    say(sub, frame.paint === "nll" ? ` ${lane.label}; darker is more surprising` : ` ${lane.label}; darker got more attention from layer ${frame.head?.[0]}, head ${frame.head?.[1]}`);
    // A head's map comes after the text that it is of.
    const map = frame.paint === "attention" && frame.map ? `${frame.map.layer}.${frame.map.head} ${frame.map.first} ${frame.map.tokens.length}` : "";
    const key = `${frame.run}|${frame.chosen}|${frame.tokens_start}|${frame.tokens.length}|${frame.paint}|${frame.head}|${map}|${theme.dark}`;
    if (key === drawn) return;
    drawn = key;
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 30;
    const values = frame.arrays.token_values?.data || [];
    const same = `${frame.run}|${frame.chosen}`;
    if (held !== same || frame.tokens_start < first) {
      text.replaceChildren();
      spans = [];
      first = frame.tokens_start;
      held = same;
    }
    // Tokens that left the stretch go at the front, new ones come at the end: what stays is not touched.
    const gone = Math.min(spans.length, frame.tokens_start - first);
    for (const span of spans.splice(0, gone)) span.remove();
    // A recording may go back.
    for (const span of spans.splice(frame.tokens.length)) span.remove();
    first = frame.tokens_start;
    for (let i = spans.length; i < frame.tokens.length; i++) {
      const span = el("span", {});
      span.textContent = frame.tokens[i].replaceAll("\n", " ↵ ");
      spans.push(span);
      text.append(span);
    }
    spans.forEach((span, i) => {
      const colour = background(values[i], frame, theme);
      if (span.dataset.c !== colour) {
        span.dataset.c = colour;
        span.style.backgroundColor = colour;
      }
      const shown = `${frame.paint}|${values[i]}|${frame.lanes[frame.chosen].past.length}`;
      if (span.dataset.shown !== shown) {
        span.dataset.shown = shown;
        const under = frame.lanes[frame.chosen].past.length ? `, ${nameAt(frame.lanes[frame.chosen], first + i)}` : "";
        const value = Number.isNaN(values[i]) ? "" : frame.paint === "nll" ? `${values[i].toFixed(2)} nats` : `attention ${values[i].toPrecision(2)}`;
        span.title = `${JSON.stringify(frame.tokens[i])} at ${count(first + i)}${value ? `: ${value}` : ""}${under}`;
      }
    });
    if (atEnd) text.scrollTop = text.scrollHeight;
  }
  return { node, show };
}
