// How a component lives on a page: it is made once and stays while the page's script runs again and again; the newest data
// are drawn once per screen refresh, and again when the size or the colours of the page change.

// `make(root, send, redraw, data)` fills the root, given the first data, and returns (data, theme) => { draws them }.
// `send(name, value)` tells Python what a person did.
function mount(component, make) {
  if (component.data == null) return;
  const root = component.parentElement.querySelector(".sk");
  root.mounted ??= mounted(root, make, component.data);
  root.mounted.send = component.setTriggerValue;
  root.mounted.show(component.data);
}

// Frames come as bytes; they are taken apart when they are drawn, since most of them may be dropped.
const taken = (data) => (ArrayBuffer.isView(data) ? decode(data) : data);

function mounted(root, make, first) {
  const self = { send: () => {} };
  let newest = first, asked = false;
  const redraw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (!root.isConnected) return;
      const theme = themeOf(root);
      flag(root, "sk-dark", theme.dark);
      draw(taken(newest), theme);
    });
  };
  const draw = make(root, (name, value) => self.send(name, value), redraw, taken(first));
  self.show = (data) => { newest = data; redraw(); };
  new ResizeObserver(redraw).observe(root);
  watchTheme(root, redraw);
  return self;
}

// Keys are heard on the whole page, as long as the component is on it.
function listenWhileShown(root, heard) {
  const keys = (e) => {
    if (root.isConnected) heard(e);
    else document.removeEventListener("keydown", keys);
  };
  document.addEventListener("keydown", keys);
}

// When which frame was painted: benches and tests read it.
function painted(frame, more) {
  window.__sinkscope = { seq: frame.seq, published: frame.published, painted: Date.now() / 1000, ...more };
  (window.__sinkscopeFrames ??= []).push(window.__sinkscope);
  if (window.__sinkscopeFrames.length > 600) window.__sinkscopeFrames.shift();
}
