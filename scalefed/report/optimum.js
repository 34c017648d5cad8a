// Which size and how many tokens give the least loss within these limits? What scalefed.allocation computes, for one
// question and every replicate: the law along the ceiling that the limits set, searched in log params.
"use strict";

const FARTHEST = 69; // log 1e30, as in scalefed.allocation.solvers
const POINTS = 139, FINER = 17, LEVELS = 7, DEPTH = 30, DEPTHS = 31; // as in scalefed.allocation.search
const HIDDEN = 17, LOGITS = 2; // values that a step keeps, as in scalefed.units.activation_values
const GOLDEN = 0.3819660112501051; // 2 - the golden ratio

function powerSum(power, n) {
  let total = 0;
  for (let i = 0; i < power.coefficients.length; i++) total += power.coefficients[i] * Math.exp(power.exponents[i] * n);
  return total;
}

function powerColumn(power, tokens) {
  if (power.coefficients.length === 1) return { c: Math.log(power.coefficients[0]), n: power.exponents[0], d: tokens };
  return { at: (n, d) => Math.log(powerSum(power, n)) + tokens * d };
}

// The law's columns in (n, d) for a setting; local steps are given, so rounds follow from tokens.
function columnsOf(setting) {
  const columns = {};
  for (const [name, value] of Object.entries(setting.given)) columns[name] = fixedColumn(value);
  const wire = Math.log(2 * setting.bytes_per_value * setting.trained_share * setting.given.clients_per_round);
  const text = setting.given.unique_tokens; // where it is not given, every token is read once
  const unique = Number.isFinite(text) ? Math.log(Math.min(text, 1e300)) : undefined;
  columns.unique_tokens = unique === undefined ? { c: 0, n: 0, d: 1 } : { c: unique, n: 0, d: 0, raw: Math.exp(unique) };
  columns.params = { c: 0, n: 1, d: 0 };
  columns.params_total = setting.total ? powerColumn(setting.total, 0) : columns.params;
  columns.params_trained = { c: Math.log(setting.trained_share), n: 1, d: 0 };
  columns.tokens = { c: 0, n: 0, d: 1 };
  columns.epochs = unique === undefined ? fixedColumn(1) : { c: -unique, n: 0, d: 1 };
  columns.compute = powerColumn(setting.cost, 1);
  columns.rounds = { c: -setting.log_round, n: 0, d: 1 };
  columns.bytes_sent = { c: wire - setting.log_round, n: 1, d: 1 };
  return columns;
}

// Bytes of memory that a client needs to train exp(n) parameters; as scalefed.allocation.budgets.Setting.memory.
function memoryOf(setting, n) {
  const size = Math.exp(n);
  const width = Math.cbrt((size * setting.width_per_layer) / 12);
  const tokens = setting.given.batch_tokens;
  const activations = ((HIDDEN * width * width) / setting.width_per_layer) * tokens + LOGITS * setting.vocab * tokens;
  const total = size + setting.vocab * width;
  return setting.bytes_per_value * (total + 3 * setting.trained_share * total + activations);
}

class Refusal extends Error {}

function spentOf(setting, top) {
  return setting.cost.coefficients.map((k, i) => ({ c: Math.log(k / top), n: setting.cost.exponents[i], d: 1 }));
}

// FLOPs of training, and of the tokens that the finished model will generate.
function computeLimit(setting, compute, sampled) {
  const terms = spentOf(setting, compute);
  if (sampled) terms.push({ c: Math.log((2 * sampled) / compute), n: 1, d: 0 });
  return { name: "compute", terms, elasticity: 1 };
}

// The limits as sums of powers that must not exceed 1: caps hold the tokens, each with exponent 1; walls hold params.
function limitsOf(budget, setting, repeatsPriced) {
  const { clients, clients_per_round: cohort } = setting.given;
  const wire = 2 * setting.bytes_per_value * setting.trained_share;
  const spent = (top) => spentOf(setting, top);
  const inRounds = (value, n) => ({ c: Math.log(value) - setting.log_round, n, d: 1 });
  const made = [];
  const add = (name, terms, elasticity = 1) => made.push({ name, terms, elasticity });
  const b = budget;
  if (b.compute) made.push(computeLimit(setting, b.compute, b.sampled_tokens));
  if (b.compute_per_client) add("compute_per_client", spent(b.compute_per_client * clients));
  if (b.bytes_sent) add("bytes_sent", [inRounds((wire * cohort) / b.bytes_sent, 1)]);
  if (b.bytes_per_client) add("bytes_per_client", [inRounds((wire * cohort) / clients / b.bytes_per_client, 1)]);
  if (b.seconds) {
    const terms = [];
    if (b.flops_per_second) terms.push(...spent(cohort * b.flops_per_second * b.seconds));
    if (b.bandwidth) terms.push(inRounds(wire / (b.bandwidth * b.seconds), 1));
    if (!terms.length) throw new Refusal("a limit in time needs the speed of a client, its bandwidth, or both");
    if (b.latency) terms.push(inRounds(b.latency / b.seconds, 0));
    add("seconds", terms);
  }
  if (b.memory) {
    if (memoryOf(setting, 0) > b.memory) throw new Refusal("this memory does not hold one step of one client; raise it");
    let low = 0, high = 70;
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2;
      if (memoryOf(setting, middle) > b.memory) high = middle;
      else low = middle;
    }
    const rise = Math.log(memoryOf(setting, low + 1e-4) / memoryOf(setting, low - 1e-4)) / 2e-4;
    add("memory", [{ c: -low, n: 1, d: 0 }], 1 / rise);
  }
  if (b.unique_tokens_per_client && (!repeatsPriced || b.epochs))
    add("unique_tokens_per_client", [{ c: -Math.log(b.unique_tokens_per_client * (b.epochs || 1) * clients), n: 0, d: 1 }]);
  if (b.rounds) add("rounds", [inRounds(1 / b.rounds, 0)]);
  if (b.tokens) add("tokens", [{ c: -Math.log(b.tokens), n: 0, d: 1 }]);
  if (b.params) add("params", [{ c: -Math.log(b.params), n: 1, d: 0 }]);
  return made;
}

