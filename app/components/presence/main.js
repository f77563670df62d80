// Streamlit writes the state of its connection, and of its script, on the element that holds the app.  A short break is
// no news.

const PATIENCE = 400;

// Back and forward go through what is seen, and not through every turn of a knob: Streamlit makes an entry in the
// browser's history of every change of the address, so all changes but these take the place of the entry before.
const ENTRIES = ["run", "panel", "figure", "chapter", "compare"];
let arriving = false;

function entriesOf(search) {
  const asked = new URLSearchParams(search);
  // A figure is written with its settings.
  return ENTRIES.map((name) => asked.getAll(name).join().replace(name === "figure" ? /:.*/ : "", ""));
}

function keepHistory() {
  const push = history.pushState;
  if (push.kept) return;
  history.pushState = function (state, title, url) {
    const next = new URL(url ?? "", location.href), samePage = next.pathname === location.pathname;
    const now = entriesOf(location.search), then = entriesOf(next.search);
    // A run that is no longer there is not gone back to, and what a page says of itself on arrival is no second entry.
    const entry = then.some((value, i) => value !== now[i] && (value || ENTRIES[i] !== "run"));
    if (samePage && (arriving || !entry)) history.replaceState(state, title, url);
    else push.call(history, state, title, url);
    if (!samePage) arriving = true;
  };
  history.pushState.kept = true;
}

export default function (component) {
  const node = component.parentElement.querySelector(".sk-away");
  const app = node.closest("[data-test-connection-state]");
  let waiting = 0;
  keepHistory();
  const check = () => {
    clearTimeout(waiting);
    if (app.dataset.testScriptState === "notRunning") arriving = false;
    if (app.dataset.testConnectionState === "CONNECTED") node.textContent = "";
    else waiting = setTimeout(() => { node.textContent = component.data; }, PATIENCE);
  };
  const watcher = new MutationObserver(check);
  watcher.observe(app, { attributeFilter: ["data-test-connection-state", "data-test-script-state"] });
  check();
  return () => {
    clearTimeout(waiting);
    watcher.disconnect();
  };
}
