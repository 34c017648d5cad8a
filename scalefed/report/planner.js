// What should these clients train? The question with what the runs fill in, the answer with its intervals and notes:
// what fit.optimal_size, fit.plan and fit.least_compute answer in scalefed.allocation.planning.
"use strict";

const LIMITS = [
  "compute", "compute_per_client", "bytes_sent", "bytes_per_client", "memory", "seconds", "rounds", "tokens", "params",
  "unique_tokens_per_client",
];
const LIMIT_WORDS = {
  compute: "the compute", compute_per_client: "the compute of a client", bytes_sent: "the bytes sent",
  bytes_per_client: "the bytes of a client", memory: "a client's memory", seconds: "the time", rounds: "the rounds",
  tokens: "the tokens", params: "the size", unique_tokens_per_client: "the clients' own text",
};
const ALIKE = 1e-5; // log sizes that differ by less are held by a limit
const IN_ROUNDS = ["bytes_sent", "bytes_per_client", "seconds", "rounds"];

// The limits and the setting of a question; keys are those of Python's keywords.
function settingOf(data, ask) {
  const given = {};
  const filled = data.setting;
  for (const [name, value] of Object.entries(filled.given)) given[name] = value;
  for (const name of ["clients", "clients_per_round", "skew", "local_steps", "batch_tokens", "unique_tokens"])
    if (ask[name] !== undefined) given[name] = ask[name];
  for (const [name, value] of Object.entries(ask.columns || {})) given[name] = value;
  if (ask.participation !== undefined) given.clients_per_round = ask.participation * given.clients;
  if (given.clients_per_round < 1 - 1e-9)
    throw new Refusal(`${words.share(ask.participation)} of ${words.count(given.clients)} clients is less than one a round`);
  if (given.clients_per_round > given.clients * (1 + 1e-9))
    throw new Refusal("more clients train in a round than there are");
  if (given.clients && given.clients_per_round) given.participation = given.clients_per_round / given.clients;
  if (ask.unique_tokens === undefined && ask.unique_tokens_per_client && given.clients)
    given.unique_tokens = ask.unique_tokens_per_client * given.clients;
  const log_round = Math.log(given.clients_per_round * given.batch_tokens * given.local_steps);
  const needed = IN_ROUNDS.some((name) => ask[name]);
  if (needed && !Number.isFinite(log_round))
    throw new Refusal("a limit in rounds, bytes or time needs clients per round, local steps and tokens of a step");
  return { ...filled, ...pick(ask, ["bytes_per_value", "trained_share", "vocab", "width_per_layer"]), given, log_round };
}

function pick(from, names) {
  return Object.fromEntries(names.filter((name) => from[name] !== undefined).map((name) => [name, from[name]]));
}

// The rows of the law, then of those mixed with it, with a setting put in; kept for the last setting, so that moving the compute compiles nothing.
function rowsFor(data, setting) {
  const key = JSON.stringify([setting.given, setting.trained_share, setting.bytes_per_value]);
  if (data.kept?.key !== key) {
    const columns = columnsOf(setting);
    const compiled = (law) => law.values[law.free[0]].map((_, i) => compileLaw(law, rowOf(law, i), columns));
    const laws = [data.law, ...data.mixed].flatMap(compiled);
    const single = (group) => group.map((one) => compileLaw(one, rowOf(one, 0), columns));
    data.kept = { key, columns, laws, others: single(data.alternatives), tests: single(data.column_tests) };
  }
  return data.kept;
}

