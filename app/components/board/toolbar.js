// Start, pause, stop, restart, the pace, and how far the run is.

function makeToolbar(send, paces) {
  let frame = null;
  const press = (what) => send("press", { what, at: Date.now() });
  const main = () => press({ running: "pause", paused: "resume", loading: "pause" }[frame?.status] || "start");
  const go = el("button", { class: "sk-go", type: "button", title: "Start, pause, resume (k)", onclick: main });
  const stop = el("button", { type: "button", onclick: () => press("stop") }, "■ Stop");
  const again = el("button", { type: "button", title: "Read from the beginning, with what is set", onclick: () => press("restart") }, "↺ Restart");
  const pace = el("select", { "aria-label": "Pace", onchange: () => send("pick", { pace: Number(pace.value), at: Date.now() }) },
    ...paces.map(([value, text]) => el("option", { value }, text)));
  const done = el("div", { class: "sk-done" });
  const track = el("div", { class: "sk-track", role: "progressbar", "aria-label": "Text read", "aria-valuemin": 0, "aria-valuemax": 100 }, done);
  const progress = el("div", { class: "sk-progress" });
  const note = el("div", { class: "sk-note", role: "status", "aria-live": "polite" });
  const node = el("div", {}, el("div", { class: "sk-toolbar" }, go, stop, again, pace, track, progress), note);

  function show(next) {
    frame = next;
    const words = { running: "❚❚ Pause", loading: "… Loading", paused: "▶ Resume" };
    say(go, words[frame.status] || "▶ Start");
    const live = ["running", "paused", "loading"].includes(frame.status);
    // Where another page steers this run, this one watches.
    const watches = live && frame.steers === false;
    stop.disabled = !live || watches;
    go.disabled = pace.disabled = watches;
    again.disabled = frame.status === "ready";
    if (document.activeElement !== pace) pace.value = frame.pace;
    done.style.transform = `scaleX(${frame.share})`;
    track.setAttribute("aria-valuenow", Math.round(100 * frame.share));
    say(progress, frame.progress);
    const ended = { finished: "The text has been read to its end.", stopped: "Stopped. What was read stays on screen." };
    say(note, frame.note || ended[frame.status] || "");
    flag(note, "sk-bad", frame.status === "failed");
    flag(note, "sk-empty", !note.textContent);
  }
  return { node, show, main };
}
