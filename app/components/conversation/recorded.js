// A recorded conversation (analysis/runs/recorded_chat.py): the frame of any position, the same as frames/chat.py makes it
// of a live one.

// A quantile of numbers, between two of them where it falls there.
function quantile(numbers, share) {
  const sorted = Float64Array.from(numbers).sort(), at = (sorted.length - 1) * share, low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}

function openTalk(bytes) {
  const told = decode(bytes);
  const { constants, arrays, total, vocabulary } = told, clock = arrays.clock.data;
  const lanes = told.lanes.map((lane, i) => {
    const [place, tokens, sizes, sinks, first, kept] = ["place", "tokens", "bytes", "sinks", "first", "protected"].map((name) => straight(arrays, name, i));
    const data = (name) => arrays[`${name}${i}`].data;
    return {
      ...lane, place, tokens, sizes, sinks, first, kept, nll: data("nll"), pieces: data("pieces"), roles: data("roles"), spans: data("spans"),
      mass: arrays[`mass${i}`], at: data("cost_at"), seconds: data("cost_seconds"), bytes: data("cost_bytes"), shares: sharesOf(data),
    };
  });
  // What heads held of their own: the moments that were kept, and where the levels of each begin.
  function sharesOf(data) {
    const [read, sinks, first, kept, levels] = ["read", "sinks", "first", "protected", "levels"].map((name) => data(`share_${name}`)), begins = [0];
    for (const count of read) begins.push(begins[begins.length - 1] + count);
    return { read, sinks, first, kept, levels: (k) => levels.subarray(begins[k], begins[k + 1]) };
  }
  const text = (lane, start, stop) => Array.from(lane.pieces.subarray(start, stop), (k) => vocabulary[k]);
  const head = (lane) => lane.mass.shape.slice(1);
  const [layers, heads] = head(lanes.find((lane) => lane.spans.length));

  // Which share of the heads holds each token, where each keeps its own: as it was kept at this moment, or before it
  // under the same policy; what came since is held by all.
  function heldBy({ shares, unknown }, said, start) {
    const read = said - 1, k = countUpTo(shares.read, read) - 1, own = unknown.find(([from, until]) => from < said && said <= until);
    if (k < 0 || (shares.read[k] !== read && !(own && shares.read[k] >= own[0]))) return { unknown: Boolean(own) };
    const levels = shares.levels(k), share = (place) => (levels[place] ?? constants.all) / constants.all;
    const of = (from, until) => Array.from({ length: until - from }, (_, j) => share(from + j));
    return {
      unknown: false, sinks: shares.sinks[k], sinks_held: shares.sinks[k], first: shares.first[k], protected: shares.kept[k],
      shares: of(start, said), first_shares: of(0, Math.min(said, constants.first_tokens)),
    };
  }

  // What its answers cost so far, in buckets, and the milliseconds per token just now.
  function costs(lane, said, i, made) {
    const many = countUpTo(lane.at, said - 1), parts = Math.min(constants.buckets, Math.floor(many / 8));
    const cuts = [...new Set(Array.from({ length: parts + 1 }, (_, k) => (parts ? Math.floor(k === parts ? many : k * (many / parts)) : 0)))];
    const ends = cuts.slice(1), spans = ends.map((end, k) => lane.seconds.subarray(cuts[k], end));
    made[`x${i}`] = flat(Float32Array.from(ends, (end) => lane.at[end - 1]));
    made[`ms${i}`] = flat(Float32Array.from(spans, (span) => 1e3 * quantile(span, 0.25)));
    made[`mb${i}`] = flat(Float32Array.from(ends, (end) => lane.bytes[end - 1] / 1e6));
    return many >= constants.recent ? 1e3 * quantile(lane.seconds.subarray(many - constants.recent, many), 0.25) : null;
  }

  // What the page shows at a position: every lane has what it had said when so much of the turn had come.
  function frameAt(position, view) {
    const faces = told.faces[countUpTo(told.faces.map(([from]) => from), position) - 1][1], made = {};
    const shown = lanes.map((lane, i) => {
      const said = lane.place(position), read = Math.max(0, said - 1), start = Math.max(0, said - constants.tail);
      const switches = lane.switches.filter(([at]) => at < said), names = [lane.begun, ...switches.map(([, , name]) => name)];
      const known = (of) => (read ? of(read - 1) : 0), sinks = known(lane.sinks);
      const ms = costs(lane, said, i, made);
      const nll = Float32Array.from({ length: said - start }, (_, k) => (start + k ? lane.nll[start + k - 1] : NaN));
      made[`nll${i}`] = flat(nll);
      return {
        ...faces[i], offers: [], total: said, start, text: text(lane, start, said), roles: lane.roles.subarray(start, said).join(""),
        first_tokens: text(lane, 0, Math.min(said, constants.first_tokens)), sinks, protected: known(lane.kept), first: known(lane.first),
        shares: null, first_shares: null, kept: known(lane.tokens), bytes: known(lane.sizes), ms,
        state: lane.turns.some(([stop]) => stop === said) ? "" : "answering",
        cut: lane.turns.filter(([stop, why]) => stop <= said && constants.cut.includes(why)),
        past: switches.map(([at], k) => [k ? switches[k - 1][0] : 0, at, names[k]]), switches: switches.map(([at, label]) => [at, label]),
        sinks_held: sinks, read: said, ...heldBy(lane, said, start),
      };
    });
    const { spans, mass, place } = lanes[view.chosen];
    const grid = meanOf(spans, mass, Math.max(0, place(position) - 1), constants.recent, massOf(constants));
    if (grid) made.grid = grid;
    // Nothing is said of a token that comes later.
    const { token } = view, asked = token && token[1] < shown[token[0]].total ? view : { ...view, token: null };
    const k = rowAt(asked), row = k >= 0 ? told.rows[k] : null;
    if (row) Object.assign(made, { row_places: arrays[`row_places${k}`], row_weights: arrays[`row_weights${k}`] });
    return {
      seq: position, run: told.run, status: "recorded", note: "", published: position, recorded: true, epoch: 0, ...view, constants, schema: [],
      lanes: shown, row, card: told.card, caution: told.caution, hint: hintOf(asked, row), arrays: made,
    };
  }

  // The row that was kept of the token that is looked at: of the head that is chosen, or of any where none is.
  function rowAt({ token, head: of }) {
    if (!token) return -1;
    const fits = (row) => row.lane === token[0] && row.token === token[1] && (!of || (row.layer === of[0] && row.head === of[1]));
    return told.rows.findLastIndex(fits);
  }

  function hintOf({ token, chosen }, row) {
    const kept = [...new Set(told.rows.filter((of) => of.lane === chosen).map((of) => of.token))].sort((a, b) => a - b);
    const others = kept.length ? ` Kept of this lane: the tokens at ${kept.map(count).join(", ")}.` : "";
    if (!token) return `Click a token: how well the model had expected it, in this lane.${kept.length ? ` What it looked back at is kept of the tokens at ${kept.map(count).join(", ")}.` : ""}`;
    const lane = lanes[token[0]], nll = lane.nll[token[1] - 1];
    const cost = nll == null ? "The first token is given: nothing came before it." : `${JSON.stringify(vocabulary[lane.pieces[token[1]]])} at ${count(token[1])}: NLL ${digits(nll)}, a probability of ${percent(Math.exp(-nll))}.`;
    if (row) return `${cost} Shaded: what it gave to each, layer ${row.layer}, head ${row.head}; stronger is more, on a logarithmic scale.`;
    return `${cost} What it looked back at is not kept: click a token of a live conversation, and it is kept for that one.${others}`;
  }

  return {
    ...told, frameAt, layers, heads,
    tokensOf: (lane) => lanes[lane].pieces.length,
    // Seconds of reading and answering until a position, and the position that was reached after so many.
    secondsAt: (position) => clock[Math.max(0, Math.min(total, position) - 1)],
    positionAt: (seconds) => countUpTo(clock, seconds),
  };
}