// The answer to a question, as Optimum has it.
function plan(data, ask) {
  if (data.refused) throw new Refusal(data.refused);
  const setting = settingOf(data, ask);
  const rows = rowsFor(data, setting);
  const priced = data.law.columns.includes("unique_tokens");
  const goal = goalOf(ask);
  const solve = (limited, laws = rows.laws) => {
    const others = limitsOf({ ...limited, compute: undefined }, setting, priced);
    const limitsAt = (compute) => (compute ? [computeLimit(setting, compute, ask.sampled_tokens), ...others] : others);
    const alone = goal ? leastCompute(data, { ...rows, laws }, goal, ask.k || 1, limitsAt) : minimise(laws, limitsAt(ask.compute));
    const found = withLawError(data, rows, alone);
    return { found, limits: limitsAt(goal ? found[0].compute : ask.compute) };
  };
  const { found, limits } = solve(ask);
  const best = found[0];
  if (goal && !Number.isFinite(best.compute)) throw new Refusal(unreachable(goal, best));
  if (!best.bounded)
    throw new Refusal("nothing holds the best size: with the fitted exponents the loss falls for ever; add a limit");
  const [low, high] = ends(found.map((one) => Math.exp(one.n)), 0.95);
  if (high > data.widest * low)
    throw new Refusal(`these runs cannot tell the best size: its 95% interval, ${words.count(low)} to ${words.count(high)} parameters, is wider than a factor of ${data.widest}`);
  const answer = report(data, ask, setting, rows, found, limits);
  withTests(data, setting, rows, best, answer, (law) => solve(ask, [law]).found[0]);
  const again = withRepeats(data, ask, setting, rows, answer, solve);
  if (goal) {
    answer.regret = NaN;
    const both = [found, ...again].map((series) => quantiles(series.map((one) => one.compute), answer.level, true));
    const [low, high] = [Math.min(...both.map((pair) => pair[0])), Math.max(...both.map((pair) => pair[1]))];
    answer.notes.push(`compute ${words.grouped(best.compute)} FLOPs [${words.grouped(low)}, ${words.grouped(high)}]`);
  }
  answer.notes.push(...outside(data, ask, setting, answer));
  return answer;
}

function goalOf(ask) {
  for (const name of ["loss", "pass_at_1", "pass_at_k"]) if (ask[name] !== undefined) return { name, value: ask[name] };
  return null;
}

function unreachable(goal, best) {
  if (goal.name !== "loss") return `no compute solves ${words.share(goal.value)} of the problems; ask for less`;
  return `no compute reaches this loss: the fitted law ends at ${words.grouped(best.constant)}; ask for a higher loss`;
}

function report(data, ask, setting, rows, found, limits) {
  const level = ask.level || data.level, best = found[0];
  const { n, d } = best;
  const series = (name) => found.map((one) => one[name]);
  const losses = rows.laws.map((law) => Math.exp(logSum(law.forms, n, d)));
  const answer = { level, notes: [], binding: [], pass_at_k: {} };
  const round = (values) => values.map((value) => Math.exp(value - setting.log_round));
  const put = (name, values) => {
    [answer[`${name}_low`], answer[`${name}_high`]] = ends(values, level);
    answer[name] = values[0];
  };
  put("params", series("n").map(Math.exp));
  put("tokens", series("d").map(Math.exp));
  put("rounds", round(series("d")));
  answer.loss = losses[0];
  const band = bandAt(data, rows, setting, n, d, level);
  [answer.loss_low, answer.loss_high] = [band.low, band.high];
  answer.compute = powerSum(setting.cost, n) * answer.tokens + 2 * answer.params * (ask.sampled_tokens || 0);
  answer.local_steps = setting.given.local_steps ?? NaN;
  answer.bytes_sent = Math.exp(columnAt(rows.columns.bytes_sent, n, d));
  answer.memory = setting.given.batch_tokens ? memoryOf(setting, n) : NaN;
  answer.shadow_prices = pricesOf(rows.laws[0], limits, best);
  const excess = Math.exp(best.log_excess);
  answer.binding = Object.keys(answer.shadow_prices)
    .filter((name) => answer.shadow_prices[name] > 1e-8 * excess)
    .sort((a, b) => answer.shadow_prices[b] - answer.shadow_prices[a]);
  const costs = found.slice(1).map((one, i) => losses[i + 1] - one.constant - Math.exp(one.log_excess));
  const lost = costs.length ? quantile(costs, level) : NaN;
  const apart = (name) => quantile(found.slice(1).map((one) => Math.abs((one[name] ?? one.n) - n)), level);
  const farther = found.length > 1 && apart("own") > 0 ? Math.max(apart("n") / apart("own"), 1) : 1;
  answer.regret = lost <= 1e-12 * answer.loss ? 0 : lost * farther ** 2; // rounding is no loss
  answer.notes = notesOf(data, ask, setting, found, answer);
  if (data.link) Object.assign(answer, passesAt(data.link, rows.columns, n, d, spreadFurther(data, losses, band.model), level));
  return answer;
}

