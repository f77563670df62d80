// Plays a recording: play and pause, steps of a token and of a chunk, the speed, a scrubber with marks, and keys.

// ms between two moves while it plays; seldom where somebody wants little motion.
const MOVE_EVERY = 90, MOVE_SELDOM = 1000;
const stillPreferred = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function clockText(seconds) {
  const whole = Math.floor(seconds), minutes = Math.floor(whole / 60);
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

// Buttons beside a recording: what is pressed, its words, and what they mean; with a `pace` the first stands out.
function actionButtons(actions, press, pace = 0) {
  return actions.map(([what, words, title], i) => el("button", { type: "button", title: title || words, "aria-label": words, onclick: () => press(what), class: pace && !i ? "sk-go" : "" }, words));
}

// What stands in the place of a recording that cannot be opened: why, and what a person may do all the same.
function showUnopened(root, words, why, actions = [], press) {
  say(words, why);
  flag(words, "sk-bad", true);
  if (actions.length) root.append(el("div", { class: "sk-toolbar" }, ...actionButtons(actions, press)));
}

// `move(position)` is called for every move; `settled()` when it rests; `stopsOf()` tells where the chunks of the lane
// that is looked at end, each of them called `part`; `actions` are buttons beside it: what is pressed, and its words; with a
// `pace` it is a story that plays by itself, and the first of these is what a person is meant to press.
function makePlayer(recording, { move, settled, press, stopsOf, part = "chunk", actions, pace = 0 }) {
  const { total, constants } = recording;
  let position = total, playing = false, from = null, request = 0, resting = 0;
  const button = (words, title, onclick, more = {}) => el("button", { type: "button", title, "aria-label": title, onclick, ...more }, words);
  const go = button("▶ Play", "Play or pause (space)", () => toggle(), { class: pace ? "" : "sk-go" });
  const steps = [
    button("«", `One ${part} back (shift + ←)`, () => stepChunk(-1)), button("‹", "One token back (←)", () => goTo(position - 1)),
    button("›", "One token on (→)", () => goTo(position + 1)), button("»", `One ${part} on (shift + →)`, () => stepChunk(1)),
  ];
  const speed = el("select", { "aria-label": "Speed", onchange: () => { from = null; } }, ...constants.speeds.map(([value, words]) => el("option", { value }, words)));
  speed.value = pace;
  const slider = el("input", { type: "range", class: "sk-scrub", min: 1, max: total, step: 1, "aria-label": "Position in the text, in tokens", oninput: () => goTo(Number(slider.value)) });
  const share = (at) => `calc(8px + (100% - 16px) * ${(at - 1) / Math.max(1, total - 1)})`;
  const ticks = recording.marks.map((mark) => {
    const tick = el("span", { class: `sk-tick sk-tick-${mark.kind}`, title: `${mark.text}, token ${count(mark.x)}` });
    tick.style.left = share(mark.x);
    return tick;
  });
  const where = el("div", { class: "sk-where" }), about = el("div", { class: "sk-small" }, recording.about);
  const when = recording.started ? new Date(recording.started) : null;
  if (when && !Number.isNaN(when.getTime())) about.append(` · recorded ${when.toISOString().slice(0, 10)}`);
  const node = el("div", { class: "sk-player" },
    el("div", { class: "sk-toolbar" }, go, el("span", { class: "sk-steps" }, ...steps), speed, where, ...actionButtons(actions, press, pace)),
    el("div", { class: "sk-scrubber" }, slider, el("div", { class: "sk-ticks", "aria-hidden": "true" }, ...ticks)), about);

  function goTo(wanted) {
    const next = Math.max(1, Math.min(total, Math.round(wanted)));
    from = null;
    if (next !== position) moved(next, true);
  }
  function moved(next, jumped) {
    position = next;
    move(position, jumped);
    show();
    clearTimeout(resting);
    if (!playing) resting = setTimeout(settled, 400);
  }
  function stepChunk(way) {
    const stops = stopsOf();
    goTo(way > 0 ? stops.find((stop) => stop > position) ?? total : stops.findLast((stop) => stop < position) ?? 1);
  }
  function toggle(on = !playing) {
    playing = on;
    if (playing && position >= total) moved(1, true);
    from = null;
    show();
    cancelAnimationFrame(request);
    if (playing) request = requestAnimationFrame(tick);
    else settled();
  }
  function tick(now) {
    if (!playing || !node.isConnected) return;
    request = requestAnimationFrame(tick);
    from ??= { now, position, seconds: recording.secondsAt(position), last: 0 };
    if (now - from.last < (stillPreferred() ? MOVE_SELDOM : MOVE_EVERY)) return;
    from.last = now;
    const seconds = (now - from.now) / 1000, rate = Number(speed.value);
    const next = rate ? from.position + Math.floor(seconds * rate) : recording.positionAt(from.seconds + seconds);
    if (next > position) moved(Math.min(total, next), false);
    if (position >= total) toggle(false);
  }
  const keys = {
    " ": () => toggle(), k: () => toggle(), Home: () => goTo(1), End: () => goTo(total),
    ArrowLeft: (e) => (e.shiftKey ? stepChunk(-1) : goTo(position - 1)), ArrowRight: (e) => (e.shiftKey ? stepChunk(1) : goTo(position + 1)),
  };
  // While nobody sees the page no time passes for it.
  listenWhileShown(node, () => { from = null; }, "visibilitychange");
  // What has keys of its own keeps them.
  const OWN = "input:not(.sk-scrub),textarea,select,canvas,[contenteditable],.sk [tabindex],[role=tab]", PRESSED = "button,a,summary";
  listenWhileShown(node, (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented || !keys[e.key]) return;
    if (e.target.closest?.(e.key === " " ? `${OWN},${PRESSED}` : OWN)) return;
    e.preventDefault();
    keys[e.key](e);
  });

  function show() {
    say(go, playing ? "❚❚ Pause" : "▶ Play");
    if (Number(slider.value) !== position) slider.value = position;
    say(where, `${count(position)} of ${count(total)} tokens · ${clockText(recording.secondsAt(position))}`);
    slider.setAttribute("aria-valuetext", `token ${count(position)} of ${count(total)}`);
    slider.style.setProperty("--done", share(position));
    steps[0].disabled = steps[1].disabled = position <= 1;
    steps[2].disabled = steps[3].disabled = position >= total;
  }
  slider.value = position;
  show();
  return { node, goTo, toggle, get position() { return position; } };
}
