// The lanes of a conversation side by side: what was said, what of it is still kept, and what a token looked back at.

const LETTER = /\p{L}/u, RIGHT_TO_LEFT = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;
const CUT = { limit: "… cut at the limit", stopped: "… stopped", failed: "… failed" };

function makeLane(i, send, frameNow) {
  const swatch = el("span", {}), name = el("span", {}), kept = el("span", {}), rate = el("span", {}), state = el("span", { class: "sk-state" });
  const { button: change, form } = makeSwitch(send, i, frameNow);
  const choose = el("button", { class: "sk-choose", type: "button", title: "Show this lane's sink mass", onclick: () => send("pick", { lane: i, at: Date.now() }) }, swatch, name);
  const firstTokens = el("div", { class: "sk-first", title: "The first tokens of the text: lit while they are in the cache" });
  const line = el("div", { class: "sk-line", hidden: true }), evicted = el("div", { class: "sk-evicted" });
  const flow = el("div", { class: "sk-flow" });
  const body = el("div", { class: "sk-said", role: "log", "aria-live": "off", tabindex: 0, "aria-label": "What was said in this lane; arrow keys go through its tokens" }, flow, line);
  const invite = el("div", { class: "sk-invite" });
  const node = el("section", { class: "sk-lane" },
    el("div", { class: "sk-row" }, choose, change), form,
    el("div", { class: "sk-row" }, kept, rate), firstTokens, body, evicted, invite);
  let spans = [], texts = [], begin = 0, run = "", epoch = -1, painted = "", cuts = "", marked = "";
  let here = null; // the token where the keyboard is, which a frame may not show yet
  let follows = true, laid = ""; // whether the newest token is looked at, and in which room

  flow.addEventListener("click", (e) => {
    const span = e.target.closest("[data-i]");
    if (!span || String(getSelection())) return;
    here = null;
    send("pick", { lane: i, token: Number(span.dataset.i), at: Date.now() });
  });
  // The keyboard goes from the newest token, or from the one that was clicked.
  body.addEventListener("keydown", (e) => {
    const at = frameNow().token, mine = at?.[0] === i;
    if (e.key === "Escape" && mine) { here = null; send("pick", { token: null, at: Date.now() }); }
    const move = { ArrowLeft: -1, ArrowRight: 1 }[e.key], newest = begin + spans.length - 1;
    if (!move || !spans.length) return;
    e.preventDefault();
    const from = here ?? (mine ? at[1] : null);
    here = from === null ? newest : Math.max(0, Math.min(newest, from + move));
    spans[here - begin]?.scrollIntoView({ block: "nearest" });
    send("pick", { lane: i, token: here, at: Date.now() });
  });
  body.addEventListener("blur", () => { here = null; });

  // A page that becomes narrower or lower, or is projected, moves the text: nobody scrolled then.
  const room = () => `${body.clientWidth}|${body.clientHeight}`;
  function look() {
    if (laid === room()) follows = body.scrollTop + body.clientHeight >= body.scrollHeight - 40;
  }
  body.addEventListener("scroll", look);

  function clear() {
    flow.replaceChildren();
    spans = [];
    texts = [];
  }

  function drop(from) {
    for (const span of spans.splice(from)) {
      const block = span.parentElement;
      span.remove();
      if (!block.childElementCount) block.remove();
    }
    texts.length = from;
  }

  // Whether a token stands in words that run from right to left: it may be a mark or half a letter, as those before it.
  function leftward(k) {
    const block = spans[k].parentElement;
    while (k > 0 && !LETTER.test(spans[k].textContent) && spans[k - 1].parentElement === block) k--;
    return RIGHT_TO_LEFT.test(spans[k].textContent.match(LETTER)?.[0] ?? "");
  }

  // What stays is not touched: tokens that are too old go at the front, new ones come at the end.
  function write(lane, roles) {
    const gone = Math.min(spans.length, Math.max(0, lane.start - begin));
    for (const span of spans.splice(0, gone)) {
      const block = span.parentElement;
      span.remove();
      if (!block.childElementCount) block.remove();
    }
    texts.splice(0, gone);
    if (lane.start < begin || (gone && !spans.length)) clear();
    begin = lane.start;
    let same = 0;
    while (same < texts.length && same < lane.text.length && texts[same] === lane.text[same] + lane.roles[same]) same++;
    if (same < texts.length) drop(same);
    for (let k = same; k < lane.text.length; k++) {
      const role = roles[lane.roles[k]];
      let block = flow.lastElementChild;
      if (!block || block.dataset.role !== role) {
        block = el("div", { class: `sk-block sk-${role}`, "data-role": role });
        flow.append(block);
      }
      const span = el("span", { "data-i": begin + k });
      // A line that somebody typed breaks; one that the model says is a mark, so that babble takes no more room than words.
      span.textContent = role === "user" ? lane.text[k] : lane.text[k].replaceAll("\n", "↵");
      block.append(span);
      spans.push(span);
      texts.push(lane.text[k] + lane.roles[k]);
    }
  }

  // The share of the heads that hold the token at a place: all or none, unless each head chooses for itself.
  function share(lane, place) {
    if (!lane.shares) return place >= lane.first || place < lane.sinks ? 1 : 0;
    return place < lane.first_shares.length ? lane.first_shares[place] : lane.shares[place - lane.start] ?? 0;
  }

  // Where the lane was switched: a line of its own before the first token that it read so.
  function mark(lane) {
    for (const [place, label] of lane.switches) {
      const line = el("div", { class: "sk-switched" }, `switched: ${label}`);
      if (place >= begin + spans.length) flow.append(line);
      else if (place >= begin) spans[place - begin].before(line);
    }
  }

  function dim(lane) {
    spans.forEach((span, k) => {
      const held = share(lane, begin + k);
      flag(span, "sk-gone", held === 0);
      flag(span, "sk-less", held < 1);
      const kept = held > 0 && held < 1 ? `${held}` : "";
      if (span.style.getPropertyValue("--held") !== kept) span.style.setProperty("--held", kept);
      flag(span, "sk-sink", begin + k < lane.protected);
    });
    const edge = spans[lane.first - begin];
    const left = lane.first > lane.sinks && edge;
    if (line.hidden === Boolean(left)) line.hidden = !left;
    // Not on the line itself, where it would cover what was said.
    say(evicted, !left ? "" : lane.shares ? "before the bar: each head keeps its own" : "before the bar: has left the cache");
    for (const old of flow.querySelectorAll(".sk-edge")) if (old !== edge) old.classList.remove("sk-edge", "sk-leftward");
    if (!left) return;
    flag(edge, "sk-edge", true);
    flag(edge, "sk-leftward", leftward(lane.first - begin));
    const top = `${edge.offsetTop}px`;
    if (line.style.top !== top) line.style.top = top;
  }

  function shade(frame, theme) {
    const row = frame.row?.lane === i ? frame.row : null;
    const at = frame.token?.[0] === i ? frame.token[1] : -1;
    // Of a recording, what every token cost is known.
    const nll = frame.arrays[`nll${i}`]?.data, coloured = nll && frame.paint;
    const key = `${row ? `${row.token}|${row.layer}|${row.head}` : ""}|${at}|${begin}|${spans.length}|${theme.dark}|${coloured}`;
    if (key === painted) return;
    painted = key;
    const weights = new Map();
    if (row) frame.arrays.row_places.data.forEach((place, k) => weights.set(place, frame.arrays.row_weights.data[k]));
    const paint = (span, place) => {
      const weight = weights.get(place);
      const cost = nll?.[place - begin];
      const colour = weight !== undefined ? attentionColour(weight, theme) : coloured && cost >= 0 ? surpriseColour(cost, theme) : "";
      if (span.style.getPropertyValue("--paint") !== colour) span.style.setProperty("--paint", colour);
      span.title = `${JSON.stringify(span.textContent)} at ${count(place)}${weight === undefined ? "" : `: ${percent(weight)} of the attention`}${cost >= 0 ? `: NLL ${digits(cost)}` : ""}`;
      flag(span, "sk-asked", place === at);
    };
    spans.forEach((span, k) => paint(span, begin + k));
    [...firstTokens.querySelectorAll("b")].forEach((chip, k) => paint(chip, k));
  }

  function show(frame, theme) {
    const lane = frame.lanes[i];
    const colour = laneColour(lane.color, theme);
    if (node.style.getPropertyValue("--lane") !== colour) {
      node.style.setProperty("--lane", colour);
      swatch.replaceChildren(sample(colour, lane.dash));
    }
    if (run !== frame.run || epoch !== frame.epoch) {
      run = frame.run;
      epoch = frame.epoch;
      painted = "";
    }
    say(name, lane.label);
    if (node.getAttribute("aria-label") !== lane.label) node.setAttribute("aria-label", lane.label);
    // A prompt that was stopped is read on before the next answer.
    const unread = lane.state ? 0 : lane.total - lane.read;
    say(kept, lane.total ? `${count(lane.kept)} of ${count(lane.total)} tokens kept${unread > 0 ? `, ${count(unread)} not read yet` : ""} · ${size(lane.bytes)}` : "");
    say(rate, lane.state.startsWith("reading") ? lane.state : lane.ms == null ? "" : `${digits(lane.ms)} ms/token`);
    change.disabled = frame.steers === false || !lane.total;
    change.hidden = Boolean(frame.recorded);
    flag(node, "sk-chosen", i === frame.chosen);
    choose.setAttribute("aria-pressed", i === frame.chosen);
    invite.hidden = lane.total > 0;
    say(invite, frame.status === "loading"
      ? "Answers come when the model is there."
      : "Nothing was said yet. Write below, or play the script.");
    body.hidden = evicted.hidden = firstTokens.hidden = lane.total === 0;
    look();
    const written = `${frame.run}|${lane.start}|${lane.total}|${frame.epoch}|${JSON.stringify(lane.switches)}`;
    if (marked !== written) {
      for (const old of flow.querySelectorAll(".sk-switched")) old.remove();
      write(lane, frame.constants.roles);
      mark(lane);
      marked = written;
    }
    const chips = lane.first_tokens.map((text) => text.replaceAll("\n", "↵"));
    if (firstTokens.dataset.text !== JSON.stringify(chips)) {
      firstTokens.dataset.text = JSON.stringify(chips);
      firstTokens.replaceChildren("first tokens ", ...chips.map((text) => { const chip = el("b", {}); chip.textContent = text; return chip; }), state);
    }
    [...firstTokens.querySelectorAll("b")].forEach((chip, k) => {
      flag(chip, "sk-gone", share(lane, k) === 0);
      flag(chip, "sk-pinned", k < lane.protected);
    });
    const lost = lane.first_tokens.filter((_, k) => share(lane, k) === 0).length;
    say(state, lane.total === 0 ? "" : lane.unknown ? "each head keeps its own; not recorded" : lane.read < chips.length ? "not read yet" : lost === 0 ? "kept" : lost === lane.first_tokens.length ? "gone" : `${lost} gone`);
    dim(lane);
    const seen = written + JSON.stringify(lane.cut);
    if (cuts !== seen) {
      cuts = seen;
      for (const old of flow.querySelectorAll("[data-cut]")) delete old.dataset.cut;
      for (const [stop, why] of lane.cut) if (spans[stop - 1 - begin]) spans[stop - 1 - begin].dataset.cut = CUT[why];
    }
    shade(frame, theme);
    laid = room();
    if (follows) body.scrollTop = body.scrollHeight;
  }
  return { node, show };
}

function makeLanes(send) {
  const cells = el("div", { class: "sk-lanes" });
  const node = el("section", {}, el("h2", { class: "sk-unseen" }, "Lanes"), cells);
  let lanes = [], frame = null;
  function show(next, theme) {
    frame = next;
    if (lanes.length !== frame.lanes.length) {
      lanes = frame.lanes.map((_, i) => makeLane(i, send, () => frame));
      cells.replaceChildren(...lanes.map((l) => l.node));
    }
    for (const lane of lanes) lane.show(frame, theme);
  }
  return { node, show };
}
