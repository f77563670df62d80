// The text as it streams.  Every token is data: it is set as text, whatever it looks like.

function makeStrip(send, paints) {
  const sub = el("span", { class: "sk-sub" });
  const choice = (paint, text) => el("button", { type: "button", onclick: () => send("pick", { paint, at: Date.now() }) }, text);
  const words = { nll: "surprise", attention: "attention received" };
  const buttons = Object.fromEntries(paints.map((paint) => [paint, choice(paint, words[paint])]));
  const text = el("div", { class: "sk-text", tabindex: 0, role: "group", "aria-label": "The text as it is read. Left and right arrow keys go through its tokens." });
  const tip = el("div", { class: "sk-tip", role: "status", hidden: true });
  // Marked tokens may have left the stretch, or be out of sight in it.
  const marked = el("div", { class: "sk-marked sk-empty" });
  const node = el("section", { class: "sk-panel" },
    el("div", { class: "sk-head" }, el("h2", { class: "sk-title" }, "Text", sub), el("div", { class: "sk-segments" }, ...Object.values(buttons))), marked, el("div", { class: "sk-holder" }, text, tip));
  let drawn = "", first = 0, spans = [], held = "", shown = null;
  let told = null, here = null; // the token that is told of, and the one where the keyboard is

  // What a token is, for who points at it, touches it or comes to it by keys.
  function tell(span) {
    const i = spans.indexOf(span);
    told = i < 0 ? null : span;
    if (here !== told) stand(null);
    tip.hidden = !told;
    if (!told) return;
    const lane = shown.lanes[shown.chosen], value = shown.arrays.token_values?.data[i] ?? NaN;
    const under = lane.past.length ? `, ${nameAt(lane, first + i)}` : "";
    const said = Number.isNaN(value) ? "" : shown.paint === "nll" ? `${value.toFixed(2)} nats` : `attention ${value.toPrecision(2)}`;
    say(tip, `${JSON.stringify(shown.tokens[i])} at ${count(first + i)}${said ? `: ${said}` : ""}${under}`);
    // Below its last line: a blank may be all that stands in the line before.
    const at = [...span.getClientRects()].at(-1) || span.getBoundingClientRect(), room = text.getBoundingClientRect();
    tip.hidden = at.bottom < room.top || at.bottom > room.bottom + 2;
    placeTip(tip, at, room);
  }
  function stand(span) {
    if (here) flag(here, "sk-at", false);
    here = span;
    if (here) flag(here, "sk-at", true);
  }
  for (const how of ["pointerover", "click"]) text.addEventListener(how, ({ target }) => tell(target));
  // A finger that is lifted has read nothing yet.
  text.addEventListener("pointerleave", ({ pointerType }) => { if (pointerType === "mouse") tell(here); });
  text.addEventListener("blur", () => tell(null));
  text.addEventListener("scroll", () => tell(here));
  text.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (!by || !spans.length) return;
    e.preventDefault();
    // A first press shows where one is: the newest token.
    const i = spans.indexOf(here), to = i < 0 ? spans.length - 1 : Math.max(0, Math.min(spans.length - 1, i + by * (e.shiftKey ? 10 : 1)));
    stand(spans[to]);
    here.scrollIntoView({ block: "nearest" });
    tell(here);
  });
  const plain = (token) => token.replaceAll("\n", " ↵ "), write = (span, token) => say(span, plain(token));

  function background(value, frame, theme) {
    if (Number.isNaN(value)) return "";
    if (frame.paint === "nll") return surpriseColour(value, theme);
    return attentionColour(value, theme);
  }

  function show(frame, theme) {
    const lane = frame.lanes[frame.chosen];
    for (const [paint, button] of Object.entries(buttons)) {
      flag(button, "sk-on", frame.paint === paint);
      button.setAttribute("aria-pressed", frame.paint === paint);
    }
    buttons.attention.disabled = !frame.head;
    buttons.attention.title = frame.head ? "" : "Choose a head first: click a cell of the sink mass grid";
    say(sub, frame.paint === "nll" ? ` ${lane.label}; the stronger the colour, the more surprising` : ` ${lane.label}; the stronger the colour, the more attention from layer ${frame.head?.[0]}, head ${frame.head?.[1]}`);
    // A head's map comes after the text that it is of.
    const map = frame.paint === "attention" && frame.map ? `${frame.map.layer}.${frame.map.head} ${frame.map.first} ${frame.map.tokens.length}` : "";
    const key = `${frame.run}|${frame.chosen}|${frame.tokens_start}|${frame.tokens.length}|${frame.paint}|${frame.head}|${map}|${frame.mark}|${theme.dark}`;
    if (key === drawn) return;
    drawn = key;
    shown = frame;
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 30;
    const values = frame.arrays.token_values?.data || [];
    const same = `${frame.run}|${frame.chosen}`;
    // Tokens that left the stretch go at the front, new ones come at the end: what stays is not touched.
    const gone = held === same ? frame.tokens_start - first : -1;
    const jumped = gone < 0 || gone >= spans.length;
    if (!jumped) for (const span of spans.splice(0, gone)) span.remove();
    // A recording may go back.
    for (const span of spans.splice(frame.tokens.length)) span.remove();
    if (jumped) spans.forEach((span, i) => write(span, frame.tokens[i]));
    first = frame.tokens_start;
    held = same;
    for (let i = spans.length; i < frame.tokens.length; i++) {
      const span = el("span", {});
      write(span, frame.tokens[i]);
      spans.push(span);
      text.append(span);
    }
    const [from, to] = frame.mark || [0, 0];
    say(marked, frame.marked?.length ? `Marked, from token ${count(from)} on: ${frame.marked.map(plain).join("")}` : "");
    flag(marked, "sk-empty", !marked.textContent);
    spans.forEach((span, i) => {
      flag(span, "sk-needle", from <= first + i && first + i < to);
      const colour = background(values[i], frame, theme);
      if (span.colour === colour) return;
      span.colour = colour;
      span.style.backgroundColor = colour;
    });
    if (atEnd) text.scrollTop = text.scrollHeight;
    if (told) tell(jumped ? null : told);
  }
  return { node, show };
}
