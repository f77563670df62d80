// Back and next.  Presses add up here, at once; what the server says counts when it has carried out the newest of them.

const OWN_ARROWS = "input,textarea,select,[contenteditable],[role=slider],[role=radio],[role=combobox],[role=listbox],[role=tab],canvas";

function makePager(root, send) {
  let at = 0, count = 1, press = 0;
  const turn = (by) => {
    const to = Math.max(0, Math.min(count - 1, at + by));
    if (to === at) return;
    at = to;
    press = Math.max(Date.now(), press + 1);
    send("turn", { to, press });
    enable();
  };
  const made = [["←", -1], ["→", 1]].map(([arrow, by]) => {
    const text = el("b", { style: "font-weight: inherit" });
    return { text, button: el("button", { type: "button", onclick: () => turn(by) }, text, el("span", { "aria-hidden": "true" }, arrow)) };
  });
  root.replaceChildren(el("div", { class: "sk-pager" }, ...made.map((m) => m.button)));

  function enable() {
    made[0].button.disabled = at === 0;
    made[1].button.disabled = at === count - 1;
  }
  listenWhileShown(root, (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (!by || e.defaultPrevented || e.ctrlKey || e.metaKey || e.altKey || e.shiftKey || e.target.closest?.(OWN_ARROWS)) return;
    e.preventDefault();
    turn(by);
  });
  return (data) => {
    count = data.count;
    if (data.seen >= press) at = data.at;
    made.forEach((m, i) => say(m.text, data.words[i]));
    enable();
  };
}

export default (component) => mount(component, makePager);
