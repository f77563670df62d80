// What is worth knowing of the model: a word and its facts, line by line; and what sharing keys saves, or would save.

function makeCard() {
  const list = el("dl", { class: "sk-facts" });
  const rows = el("div", { class: "sk-sharings" });
  const node = el("section", { class: "sk-panel", hidden: true },
    el("h2", { class: "sk-title" }, "Model"), list,
    el("div", { class: "sk-small" }, "What its cache costs, and would cost if its query heads shared keys otherwise"), rows);
  let drawn = "";
  function show(frame) {
    const facts = Object.entries(frame.card.facts || {}), sharings = frame.card.sharings || [];
    const key = JSON.stringify(frame.card);
    if (key === drawn) return;
    drawn = key;
    node.hidden = !facts.length;
    list.replaceChildren(...facts.flatMap(([word, fact]) => [el("dt", {}, word), el("dd", {}, fact)]));
    const most = Math.max(...sharings.map((s) => s.bytes));
    rows.replaceChildren(...sharings.flatMap((s) => {
      const bar = el("div", { class: "sk-cost" });
      bar.style.width = `${100 * s.bytes / most}%`;
      return [el("div", {}, s.what), el("div", { class: s.own ? "sk-own" : "" }, bar, `${s.costs}${s.own ? ", as it is" : " (predicted)"}`)];
    }));
  }
  return { node, show };
}
