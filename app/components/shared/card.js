// What is worth knowing of the model: a word and its facts, line by line.

function makeCard() {
  const list = el("dl", { class: "sk-facts" });
  const node = el("section", { class: "sk-panel", hidden: true }, el("div", { class: "sk-title" }, "Model"), list);
  let drawn = "";
  function show(frame) {
    const facts = Object.entries(frame.card || {});
    const key = JSON.stringify(facts);
    if (key === drawn) return;
    drawn = key;
    node.hidden = !facts.length;
    list.replaceChildren(...facts.flatMap(([word, fact]) => [el("dt", {}, word), el("dd", {}, fact)]));
  }
  return { node, show };
}
