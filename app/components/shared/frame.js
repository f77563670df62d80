// A frame, or a recording: uint32 length of the header, the header as JSON, and arrays whose type, place and shape the header tells.

const KINDS = { f4: Float32Array, f8: Float64Array, u2: Uint16Array, u4: Uint32Array };

// Of a frame that follows another, `before`, only what has changed is sent: names of the rest stand in `same`.
function decode(bytes, before = null) {
  const length = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  const arrays = {};
  for (const name of head.same || []) head[name] = before[name];
  for (const [name, place] of Object.entries(head.arrays)) {
    if (!place) {
      arrays[name] = before.arrays[name];
      continue;
    }
    const [kind, offset, shape] = place;
    const Kind = KINDS[kind];
    const begin = 4 + length + offset;
    const count = shape.reduce((a, b) => a * b, 1);
    const data = new Kind(bytes.slice(begin, begin + count * Kind.BYTES_PER_ELEMENT).buffer);
    arrays[name] = { data, shape };
  }
  return { ...head, arrays };
}

// Levels 1 … top of a map stand for weights on a logarithmic scale from `floor` to 1; 0 was never met.
const weightOf = ({ floor, top }, level) => floor ** (1 - (level - 1) / (top - 1));
const weightText = (levels, level) => (level > 1 ? weightOf(levels, level).toPrecision(2) : `at most ${levels.floor}`);
const levelOf = ({ floor, top }, weight) => 1 + (top - 1) * (1 - Math.log(weight) / Math.log(floor));

// Elements: el("div", {class: "x", onclick: f}, child, "text").  Text is always text, never markup.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c != null));
  return node;
}

// Writing what is there already costs a layout: so it is not written.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function flag(node, name, on) {
  if (node.classList.contains(name) !== on) node.classList.toggle(name, on);
}

// Puts a tip below what it is about, as far to the left as it must be to stay inside a room; all as the browser measures them.
function placeTip(tip, { left, bottom }, room) {
  // Beside an edge it would be measured as narrow as what is left there.
  tip.style.left = 0;
  tip.style.left = `${Math.max(0, Math.min(left - room.left, room.width - tip.offsetWidth))}px`;
  tip.style.top = `${bottom - room.top + 4}px`;
}

// Made once: a format of its own for every number would take longer than all else on the page.
const WHOLE_NUMBERS = new Intl.NumberFormat("en-US");

function count(n) {
  return WHOLE_NUMBERS.format(Math.round(n));
}

function digits(n) {
  if (n == null || Number.isNaN(n)) return "–";
  if (n >= 1000) return count(n);
  if (n >= 100) return n.toFixed(0);
  return n >= 10 ? n.toFixed(1) : n.toFixed(2);
}

// Two digits, and a third where two would make it all.
function percent(share) {
  return `${(100 * share).toPrecision(share < 0.995 ? 2 : 3)} %`;
}

function size(bytes) {
  if (bytes >= 1e9) return `${(bytes / 1e9).toFixed(2)} GB`;
  if (bytes && bytes < 999_500) return `${(bytes / 1e3).toFixed(0)} kB`;
  return bytes >= 1e7 ? `${(bytes / 1e6).toFixed(0)} MB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

// What a lane was called when it read a token: it may have been switched since.
function nameAt(lane, token) {
  return lane.past.find(([from, until]) => token >= from && token < until)?.[2] ?? lane.label;
}