function limitAt(limit, n, d) {
  let top = -Infinity, rest = 0;
  for (const term of limit.terms) {
    const value = term.c + term.n * n + term.d * d;
    if (value > top) {
      rest = rest * Math.exp(top - value) + 1;
      top = value;
    } else rest += Math.exp(value - top);
  }
  return top + Math.log(rest);
}

// The most log tokens at log params n. A sum in which not every term has tokens (compute that pays for samples too)
// is solved by bisection.
function ceilingAt(caps, n) {
  let best = 2 * FARTHEST;
  for (const cap of caps) {
    if (cap.terms.every((term) => term.d === 1)) best = Math.min(best, -limitAt(cap, n, 0));
    else {
      let low = -2 * FARTHEST, high = 2 * FARTHEST;
      for (let i = 0; i < 60; i++) {
        const middle = (low + high) / 2;
        if (limitAt(cap, n, middle) < 0) low = middle;
        else high = middle;
      }
      best = Math.min(best, low);
    }
  }
  return best > -2 * FARTHEST ? best : -Infinity;
}

// Brent's minimisation between two ends: parabolas where they help, golden sections where not.
// Source: Brent 1973, "Algorithms for Minimization without Derivatives", chapter 5.
function brent(f, low, high, start, tolerance = 1e-7) {
  let x = start, w = start, v = start, fx = f(start), fw = fx, fv = fx, step = 0, before = 0;
  for (let i = 0; i < 100; i++) {
    const middle = (low + high) / 2, fine = tolerance * (1 + Math.abs(x));
    if (Math.abs(x - middle) <= 2 * fine - (high - low) / 2) break;
    let p = 0, q = 0, r = 0;
    if (Math.abs(before) > fine) {
      r = (x - w) * (fx - fv);
      q = (x - v) * (fx - fw);
      p = (x - v) * q - (x - w) * r;
      q = 2 * (q - r);
      if (q > 0) p = -p;
      q = Math.abs(q);
    }
    if (q !== 0 && Math.abs(p) < Math.abs(0.5 * q * before) && p > q * (low - x) && p < q * (high - x)) {
      before = step;
      step = p / q;
    } else {
      before = x < middle ? high - x : low - x;
      step = GOLDEN * before;
    }
    const u = x + (Math.abs(step) >= fine ? step : step > 0 ? fine : -fine);
    const fu = f(u);
    if (fu <= fx) {
      if (u < x) high = x;
      else low = x;
      [v, fv, w, fw, x, fx] = [w, fw, x, fx, u, fu];
    } else {
      if (u < x) low = u;
      else high = u;
      if (fu <= fw || w === x) [v, fv, w, fw] = [w, fw, u, fu];
      else if (fu <= fv || v === x || v === w) [v, fv] = [u, fu];
    }
  }
  return x;
}

// The best n and d of one row within the limits, and whether anything holds it.
function lowest(law, caps, wall, walled, start) {
  const depth = law.rises ? DEPTH : 0;
  const along = (n) => {
    const top = ceilingAt(caps, n);
    if (!depth) return [logSum(law.moving, n, top), top];
    const value = (below) => logSum(law.moving, n, top - below);
    const below = law.plain ? brent(value, 0, depth, Math.min(1, depth / 2)) : meshed(value, 0, depth, DEPTHS);
    const edge = value(0) <= value(below) ? 0 : below;
    return [value(edge), top - edge];
  };
  const f = (n) => {
    const value = along(n)[0];
    return Number.isFinite(value) ? value : Infinity;
  };
  let n, inside = true;
  if (law.plain) n = bracketed(f, 0, wall, start);
  else [n, inside] = valley(f, 0, wall, walled);
  const d = along(n)[1];
  const held = inside && n > 1e-3 && (walled || n < FARTHEST - 1e-3) && d < FARTHEST + 30;
  return { n, d, log_excess: f(n), constant: law.constant, bounded: held };
}