function notesOf(data, ask, setting, found, answer) {
  const notes = [];
  const loose = found.slice(1).filter((one) => !one.bounded).length;
  if (loose) notes.push(`in ${((100 * loose) / (found.length - 1)).toFixed(1)}% of the replicates nothing holds the best size`);
  for (const name of ["clients", "clients_per_round", "skew"]) {
    const said = ask[name] !== undefined || (name === "clients_per_round" && ask.participation !== undefined);
    if (!said && data.assumed[name]) notes.push(data.assumed[name]);
  }
  const inRounds = data.law.in_rounds || IN_ROUNDS.some((name) => ask[name]);
  const usual = (name) => notes.push(`${name} = ${words.grouped(data.setting.given[name], 6)}, as in the runs`);
  if (ask.local_steps === undefined && inRounds && data.setting.given.local_steps) usual("local_steps");
  notes.push(...data.notes);
  if (ask.batch_tokens === undefined && (inRounds || ask.memory) && data.setting.given.batch_tokens) usual("batch_tokens");
  if (data.exact) {
    const ratio = powerSum(data.exact, found[0].n) / powerSum(setting.cost, found[0].n);
    const told = `with output layer and attention counted (compute_exact) this run takes ${words.grouped(ratio, 2)} times its compute`;
    if (Math.abs(ratio - 1) >= data.exact.alike) notes.push(told);
  }
  for (const name of ["params", "tokens"]) {
    if (!data.measured[name]) continue;
    const [low, high] = data.measured[name], value = answer[name];
    const times = words.grouped(value / high, 2);
    if (value > 1.001 * high) notes.push(`${name} ${words.grouped(value)} is ${times} times the largest of the runs (${words.grouped(high)})`);
    else if (value < 0.999 * low) notes.push(`${name} ${words.grouped(value)} is below the smallest of the runs (${words.grouped(low)})`);
  }
  return notes;
}

// ---------------------------------------------------------------------- outside the runs
const ASSUMES = "the answer assumes that it does not matter";

// What the answer assumes wherever its question lies outside the runs; as scalefed.allocation.extrapolation.look.
function outside(data, ask, setting, answer) {
  const { given } = setting, unique = given.unique_tokens;
  const priced = ["unique_tokens", "epochs"].some((name) => data.law.columns.includes(name));
  const asked = { ...ask.columns };
  for (const name of ["clients", "clients_per_round", "skew", "local_steps", "batch_tokens"]) asked[name] = given[name];
  if (ask.skew === undefined && !data.law.columns.includes("skew")) delete asked.skew;
  if (data.law.columns.includes("unique_tokens")) asked.unique_tokens = unique;
  asked.participation = given.participation;
  if (priced && unique) asked.epochs = answer.tokens / unique;
  if (ask.trained_share !== 1) asked.trained_share = ask.trained_share;
  const known = Object.entries(asked).filter(([name, value]) => Number.isFinite(value) && data.ranges[name]);
  const said = (name) => ask[name] !== undefined || name in (ask.columns || {});
  return [...known.map(([name, value]) => sentenceOf(data.ranges[name], value, said(name))), ...data.texts].filter(Boolean);
}

function beyondRange(column, value) {
  const { low, high, slack } = column;
  if (low === null) return 0;
  if (!column.linear) return value > high * 1.001 || value < low / 1.001 ? Math.max(Math.log10(value / high), Math.log10(low / value)) : 0;
  const away = Math.max(value - high, low - value), span = high - low;
  return away > slack ? (span > slack ? away / span : away) : 0;
}

