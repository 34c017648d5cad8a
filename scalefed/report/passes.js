// How often would the best run solve the problems? The link from loss to pass@k of scalefed.downstream.link, and the
// least compute that reaches a loss or a share of problems.
"use strict";

const PLAIN = 5, SPREAD_LIMIT = 20, SMALLEST = 1e-30; // as in scalefed.downstream.curve
const KS = [1, 10, 100];

function expit(x) {
  return 1 / (1 + Math.exp(-x));
}

function positionOf(link, loss) {
  return link.floor === null ? loss : Math.log(Math.max(loss - link.floor, SMALLEST));
}

// What the columns beside the loss add inside the mean's shape.
function offsetOf(link, theta, columns, n, d) {
  let total = 0;
  link.covariates.forEach(({ name, center }, i) => {
    const column = columns[name];
    const value = name === "skew" ? column.raw : columnAt(column, n, d);
    total += theta[PLAIN + i] * (value - center);
  });
  return total;
}

// The shares of problems that k samples solve, for the ascending ks.
function passAt(link, theta, loss, offset, shift, ks = KS) {
  const z = (positionOf(link, loss) - link.center) / link.scale;
  const s = theta[0] + theta[1] * z + offset;
  const shape = link.mean === "logistic" ? expit(s) : Math.exp(-Math.exp(Math.min(Math.max(-s, -300), 6)));
  let mean = expit(theta[2]) * shape, log = theta[3] + theta[4] * z;
  if (shift) {
    mean = expit(Math.log(mean) - Math.log1p(-mean) + shift[0]);
    log += shift[1];
  }
  const spread = Math.exp(Math.min(Math.max(log, -SPREAD_LIMIT), SPREAD_LIMIT));
  const a = Math.max(mean * spread, SMALLEST), b = Math.max((1 - mean) * spread, SMALLEST);
  const found = [];
  let failed = 0, done = 0; // log of the share that no sample so far solves: a product of b + i over a + b + i
  for (const k of ks) {
    for (; done < k; done++) failed += Math.log((b + done) / (a + b + done));
    found.push(-Math.expm1(failed));
  }
  return found;
}

// Pass@1, 10 and 100 of the best run with intervals: every replicate of the link at the loss of one of the law's.
function passesAt(link, columns, n, d, losses, level) {
  const point = passAt(link, link.theta, losses[0], offsetOf(link, link.theta, columns, n, d), null);
  const [low, high] = link.observed.map((loss) => positionOf(link, loss));
  const span = Math.max(high - low, 1e-300);
  const draws = KS.map(() => []);
  link.replicates.forEach((theta, i) => {
    const loss = losses.length > 1 ? losses[1 + (i % (losses.length - 1))] : losses[0];
    const at = positionOf(link, loss);
    const beyond = Math.max(at - high, low - at, 0) / span;
    const error = link.discrepancy[loss > link.observed[1] ? 1 : 0];
    const shift = [0, 1].map((j) => link.model[i][j] * error[j] * beyond + link.single[i][j]);
    const found = passAt(link, theta, loss, offsetOf(link, theta, columns, n, d), shift);
    found.forEach((value, j) => draws[j].push(value));
  });
  const pass_at_k = {};
  KS.forEach((k, j) => {
    const [lowest, highest] = quantiles(draws[j], level);
    pass_at_k[k] = [point[j], Math.min(lowest, point[j]), Math.max(highest, point[j])];
  });
  const [pass_at_1, pass_at_1_low, pass_at_1_high] = pass_at_k[1];
  return { pass_at_k, pass_at_1, pass_at_1_low, pass_at_1_high };
}

