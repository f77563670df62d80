// How a component lives on a page: it is made once and stays while the page's script runs again and again; the newest data
// are drawn once per screen refresh, and again when the size or the colours of the page change.

// `make(root, send, redraw, data)` fills the root, given the first data, and returns (data, theme) => { draws them }.
// Data that name a feed (app/feed.py) stand for its frames.
// `send(name, value)` tells Python what a person did.
function mount(component, make) {
  if (component.data == null) return;
  const root = component.parentElement.querySelector(".sk");
  root.mounted ??= mounted(root, make);
  root.mounted.send = component.setTriggerValue;
  root.mounted.take(component.data);
}

// Frame after frame of a feed, as long as they are wanted.  A page that nobody sees asks for none.
async function follow(feed, wanted, show) {
  const address = new URL(feed, document.baseURI);
  let had = "", frame = null;
  while (wanted()) {
    if (document.hidden) await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    try {
      const answer = await fetch(address, { headers: { "If-None-Match": had } });
      // Nothing more comes: the script says what stands here then.
      if (answer.status === 204) return;
      if (answer.ok) {
        frame = decode(new Uint8Array(await answer.arrayBuffer()), frame);
        had = answer.headers.get("ETag");
        if (wanted()) show(frame);
      }
      if (!answer.ok && answer.status !== 304) throw new Error(answer.statusText);
    } catch {
      // The server will be there again, or the page says that it is gone.
      await new Promise((later) => setTimeout(later, 1000));
    }
  }
}

// Frames come as bytes; they are taken apart when they are drawn, since most of them may be dropped.
const taken = (data) => (ArrayBuffer.isView(data) ? decode(data) : data);

function mounted(root, make) {
  const self = { send: () => {} };
  let newest = null, asked = false, draw = null, given = null;
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
  const show = (data) => {
    newest = data;
    if (!draw) {
      draw = make(root, (name, value) => self.send(name, value), redraw, taken(data));
      new ResizeObserver(redraw).observe(root);
      watchTheme(root, redraw);
    }
    redraw();
  };
  self.take = (data) => {
    if (data.feed && data.feed === given?.feed) return;
    given = data;
    if (data.feed) follow(data.feed, () => root.isConnected && given === data, show);
    else show(data);
  };
  return self;
}

// Keys, or other events, are heard on the whole page, as long as the component is on it.
function listenWhileShown(root, heard, what = "keydown") {
  const listener = (e) => {
    if (root.isConnected) heard(e);
    else document.removeEventListener(what, listener);
  };
  document.addEventListener(what, listener);
}

// When which frame was painted: benches and tests read it.
function painted(frame, more) {
  window.__sinkscope = { seq: frame.seq, published: frame.published, painted: Date.now() / 1000, ...more };
  (window.__sinkscopeFrames ??= []).push(window.__sinkscope);
  if (window.__sinkscopeFrames.length > 600) window.__sinkscopeFrames.shift();
}
