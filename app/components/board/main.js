// The board: everything on the read page that moves.

const boardParts = ({ cards, curves, grid, map, ranges, strip, card }) => [
  cards.node,
  el("div", { class: "sk-columns" },
    el("div", { class: "sk-left" }, curves.node, strip.node),
    el("div", { class: "sk-right" }, grid.node, map.node, ranges?.node, card.node)),
];

function makeBoard(root, send, redraw, { constants }) {
  const toolbar = makeToolbar(send, constants.paces), cards = makeCards(send), curves = makeCurves(send, constants.modes);
  const grid = makeGrid(send, constants.grids), map = makeMap(), ranges = makeRanges(), strip = makeStrip(send, constants.paints), card = makeCard();
  root.replaceChildren(toolbar.node, ...boardParts({ cards, curves, grid, map, ranges, strip, card }));
  listenWhileShown(root, (e) => {
    if (e.key !== "k" || e.ctrlKey || e.metaKey || e.altKey || e.target.closest?.("input,textarea,select,[contenteditable]")) return;
    e.preventDefault();
    toolbar.main();
  });
  return (frame, theme) => {
    for (const part of [toolbar, cards, curves, grid, map, ranges, strip, card]) part.show(frame, theme);
  };
}

const makePage = (root, send, redraw, first) => (first.recording ? makeRecordedBoard : makeBoard)(root, send, redraw, first);

export default (component) => mount(component, makePage);
