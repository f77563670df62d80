// Copies the address of the page, which says all that is seen on it.  Where a page came without encryption browsers keep
// the clipboard from it, and an older way is left.

const SAID = 1600;

function copyOld(text) {
  const field = document.createElement("textarea");
  field.value = text;
  field.setAttribute("readonly", "");
  field.style.cssText = "position:fixed;opacity:0";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOld(text);
  }
}

export default function (component) {
  const { words, copied } = component.data, button = component.parentElement.querySelector(".sk-link");
  const said = component.parentElement.querySelector(".sk-unseen");
  let waiting = 0;
  button.textContent = words;
  button.onclick = async () => {
    const done = await copy(location.href);
    button.focus();
    // Where nothing copies, the address is shown to be copied by hand.
    button.textContent = said.textContent = done ? copied : location.href;
    clearTimeout(waiting);
    if (done) waiting = setTimeout(() => { button.textContent = words; said.textContent = ""; }, SAID);
  };
  return () => clearTimeout(waiting);
}
