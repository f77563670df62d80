// A lane's own switch: the form in which a person chooses the policy that it goes on under.

function makeSwitch(send, i, frameNow) {
  const form = el("div", { class: "sk-form", hidden: true });
  const button = el("button", { class: "sk-link", type: "button", "aria-haspopup": "true", onclick: (e) => { e.stopPropagation(); toggle(); } }, "switch ▾");

  function toggle() {
    const open = form.hidden;
    for (const other of document.querySelectorAll(".sk-form")) other.hidden = true;
    if (!open) return;
    fill();
    form.hidden = false;
    // Where it would stick out at the left it begins where its card does.
    flag(form, "sk-rightwards", false);
    flag(form, "sk-rightwards", form.getBoundingClientRect().left < form.closest(".sk").getBoundingClientRect().left);
    form.querySelector("button,select,input").focus();
  }

  function parsed(text) {
    const [name, rest = ""] = text.split(":");
    return { name, values: Object.fromEntries(rest.split(",").filter(Boolean).map((p) => p.split("="))) };
  }

  function fill() {
    const frame = frameNow();
    const now = parsed(frame.lanes[i].policy);
    const apply = (text, pin) => {
      send("change", { lane: i, policy: text, pin, at: Date.now() });
      form.hidden = true;
      button.focus();
    };
    const quick = frame.lanes[i].offers.map(({ words, policy, pin }) => el("button", { type: "button", class: "sk-go", onclick: () => apply(policy, pin) }, words));
    const select = el("select", { "aria-label": "Policy" }, ...frame.schema.map((p) => el("option", { value: p.name, selected: p.name === now.name }, p.title)));
    const fields = el("div", { class: "sk-fields" });
    const ask = el("div", { class: "sk-ask" });
    const written = () => {
      const values = [...fields.querySelectorAll("[name]")].map((f) => `${f.name}=${f.value}`).join(",");
      return select.value + (values ? `:${values}` : "");
    };
    const evicted = () => {
      const lane = frameNow().lanes[i];
      // What engines call first tokens that are kept.
      const wanted = Number(fields.querySelector("[name=sinks],[name=keep]")?.value || 0);
      return wanted > lane.sinks_held && lane.read > wanted;
    };
    const choices = () => ask.replaceChildren(...(evicted()
      ? [el("p", {}, "The keys of the first tokens have left this lane's cache."),
         el("button", { type: "button", class: "sk-go", onclick: () => apply(written(), true) }, "Pin the sinks again"),
         el("button", { type: "button", onclick: () => apply(written(), false) }, "Go on without")]
      : [el("button", { type: "button", onclick: () => (evicted() ? askNow() : apply(written(), false)) }, "Apply")]));
    // They may leave while the form stands open.
    const askNow = () => {
      choices();
      ask.querySelector("button").focus();
    };
    const settings = () => {
      const kind = frame.schema.find((p) => p.name === select.value);
      // What-ifs stay when the policy changes: they are the lane's.
      const values = (s) => `${(now.name === kind.name || s.intervention) && now.values[s.name] !== undefined ? now.values[s.name] : s.default}`;
      const control = (s) => {
        const value = values(s);
        const input = s.choices.length
          ? el("select", { name: s.name }, ...s.choices.map((c) => el("option", { value: c, selected: c === value }, c)))
          : s.pattern ? el("input", { name: s.name, type: "text", pattern: s.pattern, value })
          : el("input", { name: s.name, type: "number", min: s.low, max: s.high, step: s.step, value });
        input.addEventListener("input", choices);
        return el("label", { title: s.help }, s.name, input);
      };
      const [interventions, plain] = [kind.settings.filter((s) => s.intervention), kind.settings.filter((s) => !s.intervention)];
      const what = el("details", {}, el("summary", {}, "What if"), ...interventions.map(control));
      // Open where a lane has interventions already, and while a person changes them.
      what.open = interventions.some((s) => values(s) !== `${s.default}`);
      fields.replaceChildren(el("p", {}, kind.help), ...plain.map(control), what);
      choices();
    };
    select.addEventListener("change", settings);
    form.replaceChildren(...quick, select, fields, ask);
    form.onkeydown = (e) => { if (e.key === "Escape") { form.hidden = true; button.focus(); } };
    settings();
  }
  return { button, form };
}
