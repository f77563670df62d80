// Streamlit writes the state of its connection, and of its script, on the element that holds the app.  A short break is
// no news.

const PATIENCE = 400;

// Back and forward go through what is seen, and not through every turn of a knob: Streamlit makes an entry in the
// browser's history of every change of the address, so all changes but these take the place of the entry before.
const ENTRIES = ["run", "panel", "figure", "chapter", "compare"];
let arriving = false;
// The newest change of the address on one page: what it was before, and whether that is an entry of its own.
let before = null;

function entriesOf(search) {
  const asked = new URLSearchParams(search);
  // What plays in a chapter begins by itself.
  if (asked.has("chapter")) asked.delete("run");
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
    if (samePage) {
      const pushed = entry && !arriving;
      before = { href: location.href, pushed };
      if (pushed) push.call(history, state, title, url);
      else history.replaceState(state, title, url);
      return;
    }
    // What a page says of itself on arrival may come before its path does, and then stands behind the path of the page
    // that was left, whose address comes back.
    const early = before && next.search && next.search === location.search;
    if (early && !before.pushed) history.replaceState(null, "", before.href);
    if (early && before.pushed) history.replaceState(state, title, url);
    else push.call(history, state, title, url);
    before = null;
    arriving = true;
  };
  history.pushState.kept = true;
}

// Streamlit writes no path into a link to the first page: in a new tab it would open the page that the link stands on.
function writePath({ target }) {
  const link = target.closest?.("[data-testid=stPageLink-NavLink]"), href = link?.getAttribute("href") ?? "";
  if (link && /^(\?|$)/.test(href)) link.setAttribute("href", `./${href}`);
}

// Streamlit reads the digits before the "e" of a whole number alone: 1e3 would be 1.  It gets all of them before it reads.
function writeOut({ target, type, key }) {
  if (type === "keydown" && key !== "Enter") return;
  if (!target.matches?.("[data-testid=stNumberInputField]") || !/e/i.test(target.value)) return;
  const number = target.valueAsNumber, whole = Number.isInteger(Number(target.step));
  if (!whole || !Number.isFinite(number)) return;
  // React hears of a value that it has not written itself by this way alone.
  const { set } = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
  set.call(target, Number.isInteger(number) ? String(BigInt(number)) : number.toFixed(20));
  target.dispatchEvent(new Event("input", { bubbles: true }));
}

// A browser in English drops the comma of 1,5, and 15 would be read.  Where fractions can be written, a point stands for
// it, before the next key at the latest.
let dropped = () => {};

function keepComma({ target, data }) {
  if (data !== "," || !target.matches?.("[data-testid=stNumberInputField]") || Number.isInteger(Number(target.step))) return;
  // One that takes the comma says so.
  const taken = () => { dropped = () => {}; };
  target.addEventListener("input", taken, { once: true });
  dropped = () => {
    target.removeEventListener("input", taken);
    dropped = () => {};
    if (document.activeElement === target) document.execCommand("insertText", false, ".");
  };
  setTimeout(() => dropped());
}

const nextKey = () => dropped();

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
  // Before anybody can press it, by whatever hand.
  for (const reached of ["pointerover", "focusin"]) document.addEventListener(reached, writePath);
  for (const left of ["keydown", "focusout"]) document.addEventListener(left, writeOut, true);
  document.addEventListener("beforeinput", keepComma, true);
  document.addEventListener("keydown", nextKey, true);
  return () => {
    clearTimeout(waiting);
    document.removeEventListener("beforeinput", keepComma, true);
    document.removeEventListener("keydown", nextKey, true);
    for (const reached of ["pointerover", "focusin"]) document.removeEventListener(reached, writePath);
    for (const left of ["keydown", "focusout"]) document.removeEventListener(left, writeOut, true);
    watcher.disconnect();
  };
}
