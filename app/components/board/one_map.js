// One attention map, on a page that has nothing else.

function makePage(root, send, redraw, data) {
  const map = makeMap();
  let frame = null;
  recordingBytes(data.map).then((bytes) => {
    frame = decode(bytes);
    root.replaceChildren(map.node);
    redraw();
  }).catch(() => say(root, "This map could not be opened: it needs a browser that is not older than 2023."));
  return (_, theme) => { if (frame) map.show(frame, theme); };
}
