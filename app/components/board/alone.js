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

function alone() {
  const data = JSON.parse(document.querySelector("#data").textContent);
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of ["mode", "paint"]) if (asked.has(name)) data.view[name] = asked.get(name);
  for (const name of ["reference", "chosen"]) if (/^\d{1,3}$/.test(asked.get(name) ?? "")) data.view[name] = Number(asked.get(name));
  if (/^\d{1,4}\.\d{1,4}$/.test(asked.get("head") ?? "")) data.view.head = asked.get("head").split(".").map(Number);
  if (/^\d{1,9}$/.test(asked.get("at") ?? "")) data.at = Number(asked.get("at"));
  if (document.querySelector("#plotly")) plotlyScript = unpackedPlotly();
  const told = (name, { when, head, ...rest }) => {
    if (name === "rest") history.replaceState(null, "", `#${new URLSearchParams(head ? { ...rest, head: head.join(".") } : rest)}`);
  };
  mount({ parentElement: document.querySelector("#replay"), data, setTriggerValue: told }, makePage);
}
alone();
