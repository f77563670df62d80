// The board: puts the parts together, draws the newest frame once per screen refresh, and drops older ones.

function makeBoard(root) {
  const board = { send: () => {} };
  const send = (name, value) => board.send(name, value);
  const toolbar = makeToolbar(send), cards = makeCards(send), curves = makeCurves(send);
  const grid = makeGrid(send), map = makeMap(), strip = makeStrip(send), card = makeCard();
  root.replaceChildren(
    toolbar.node, cards.node,
    el("div", { class: "sk-columns" },
      el("div", { class: "sk-left" }, curves.node, strip.node),
      el("div", { class: "sk-right" }, grid.node, map.node, card.node)));

  let newest = null, asked = false;
  const draw = () => {
    asked = false;
    if (!newest || !root.isConnected) return;
    const frame = decode(newest), theme = themeOf(root);
    flag(root, "sk-dark", theme.dark);
    for (const part of [toolbar, cards, curves, grid, map, strip, card]) part.show(frame, theme);
  };
  const ask = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(draw);
  };
  board.show = (bytes) => { newest = bytes; ask(); };
  const watcher = new ResizeObserver(ask);
  watcher.observe(root);
  watchTheme(root, ask);
  const keys = (e) => {
    if (!root.isConnected) {
      document.removeEventListener("keydown", keys);
      return;
    }
    if (e.key !== "k" || e.ctrlKey || e.metaKey || e.altKey || e.target.closest?.("input,textarea,select,[contenteditable]")) return;
    e.preventDefault();
    toolbar.main();
  };
  document.addEventListener("keydown", keys);
  return board;
}

export default function (component) {
  const root = component.parentElement.querySelector(".sk");
  root.board ??= makeBoard(root);
  root.board.send = component.setTriggerValue;
  if (component.data) root.board.show(component.data);
}