function sentenceOf(column, value, said) {
  const phrase = (number) => column.phrases[number === 1 ? 0 : 1].replace("{}", words.grouped(number));
  const { name, low, high, in_law: heard } = column;
  if (low === null) return heard ? "" : `the runs do not tell their ${name}; ${ASSUMES}`;
  if (!beyondRange(column, value))
    return said && !heard && !column.constant ? `${name} has no term in this law: size and loss are the same for all that the runs had` : "";
  const all = `these runs all had ${phrase(low)}`;
  if (column.constant && column.needed && !heard)
    throw new Refusal(`${all}, so what ${phrase(value)} does was not measured`);
  if (column.constant) return `${all}; the answer for ${words.grouped(value)} ${heard ? "goes by the law alone" : "assumes that it does not matter"}`;
  const over = value > high, end = over ? high : low;
  const times = words.grouped(over ? value / end : end / value);
  const how = column.linear ? (over ? "above the highest" : "below the lowest") : over ? `${times} times the most` : `${times} times below the least`;
  return `${phrase(value)} is ${how} of the runs (${words.grouped(end)})${heard ? (column.tested ? "" : "; these runs could not test the law there") : `; ${ASSUMES}`}`;
}

// The tests of the columns in which a question lies outside the runs, each with its weight; as scalefed.allocation.column_tests.
function testsBeyond(data, rows, valueOf) {
  return data.column_tests
    .map((test, i) => ({ law: rows.tests[i], column: test.column, weight: Math.min(beyondRange(data.ranges[test.column], valueOf(test.column)) / 0.1, 1) }))
    .filter((test) => test.weight > 0);
}

function withTests(data, setting, rows, best, answer, solve) {
  const tests = testsBeyond(data, rows, (column) => setting.given[column]);
  if (!tests.length || !Number.isFinite(answer.params_low)) return;
  const { normal } = data.quantiles[answer.level];
  const errors = { params: 0, tokens: 0, rounds: 0 };
  for (const { law, weight } of tests) {
    const found = solve(law), moved = { params: found.n - best.n, tokens: found.d - best.d, rounds: found.d - best.d };
    for (const name of Object.keys(errors)) errors[name] = Math.hypot(errors[name], found.bounded ? weight * moved[name] : Infinity);
  }
  for (const [name, error] of Object.entries(errors)) {
    const [value, low, high] = ["", "_low", "_high"].map((end) => answer[`${name}${end}`]);
    answer[`${name}_low`] = value * Math.exp(-Math.hypot(Math.log(value / low), normal * error));
    answer[`${name}_high`] = value * Math.exp(Math.hypot(Math.log(high / value), normal * error));
  }
  const wide = (data.quantiles["0.95"].normal / normal) * Math.log(answer.params_high / answer.params_low);
  if (!(wide <= Math.log(data.widest)))
    throw new Refusal(`these runs cannot tell the best size so far beyond their ${tests.map((test) => test.column).join(" and ")}: the interval is wider than a factor of ${data.widest}; add runs nearer to the question`);
}

