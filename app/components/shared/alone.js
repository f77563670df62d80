// A page without a server: the recording stands in it, and its address says after # what is looked at.

async function unpackedPlotly() {
  const bytes = await recordingBytes({ packed: document.querySelector("#plotly").textContent });
  const script = el("script", { src: URL.createObjectURL(new Blob([bytes], { type: "text/javascript" })) });
  await new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = reject;
    document.head.append(script);
  });
  return window.Plotly;
}

// What an address asks for, of the kind that it has; a pair of numbers where nothing is chosen yet.
function linked(text, usual) {
  const pair = /^\d{1,9}\.\d{1,9}$/.test(text) ? text.split(".").map(Number) : usual;
  const read = { string: () => text, boolean: () => text === "true", number: () => (/^\d{1,9}$/.test(text) ? Number(text) : usual) };
  return (read[typeof usual] ?? (() => pair))();
}

function alone() {
  const data = JSON.parse(document.querySelector("#data").textContent);
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [name, usual] of Object.entries(data.view)) if (asked.has(name)) data.view[name] = linked(asked.get(name), usual);
  if (asked.has("at")) data.at = linked(asked.get("at"), 0);
  if (document.querySelector("#plotly")) plotlyScript = unpackedPlotly();
  const told = (name, { when, ...rest }) => {
    const said = Object.entries(rest).filter(([, value]) => value != null).map(([of, value]) => [of, Array.isArray(value) ? value.join(".") : value]);
    // A frame of a notebook has no address of its own.
    if (name === "rest" && location.protocol !== "about:") history.replaceState(null, "", `#${new URLSearchParams(said)}`);
  };
  mount({ parentElement: document.querySelector("#replay"), data, setTriggerValue: told }, makePage);
}
alone();