// The loss at which a share of the problems is solved, at the middle of the runs in all else; NaN where it never is.
function lossFor(link, share, k) {
  const flat = { ...link, floor: null };
  const at = (position) => passAt(flat, link.theta, position, 0, null, [k])[0];
  let [low, high] = [link.center - 60 * link.scale, link.center + 60 * link.scale];
  const rising = at(high) > at(low);
  if (Math.max(at(low), at(high)) <= share || Math.min(at(low), at(high)) >= share) return NaN;
  for (let i = 0; i < 70; i++) {
    const middle = (low + high) / 2;
    if (at(middle) > share === rising) high = middle;
    else low = middle;
  }
  return link.floor === null ? low : link.floor + Math.exp(low);
}

// The least compute of every row for a goal, by the secant method on log compute with a bracket kept.
function leastCompute(data, rows, goal, k, limitsAt) {
  const link = data.link;
  if (goal.name !== "loss" && !link) throw new Refusal("this fit knows no pass@k");
  const count = goal.name === "pass_at_k" ? k : 1;
  const wanted = goal.name === "loss" ? 0 : Math.log(goal.value / (1 - goal.value));
  let start = Math.log(data.largest_compute), size = FARTHEST / 2;
  if (goal.name !== "loss") {
    // what no loss within these limits reaches, no size or token beside the loss shall reach either
    const loss = lossFor(link, goal.value, count);
    const [least] = Number.isNaN(loss) ? [{ compute: Infinity }] : leastCompute(data, { ...rows, laws: [rows.laws[0]] }, { name: "loss", value: loss }, k, limitsAt);
    if (!Number.isFinite(least.compute)) return [{ ...least, constant: rows.laws[0].constant }];
    [start, size] = [Math.log(least.compute), least.n];
  }
  return rows.laws.map((law, i) => {
    const theta = link && (i ? link.replicates[(i - 1) % link.replicates.length] : link.theta);
    // how far above the goal the best run of exp(log) FLOPs stays; falls with compute
    const missing = (log) => {
      const found = minimise([law], limitsAt(Math.exp(log)), size)[0];
      const loss = law.constant + Math.exp(found.log_excess);
      if (goal.name === "loss") {
        const aim = goal.value - law.constant;
        return [aim > 0 ? found.log_excess - Math.log(aim) : Infinity, found];
      }
      const offset = offsetOf(link, theta, rows.columns, found.n, found.d);
      const share = passAt(link, theta, loss, offset, null, [count])[0];
      return [wanted - Math.log(share) + Math.log1p(-share), found];
    };
    const [log, found] = rootOf(missing, start);
    if (i === 0 && Number.isFinite(log)) [start, size] = [log, found.n];
    if (!Number.isFinite(log)) return { ...found, n: Infinity, d: Infinity, compute: Infinity, bounded: false };
    return { ...found, compute: Math.exp(log) };
  });
}

// Where a falling function crosses 0, with what it found there; infinity where it never does.
function rootOf(f, start) {
  let low = start - 1, high = start + 1;
  let [fl, atLow] = f(low), [fh, atHigh] = f(high);
  for (let step = 2; fh > 0; step *= 2) {
    if (!Number.isFinite(fh) || high > 2 * FARTHEST) return [Infinity, atHigh];
    [low, fl, atLow] = [high, fh, atHigh];
    high += step;
    [fh, atHigh] = f(high);
  }
  for (let step = 2; fl < 0 && low > -FARTHEST; step *= 2) {
    [high, fh, atHigh] = [low, fl, atLow];
    low -= step;
    [fl, atLow] = f(low);
  }
  let x = high, found = atHigh, side = 0;
  for (let i = 0; i < 60 && high - low > 1e-9 * Math.abs(high); i++) {
    // the Illinois form of the false position, which never leaves the bracket
    const next = Number.isFinite(fl) ? (low * fh - high * fl) / (fh - fl) : (low + high) / 2;
    const [value, here] = f(next);
    const moved = Math.abs(next - x);
    [x, found] = [next, here];
    if (value > 0) {
      [low, fl] = [next, value];
      if (side === 1) fh /= 2;
      side = 1;
    } else {
      [high, fh] = [next, value];
      if (side === -1) fl /= 2;
      side = -1;
    }
    if (moved < 1e-8 || value === 0) break;
  }
  return [x, found];
}