// Text read more often than the runs read theirs, by a law that takes it for fresh: the answer between that and text
// that teaches nothing when it is read again; as scalefed.allocation.repeats. What solved that, if it had to be.
function withRepeats(data, ask, setting, rows, answer, solve) {
  const unique = ask.unique_tokens ?? (ask.unique_tokens_per_client * setting.given.clients || undefined);
  if (!unique || ["unique_tokens", "epochs"].some((name) => data.law.columns.includes(name))) return [];
  const passes = answer.tokens / unique, seen = data.seen_passes, whole = Math.round(unique).toLocaleString("en-US");
  const times = seen <= 1.001 ? "once" : `${words.grouped(seen)} times`;
  if (passes <= seen * 1.001) {
    if (ask.unique_tokens !== undefined)
      answer.notes.push(`unique_tokens has no term in this law: ${words.grouped(passes)} passes over ${whole} count as fresh text`);
    return [];
  }
  const cap = unique * seen, read = `read its ${whole} different tokens ${words.grouped(passes)} times, these runs theirs at most ${times}`;
  const { found, limits } = solve({ ...ask, tokens: Math.min(ask.tokens ?? Infinity, cap) });
  const refusal = new Refusal(`the best run would ${read}, and the law does not know what repeated text is worth: ask with more text`);
  if (ask.compute === undefined && goalOf(ask) && !Number.isFinite(found[0].compute)) throw refusal;
  const once = report(data, ask, setting, rows, found, limits);
  const band = bandAt(data, rows, setting, Math.log(answer.params), Math.log(Math.min(answer.tokens, cap)), answer.level);
  for (const name of ["params", "tokens", "rounds"]) {
    const all = [answer, once].flatMap((one) => [one[`${name}_low`], one[name], one[`${name}_high`]]).filter(Number.isFinite);
    if (all.length) [answer[`${name}_low`], answer[`${name}_high`]] = [Math.min(...all), Math.max(...all)];
  }
  if (answer.params_high > 10 * answer.params_low) throw refusal;
  answer.loss_high = Math.max(answer.loss_high, band.high);
  answer.regret = NaN;
  if (data.link) {
    const d = Math.log(Math.min(answer.tokens, cap)), n = Math.log(answer.params);
    const losses = spreadFurther(data, rows.laws.map((law) => Math.exp(logSum(law.forms, n, d))), band.model);
    for (const [k, values] of Object.entries(passesAt(data.link, rows.columns, n, d, losses, answer.level).pass_at_k))
      answer.pass_at_k[k][1] = Math.min(answer.pass_at_k[k][1], values[1]);
    answer.pass_at_1_low = answer.pass_at_k[1][1];
  }
  answer.notes.push(`the best run ${read.replace("read", "reads")}, and the law has no term for it: intervals reach from repeated text that is worth as much as fresh to repeated text that teaches nothing`);
  return [found];
}

// ---------------------------------------------------------------------- intervals
// The quantile of numbers as numpy has it: linear, or the nearest where some are infinite.
function quantile(values, share, nearest = false) {
  const sorted = Float64Array.from(values).sort();
  const place = share * (sorted.length - 1), low = Math.floor(place), rest = place - low;
  if (nearest) return sorted[rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low];
  return low + 1 < sorted.length ? sorted[low] + rest * (sorted[low + 1] - sorted[low]) : sorted[low];
}

function quantiles(values, level, nearest = false) {
  return [(1 - level) / 2, (1 + level) / 2].map((share) => quantile(values, share, nearest));
}

// Low and high of the replicates (all but the first), stretched to hold the estimate; NaN without replicates.
function ends(values, level) {
  if (values.length < 2) return [NaN, NaN];
  const infinite = values.some((value) => !Number.isFinite(value));
  const [low, high] = quantiles(values.slice(1), level, infinite);
  return [Math.min(low, values[0]), Math.max(high, values[0])];
}

function interpolate(x, at, values) {
  if (x <= at[0]) return values[0];
  const last = at.length - 1;
  if (x >= at[last]) return values[last];
  let i = 0;
  while (at[i + 1] < x) i++;
  return values[i] + ((x - at[i]) / (at[i + 1] - at[i])) * (values[i + 1] - values[i]);
}

// The prediction at one run with the band that a new run falls into; as Fit.predict.
function bandAt(data, rows, setting, n, d, level) {
  const logs = rows.laws.map((law) => logSum(law.forms, n, d));
  const log = logs[0];
  const [low, high] = logs.length > 1 ? quantiles(logs.slice(1), level) : [log, log];
  const { t, normal } = data.quantiles[level];
  const noise = interpolate(log, data.noise.at, data.noise.size);
  const beyond = beyondRuns(data, rows, n, d);
  let apart = 0;
  rows.others.forEach((law, i) => {
    const edge = data.alternatives[i].edge ? Math.min(beyond.distance / data.alternatives[i].edge, 1) : 1;
    apart += data.alternatives[i].weight * ((logSum(law.forms, n, d) - log) * edge) ** 2;
  });
  const valueAt = (column) => setting.given[column] ?? Math.exp(columnAt(rows.columns[column], n, d));
  for (const { law, weight } of testsBeyond(data, rows, valueAt)) apart += (weight * (logSum(law.forms, n, d) - log)) ** 2;
  const rest = (t * noise) ** 2 + normal ** 2 * (beyond.error ** 2 + apart);
  return {
    estimate: Math.exp(log),
    model: Math.hypot(beyond.error, Math.sqrt(apart)),
    low: Math.exp(log - Math.sqrt((low - log) ** 2 + rest)),
    high: Math.exp(log + Math.sqrt((high - log) ** 2 + rest)),
  };
}

