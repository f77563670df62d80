// Streamlit writes the state of its connection on the element that holds the app.  A short break is no news.

const PATIENCE = 400;

export default function (component) {
  const node = component.parentElement.querySelector(".sk-away");
  const app = node.closest("[data-test-connection-state]");
  let waiting = 0;
  const check = () => {
    clearTimeout(waiting);
    if (app.dataset.testConnectionState === "CONNECTED") node.textContent = "";
    else waiting = setTimeout(() => { node.textContent = component.data; }, PATIENCE);
  };
  const watcher = new MutationObserver(check);
  watcher.observe(app, { attributeFilter: ["data-test-connection-state"] });
  check();
  return () => {
    clearTimeout(waiting);
    watcher.disconnect();
  };
}
