// Where a person writes; and the script, the last answer again, and a new conversation.

function makeComposer(send) {
  let frame = null, last = "", sent = null;
  const press = (what) => send("press", { what, at: Date.now() });
  const field = el("textarea", { rows: 1, "aria-label": "Say something to every lane", title: "Enter sends, Shift + Enter begins a line" });
  const go = el("button", { class: "sk-go", type: "button", onclick: () => (busy() ? press("stop") : submit()) }, "Send");
  const play = el("button", { type: "button", title: "Say the prompts of the script, one after the other", onclick: () => press(frame.script.playing ? "hold" : "play") });
  const skip = el("button", { type: "button", title: "End this answer and go on with the next prompt", onclick: () => press("skip") }, "Skip");
  const again = el("button", { type: "button", title: "Let every lane give its last answer again", onclick: () => press("again") }, "↺ Answer again");
  const restart = el("button", { type: "button", title: "Forget everything and begin anew with what is set", onclick: () => press("new") }, "New conversation");
  const status = el("div", { class: "sk-progress", role: "status" });
  const note = el("div", { class: "sk-note", role: "status", "aria-live": "polite" });
  const node = el("div", { class: "sk-composer" },
    el("div", { class: "sk-write" }, field, go),
    el("div", { class: "sk-toolbar" }, play, skip, again, restart), status);

  // What is half written survives a reload.
  field.value = sessionStorage.getItem("sk-draft") || "";
  const busy = () => frame?.status === "answering";
  function submit() {
    const text = field.value;
    if (!text.trim() || busy() || go.disabled) return;
    last = text;
    sent = { text, at: Date.now() };
    write("");
    send("say", sent);
  }
  function write(text) {
    field.value = text;
    if (text) sessionStorage.setItem("sk-draft", text);
    else sessionStorage.removeItem("sk-draft");
    grow();
  }
  function grow() {
    field.style.height = "auto";
    field.style.height = `${Math.min(160, field.scrollHeight + 2)}px`;
  }
  field.addEventListener("input", () => {
    sessionStorage.setItem("sk-draft", field.value);
    grow();
  });
  field.addEventListener("keydown", (e) => {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
      e.preventDefault();
      submit();
    } else if (e.key === "Escape" && busy()) {
      press("stop");
    } else if (e.key === "ArrowUp" && !field.value && last) {
      field.value = last;
      grow();
    }
  });

  // What was refused, or said to a model that did not come, is written here again, unless something else is by now.
  function takeBack() {
    if (frame.unsaid !== sent.at && !(frame.status === "failed" && frame.lanes.every((l) => !l.total))) return;
    if (!field.value) write(sent.text);
    sent = null;
  }

  function show(next) {
    frame = next;
    if (sent) takeBack();
    const held = [play, skip, again, restart].find((button) => button.matches(":focus"));
    // As much as there is room for.
    const invitation = field.clientWidth > 460 ? "Say something to every lane. Enter sends, Shift + Enter begins a line." : "Say something to every lane";
    if (field.placeholder !== invitation) field.placeholder = invitation;
    say(go, busy() ? "■ Stop" : "Send");
    go.disabled = frame.status === "loading" || frame.status === "failed";
    go.title = busy() ? "End the answers here (Esc)" : "Send (Enter)";
    const { left, of, playing } = frame.script;
    say(play, playing ? "❚❚ Hold the script" : left ? "▶ Go on with the script" : "▶ Play the script");
    play.disabled = frame.status === "loading" || frame.status === "failed" || (busy() && !playing && !left);
    skip.hidden = !left && !playing;
    // Where another page steers this conversation, this one watches.
    const watches = frame.steers === false;
    field.disabled = skip.disabled = watches;
    go.disabled ||= watches;
    play.disabled ||= watches;
    again.disabled = watches || !["waiting", "paused"].includes(frame.status) || !frame.lanes.some((l) => l.total);
    restart.disabled = !frame.run;
    // A button that can no longer be pressed loses the keyboard: it is then where the answers are stopped, or written for.
    if (held?.disabled || held?.hidden) (go.disabled ? field : go).focus();
    // While it loads, the note above says what is being waited for.
    const states = { loading: "", answering: "answering", waiting: "waiting for you", paused: "the script stands still", failed: "ended", ready: "" };
    const script = of ? `script ${of - left} of ${of}` : "";
    say(status, [frame.about, states[frame.status], script].filter(Boolean).join(" · "));
    say(note, frame.note || "");
    flag(note, "sk-bad", frame.status === "failed");
    flag(note, "sk-empty", !note.textContent);
  }
  return { node, note, show };
}