// The losses of one run, the estimate's then the replicates', spread further by the law's own error there; as
// scalefed.allocation.mixture.spread_further.
function spreadFurther(data, losses, error) {
  const moved = losses.slice(1).map((loss) => Math.log(loss / losses[0]));
  if (!error || !moved.length || Math.max(...moved) <= Math.min(...moved)) return losses;
  const order = moved.map((_, i) => i).sort((a, b) => moved[a] - moved[b]), spread = [...losses];
  order.forEach((i, rank) => {
    const z = data.scores[rank];
    spread[i + 1] *= Math.exp(Math.sign(z) * (Math.hypot(moved[i], z * error) - Math.abs(moved[i])));
  });
  return spread;
}

// The replicates spread further by the law's own error of the best size; as scalefed.allocation.mixture.
function withLawError(data, rows, found) {
  const best = found[0], others = found.slice(1), reach = data.reach;
  const sizes = others.map((one) => one.n), lengths = others.map((one) => one.d);
  if (!others.length || Math.max(...sizes) - Math.min(...sizes) <= ALIKE) return found;
  const each = reach.scale.map((name) => columnAt(rows.columns[name], best.n, best.d) / Math.LN10);
  const x = [each.reduce((a, b) => a + b, 0), ...(each.length > 1 ? each : [])];
  const away = reach.ends.map(([, high], i) => x[i] - high);
  const beyond = Math.max(...away);
  const inside = Math.min(Math.max(-away[0] / reach.near, 0), 1);
  const far = Math.max(beyond, reach.near * Math.min(Math.max(1 + beyond, 0), 1));
  const spread = [0, 1].map((side) => far * ((1 - inside) * reach.drift[0][side] + inside * reach.drift[1][side]));
  const trades = Math.max(...lengths) - Math.min(...lengths) > ALIKE;
  const order = sizes.map((_, i) => i).sort((a, b) => sizes[a] - sizes[b]);
  const moved = [best];
  order.forEach((i, rank) => {
    const z = data.scores[rank], apart = others[i].n - best.n;
    const further = Math.sign(z) * (Math.hypot(apart, z * spread[z < 0 ? 0 : 1]) - Math.abs(apart)) || 0;
    moved[i + 1] = { ...others[i], own: others[i].n, n: others[i].n + further, d: others[i].d - (trades ? further : 0) };
  });
  return moved;
}

// How far beyond the runs, in decades, and the law's own error there; as scalefed.fitting.backtest.
function beyondRuns(data, rows, n, d) {
  const reach = data.reach;
  if (!reach.scale.length) return { distance: 0, error: 0 };
  const each = reach.scale.map((name) => columnAt(rows.columns[name], n, d) / Math.LN10);
  const x = [each.reduce((a, b) => a + b, 0), ...(each.length > 1 ? each : [])];
  const away = reach.ends.map(([low, high], i) => Math.max(x[i] - high, low - x[i], 0));
  const errors = reach.errors.map((error, i) => error * away[i]);
  const error = away[0] > 0 ? errors[0] : Math.max(...errors);
  return { distance: Math.max(...away), error: errors.length ? error : 0 };
}

// The numbers that travel with the page, as they stand in it.
function readNumbers(text) {
  const data = JSON.parse(text);
  if (data.law) for (const law of [data.law, ...data.mixed, ...data.alternatives, ...data.column_tests]) law.positive = new Set(law.positive);
  return data;
}
