// Colours: viridis for weights, an orange ramp for surprise, and what light and dark need of each.

const VIRIDIS = [
  [68, 1, 84], [72, 26, 108], [71, 47, 125], [65, 68, 135], [57, 86, 140], [49, 104, 142], [42, 120, 142], [35, 136, 142],
  [31, 152, 139], [34, 168, 132], [53, 183, 121], [84, 197, 104], [122, 209, 81], [165, 219, 54], [210, 226, 27], [253, 231, 37],
];

// The colour at a share of the way along a row of colours, between two of them where it falls there.
function along(colours, share) {
  const at = Math.max(0, Math.min(1, share)) * (colours.length - 1), low = Math.floor(at);
  const [a, b] = [colours[low], colours[Math.min(low + 1, colours.length - 1)]];
  return a.map((v, i) => Math.round(v + (b[i] - v) * (at - low)));
}

const VIRIDIS_256 = Array.from({ length: 256 }, (_, i) => along(VIRIDIS, i / 255));

// Weights are shown on a logarithmic scale from `DIMMEST` to 1: the share of the way between them.
const DIMMEST = 1e-4;
const shadeOf = (weight) => Math.max(0, Math.min(1, 1 - Math.log(Math.max(weight, DIMMEST)) / Math.log(DIMMEST)));
const WEIGHT_MARKS = [[0.01, "≤ 10⁻⁴"], [0.25, "10⁻³"], [0.5, "0.01"], [0.75, "0.1"], [0.99, "1"]];

function css([r, g, b]) {
  return `rgb(${r},${g},${b})`;
}

function luminance(colour) {
  const [r, g, b] = (colour.match(/[\d.]+/g) || [255, 255, 255]).map(Number);
  return (0.299 * r + 0.587 * g + 0.114 * b) / 255;
}

// What the page's theme is just now.
function themeOf(node) {
  let at = node;
  let background = "rgb(255,255,255)";
  while (at) {
    const seen = getComputedStyle(at).backgroundColor;
    if (seen && !/rgba\(.*, 0\)|transparent/.test(seen)) {
      background = seen;
      break;
    }
    at = at.parentElement;
  }
  const dark = luminance(background) < 0.5;
  return {
    dark,
    ground: (background.match(/[\d.]+/g) || [255, 255, 255]).slice(0, 3).map(Number),
    text: dark ? "#e8eaed" : "#1a1c1f",
    muted: dark ? "#9aa0a6" : "#5f6368",
    line: dark ? "#33373d" : "#e3e5e8",
    evicted: dark ? [58, 62, 69] : [222, 224, 228],
    later: dark ? [14, 17, 22] : [255, 255, 255],
  };
}

// Call back when the colours of the page change, whoever changes them: a transition (page.css) that is too short to be
// seen ends then.
function watchTheme(root, redraw) {
  root.addEventListener("transitionend", (e) => { if (e.target === root) redraw(); });
}

// Black curves are white on a dark page.
function laneColour(colour, theme) {
  return theme.dark && colour === "#000000" ? "#ffffff" : colour;
}

const channels = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

// How far two colours are apart for a reader (WCAG 2): 1 to 21.
function contrast(one, other) {
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const [a, b] = [light(one), light(other)];
  return Math.max(a, b) / Math.min(a, b);
}

const READABLE = 4.5; // of words, by WCAG 2

// A lane's colour for its words: as near to that of other text as a reader needs.
function inkColour(colour, theme) {
  const way = [channels(laneColour(colour, theme)), channels(theme.text)];
  for (let share = 0; share < 1; share += 0.05) {
    const ink = along(way, share);
    if (contrast(ink, theme.ground) >= READABLE) return css(ink);
  }
  return theme.text;
}

// The type of what is drawn rather than laid out: pixels of a label and of its line, those of a smaller one, and by what
// the room around it grows.  It follows that of the page, which is larger on a projector.
function typeOf(node) {
  const size = Math.floor((parseFloat(getComputedStyle(node).fontSize) * 12) / 13), grown = size / 12;
  return { size, grown, line: Math.round(15 * grown), small: Math.round(11 * grown), smallLine: Math.round(14 * grown) };
}

// Room at the edges of a canvas, as its type asks for.
const roomy = (edge, type) => Object.fromEntries(Object.entries(edge).map(([side, pixels]) => [side, Math.round(pixels * type.grown)]));

// A canvas as sharp as the screen; true when its size changed.
function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width === w && canvas.height === h) return false;
  canvas.width = w;
  canvas.height = h;
  canvas.style.height = `${height}px`;
  return true;
}

// A vertical bar of viridis with its labels: [[share, "text"], …], share 0 at the bottom.
function bar(ctx, x, y, width, height, labels, theme) {
  for (let i = 0; i < height; i++) {
    ctx.fillStyle = css(VIRIDIS_256[Math.round(255 * (1 - i / height))]);
    ctx.fillRect(x, y + i, width, 1.5);
  }
  ctx.fillStyle = theme.muted;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  for (const [share, text] of labels) ctx.fillText(text, x + width + 4, y + height * (1 - share));
}

// Of a token's NLL: what is this surprising, or more, has the strongest colour.
const TOP_NLL = 8;
// Behind text: the strongest still lets it be read (4.5 : 1).
const behind = (rgb, share, theme) => `rgba(${rgb},${(share * (theme.dark ? 0.75 : 0.6)).toFixed(2)})`;
const surpriseColour = (nll, theme) => behind("213,94,0", Math.min(1, Math.max(0, nll) / TOP_NLL), theme);
const attentionColour = (weight, theme) => behind("0,114,178", shadeOf(weight), theme);