// The minimum of a convex function, from a bracket about a guess.
function bracketed(f, low, high, start) {
  let at = Math.min(Math.max(start, low), high), step = 0.25;
  let left = Math.max(at - step, low), right = Math.min(at + step, high);
  let fa = f(at), fl = f(left), fr = f(right);
  while (fl < fa && left > low) {
    [right, fr, at, fa] = [at, fa, left, fl];
    step *= 2;
    left = Math.max(at - step, low);
    fl = f(left);
  }
  while (fr < fa && right < high) {
    [left, fl, at, fa] = [at, fa, right, fr];
    step *= 2;
    right = Math.min(at + step, high);
    fr = f(right);
  }
  const found = brent(f, left, right, at > left && at < right ? at : (left + right) / 2);
  for (const end of [left, right]) if (f(end) <= f(found)) return end;
  return found;
}

// The lowest valley of any function on a mesh, then on finer ones; false where it only falls towards an end.
function valley(f, low, high, walled) {
  const step = (high - low) / (POINTS - 1), at = [], values = [];
  for (let i = 0; i < POINTS; i++) {
    at.push(low + i * step);
    values.push(f(at[i]));
  }
  let best = -1;
  for (let i = 1; i < POINTS; i++) {
    const right = i === POINTS - 1 ? (walled ? Infinity : -Infinity) : values[i + 1];
    const ends = Number.isFinite(values[i - 1]) && (Number.isFinite(right) || i === POINTS - 1);
    if (ends && values[i] < values[i - 1] && values[i] <= right && (best < 0 || values[i] < values[best])) best = i;
  }
  const inside = best >= 0;
  if (!inside) best = values.indexOf(Math.min(...values));
  return [meshed(f, at[Math.max(best - 1, 0)], at[Math.min(best + 1, POINTS - 1)], FINER), inside];
}

function meshed(f, low, high, points) {
  let at = low;
  for (let level = 0; level < LEVELS; level++) {
    const step = (high - low) / (points - 1);
    let best = 0, least = Infinity;
    for (let i = 0; i < points; i++) {
      const value = f(low + i * step);
      if (value < least) [best, least] = [i, value];
    }
    at = low + best * step;
    [low, high] = [Math.max(low, at - step), Math.min(high, at + step)];
    points = FINER;
  }
  return at;
}

// The best run of every row under these limits: the estimate first, then its replicates.
function minimise(laws, limits, guess = FARTHEST / 2) {
  const caps = limits.filter((limit) => limit.terms.some((term) => term.d));
  const walls = limits.filter((limit) => !limit.terms.some((term) => term.d));
  if (!caps.length) throw new Refusal("these limits hold no tokens, so training for ever is best; add a compute budget");
  // what stands in a limit on tokens without them (samples paid from the compute) is a wall of its own
  const alone = [...walls, ...caps].flatMap((limit) => limit.terms.filter((term) => !term.d && term.n > 0));
  const wall = Math.max(0, Math.min(FARTHEST, ...alone.map((term) => -term.c / term.n)));
  let start = guess;
  return laws.map((law, index) => {
    const found = lowest(law, caps, wall, walls.length > 0, start);
    if (index === 0) start = found.n;
    return found;
  });
}

// Nats of loss that 1% more of each limit saves, at the best run of the estimate.
function pricesOf(law, limits, best) {
  const { n, d } = best, h = 1e-5;
  const pull = [
    (logSum(law.moving, n + h, d) - logSum(law.moving, n - h, d)) / (2 * h),
    (logSum(law.moving, n, d + h) - logSum(law.moving, n, d - h)) / (2 * h),
  ];
  const slope = (limit, dn, dd) => (limitAt(limit, n + dn, d + dd) - limitAt(limit, n - dn, d - dd)) / (2 * h);
  const active = limits.filter((limit) => Math.abs(limitAt(limit, n, d)) < 3e-5);
  const slopes = active.map((limit) => [slope(limit, h, 0), slope(limit, 0, h)]);
  const found = leastSquares(slopes, [-pull[0], -pull[1]]);
  const excess = Math.exp(best.log_excess);
  const prices = {};
  for (const limit of limits) {
    const place = active.indexOf(limit);
    const price = place < 0 ? 0 : 0.01 * Math.max(found[place], 0) * limit.elasticity * excess;
    prices[limit.name] = price;
  }
  return prices;
}

// Multipliers of at most two directions in the plane, of the least norm where they are one.
function leastSquares(columns, wanted) {
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
  if (!columns.length) return [];
  if (columns.length > 2) return [...leastSquares(columns.slice(0, 2), wanted), ...columns.slice(2).map(() => 0)];
  const own = dot(columns[0], columns[0]);
  if (columns.length === 1) return [dot(columns[0], wanted) / own];
  const [a, b] = columns, both = dot(a, b), other = dot(b, b), det = own * other - both * both;
  if (Math.abs(det) < 1e-9 * own * other) return [dot(a, wanted) / (own + other), dot(b, wanted) / (own + other)];
  return [(dot(a, wanted) * other - dot(b, wanted) * both) / det, (dot(b, wanted) * own - dot(a, wanted) * both) / det];
}
