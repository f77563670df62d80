// A recording (analysis/runs/recording.py): the frame of any position, the same as frames/reading.py makes it of a live run.

// Bytes from an address of this server, or from text in a page (base64 of gzip).
async function recordingBytes({ url, packed }) {
  if (url) {
    const answer = await fetch(new URL(url, document.baseURI));
    if (!answer.ok) throw new Error(await answer.text());
    return new Uint8Array(await answer.arrayBuffer());
  }
  const zipped = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  return new Uint8Array(await new Response(new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
}

// The number of values of a sorted list that are at most `x`.
function countUpTo(sorted, x) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Indices of at most `points` values that keep the extremes of every bucket (analysis/metrics.py, decimate).
function decimate(y, points) {
  const many = y.length;
  if (many <= points) return Array.from(y.keys());
  const size = 2 ** Math.ceil(Math.log2(many / Math.max(1, Math.floor(points / 2) - 1)));
  const kept = [0];
  for (let start = 0; start < many; start += size) {
    let low = start, high = start, least = Infinity, most = -Infinity;
    for (let k = start; k < Math.min(start + size, many); k++) {
      if (y[k] < least) { least = y[k]; low = k; }
      if (y[k] > most) { most = y[k]; high = k; }
    }
    kept.push(Math.min(low, high), Math.max(low, high));
  }
  kept.push(many - 1);
  return [...new Set(kept)];
}

// Whole numbers that were sent as straight pieces: the one at an index.
function straight(arrays, name, lane) {
  const [at, from, next] = ["at", "from", "next"].map((of) => arrays[`${name}_${of}${lane}`].data);
  return (k) => {
    const s = countUpTo(at, k) - 1;
    return Number(from[s]) + (Number(next[s]) - Number(from[s])) * (k - at[s]);
  };
}

// Mean of what is known of heads in whole chunks that were read, from the newest back over so many tokens; null before the
// first.  `value`: of what was sent.
function meanOf(spans, sent, read, tokens, value) {
  const [, layers, heads] = sent.shape, cells = layers * heads, sum = new Float64Array(cells), known = new Float64Array(cells);
  let chunk = 0, seen = 0;
  while (chunk * 2 < spans.length && spans[2 * chunk + 1] <= read + 1) chunk++;
  while (chunk-- > 0 && seen < tokens) {
    const weight = spans[2 * chunk + 1] - spans[2 * chunk];
    for (let c = 0; c < cells; c++) {
      const of = value(sent.data[chunk * cells + c]);
      if (Number.isNaN(of)) continue;
      sum[c] += weight * of;
      known[c] += weight;
    }
    seen += weight;
  }
  return seen ? flat(Float32Array.from(sum, (v, c) => v / known[c]), layers, heads) : null;
}

// The sink mass that a level stands for.
const massOf = ({ whole }) => (level) => (level > whole ? NaN : level / whole);

// Sums of the first 0, 1, 2 … values that are known, times `unit`, and how many these are.
function knownSums(values, unit) {
  const sums = new Float64Array(values.length + 1), counts = new Float64Array(values.length + 1);
  values.forEach((v, k) => {
    const known = !Number.isNaN(v);
    sums[k + 1] = sums[k] + (known ? unit * v : 0);
    counts[k + 1] = counts[k] + known;
  });
  return { sums, counts };
}

const finite = (value) => (Number.isFinite(value) ? value : null);
const flat = (data, ...shape) => ({ data, shape: shape.length ? shape : [data.length] });

function openRecording(bytes) {
  const told = decode(bytes);
  const { constants, arrays, total, vocabulary } = told;
  const { roll, first, block } = constants;
  const lanes = told.lanes.map((lane, i) => {
    const nll = arrays[`nll${i}`].data, sums = new Float64Array(nll.length + 1);
    for (let k = 0; k < nll.length; k++) sums[k + 1] = sums[k] + nll[k];
    const [tokens, sizes] = ["tokens", "bytes"].map((name) => straight(arrays, name, i));
    const slots = arrays[`slots_at${i}`] ? straight(arrays, "slots", i) : () => 0;
    const pieces = arrays[told.alike ? "pieces0" : `pieces${i}`].data;
    const known = Object.fromEntries(constants.fidelity.map((mode) => [mode, knownSums(arrays[`${mode === "KL" ? "kl" : "agree"}${i}`]?.data ?? [], mode === "KL" ? 1 : 100)]));
    return { ...lane, nll, sums, known, error: arrays[`error${i}`], tokens, slots, sizes, pieces, spans: arrays[`spans${i}`].data, mass: arrays[`mass${i}`] };
  });
  const text = (lane, start, stop) => Array.from(lane.pieces.subarray(start, stop), (k) => vocabulary[k]);
  const clock = arrays.clock.data;

  // Mean of the last values before `end`, at most `most` of them, from their sums; the other's taken off where there is one.
  function rolling({ sums }, end, most, other) {
    const begin = Math.max(end - most, 0);
    const mine = sums[end] - sums[begin];
    return (other ? mine - (other.sums[end] - other.sums[begin]) : mine) / Math.max(end - begin, 1);
  }

  function excess(mine, other, shared) {
    const off = (k) => mine.sums[k] - other.sums[k];
    const blocks = Math.floor(shared / block), means = new Float64Array(blocks);
    for (let b = 0; b < blocks; b++) means[b] = (off((b + 1) * block) - off(b * block)) / block;
    const mean = means.reduce((a, b) => a + b, 0) / blocks;
    const error = Math.sqrt(means.reduce((a, b) => a + (b - mean) ** 2, 0) / (blocks - 1) / blocks);
    return [off(shared) / shared, blocks > 1 ? error : null];
  }

  function curve(i, counts, { mode, reference }) {
    if (constants.fidelity.includes(mode)) return curveOfKnown(lanes[i].known[mode], counts[i]);
    const lane = lanes[i], other = mode === "relative" ? lanes[reference] : null;
    const many = (other ? Math.min(counts[i], counts[reference]) : counts[i]) - first + 1;
    const y = new Float64Array(Math.max(0, many));
    const most = mode === "cumulative" ? Infinity : roll;
    if (other) {
      for (let k = 0; k < many; k++) {
        const end = k + first, begin = Math.max(end - most, 0);
        y[k] = (lane.sums[end] - other.sums[end] - (lane.sums[begin] - other.sums[begin])) / (end - begin);
      }
    } else for (let k = 0; k < many; k++) y[k] = rolling(lane, k + first, most);
    const kept = decimate(y, constants.points);
    return [Float32Array.from(kept, (k) => k + first), Float32Array.from(kept, (k) => Math.exp(y[k]))];
  }

  // analysis/metrics.py, curve_of_known.
  function curveOfKnown({ sums, counts }, read) {
    const y = new Float64Array(Math.max(0, Math.min(read, sums.length - 1) - first + 1));
    for (let k = 0; k < y.length; k++) {
      const end = k + first, begin = Math.max(end - roll, 0);
      y[k] = (sums[end] - sums[begin]) / (counts[end] - counts[begin]);
    }
    const kept = decimate(y, constants.points);
    return [Float32Array.from(kept, (k) => k + first), Float32Array.from(kept, (k) => y[k])];
  }

  function memory({ sizes }, many) {
    const points = constants.memory_points, step = (many - 1) / (points - 1), places = new Set();
    for (let k = 0; k < points && many; k++) places.add(k === points - 1 ? many - 1 : Math.trunc(k * step));
    return [Float32Array.from(places, (k) => k + 1), Float32Array.from(places, (k) => sizes(k) / 1e6)];
  }

  const grid = (lane, read, tokens, of) =>
    of !== "output error" ? meanOf(lane.spans, lane.mass, read, tokens, massOf(constants)) : lane.error ? meanOf(lane.spans, lane.error, read, tokens, Number) : null;

  const mapOf = (lane, head, position) => {
    let found = null;
    told.maps.forEach((map, k) => {
      if (head && map.lane === lane && map.layer === head[0] && map.head === head[1] && map.read <= position && !(map.read < found?.read)) found = { ...map, k };
    });
    return found;
  };

  function invitation(lane, head) {
    const [layer, of] = head;
    const later = told.maps.filter((m) => m.lane === lane && m.layer === layer && m.head === of).map((m) => m.read);
    if (later.length) return `The first map of this head was kept at token ${count(Math.min(...later))}.`;
    const others = told.maps.filter((m) => m.lane === lane).map((m) => `layer ${m.layer}, head ${m.head}`);
    const kept = others.length ? ` Kept of this lane: ${[...new Set(others)].join("; ")}.` : "";
    return `No map of this head was kept.${kept} To keep it, read with --maps ${layer}.${of}, or leave the head open on the page while it reads.`;
  }

  // What the board shows when every lane has read so many tokens, or all that it ever read.
  function frameAt(position, view) {
    const counts = lanes.map(({ nll }) => Math.min(Math.max(position - 1, 0), nll.length)), furthest = Math.max(...counts);
    const at = countUpTo(told.faces.map(([from]) => from), furthest) - 1;
    const reference = lanes[view.reference], made = {};
    const shown = lanes.map((lane, i) => {
      const read = counts[i], shared = Math.min(read, counts[view.reference]);
      const face = {
        ...told.faces[at][1][i], offers: [], past: [], read: read ? read + 1 : 0, relative: null, excess: null, error: null, rolling: null,
        kept: 0, slots: 0, bytes: 0, rate: null, sinks_held: 0, state: told.status === "finished" && read + 1 === total ? "end of text" : "reading",
      };
      for (let k = 0; k + 1 < lane.changes.length && lane.changes[k + 1][0] <= read; k++) face.past.push([lane.changes[k][0], lane.changes[k + 1][0], lane.changes[k][1]]);
      if (read && shared >= first && i !== view.reference) {
        face.relative = finite(Math.exp(rolling(lane, shared, roll, reference)));
        [face.excess, face.error] = excess(lane, reference, shared).map(finite);
      }
      if (read) {
        face.rolling = finite(Math.exp(rolling(lane, read, roll)));
        face.kept = lane.tokens(read - 1);
        face.slots = lane.slots(read - 1);
        face.bytes = lane.sizes(read - 1);
      }
      const [x, y] = curve(i, counts, view), [mx, my] = memory(lane, read);
      Object.assign(made, { [`x${i}`]: flat(x), [`y${i}`]: flat(y), [`mx${i}`]: flat(mx), [`my${i}`]: flat(my) });
      return face;
    });
    if (told.bytes_per_token && furthest) {
      made.px = flat(Float32Array.of(0, furthest));
      made.py = flat(Float32Array.of(0, furthest * told.bytes_per_token / 1e6));
    }
    const chosen = lanes[view.chosen], read = counts[view.chosen], stop = read + 1, start = read ? Math.max(0, stop - constants.strip) : 0;
    const mean = grid(chosen, read, constants.grid, view.grid);
    if (mean) made.grid = mean;
    const values = new Float32Array(stop - start).fill(NaN);
    if (view.paint === "nll") values.set(chosen.nll.subarray(Math.max(0, start - 1), stop - 1), Math.max(0, 1 - start));
    const drawn = mapOf(view.chosen, view.head, read + 1);
    let map = null;
    if (drawn) {
      const weights = arrays[`map${drawn.k}`], sinks = arrays[`map_sinks${drawn.k}`], last = drawn.first + weights.shape[0];
      map = { layer: drawn.layer, head: drawn.head, first: drawn.first, note: drawn.note, tokens: text(chosen, drawn.first, last), sink_tokens: text(chosen, 0, sinks.shape[1]) };
      made.map = weights;
      made.map_sinks = sinks;
      if (view.paint === "attention") {
        const [from, to] = [Math.max(start, drawn.first), Math.min(stop, last)];
        if (from < to) values.set(arrays[`received${drawn.k}`].data.subarray(from - drawn.first, to - drawn.first), from - start);
      }
    }
    made.token_values = flat(values);
    return {
      seq: position, run: told.run, status: "recorded", note: "", published: position, recorded: true, pace: 0, ...view, roll, constants, schema: [],
      progress: "", share: position / total, total, measured: told.measured, trained_length: told.trained_length, lanes: shown, card: told.card,
      marks: told.marks.filter((m) => (m.kind === "switch" ? m.x <= furthest + 1 : m.x < furthest)),
      tokens: read ? text(chosen, start, stop) : [], tokens_start: start, marked: view.mark && read ? text(chosen, view.mark[0], Math.min(view.mark[1], stop)) : [], map, invitation: view.head && !map ? invitation(view.chosen, view.head) : "",
      arrays: made,
    };
  }

  const [layers, heads] = (lanes.find((lane) => lane.spans.length) ?? lanes[0]).mass.shape.slice(1);
  return {
    ...told, frameAt, layers, heads,
    // Seconds of reading until a position, and the position that was reached after so many.
    secondsAt: (position) => clock[Math.max(0, Math.min(total, position) - 1)],
    positionAt: (seconds) => countUpTo(clock, seconds),
    // Where the chunks of a lane end: positions that one step goes to.
    stops: (lane) => Array.from({ length: lanes[lane].spans.length / 2 }, (_, k) => lanes[lane].spans[2 * k + 1]),
    // What is known of the heads of a lane, a mean over all that it read.
    wholeGrid: (lane, of) => grid(lanes[lane], total, Infinity, of),
  };
}
