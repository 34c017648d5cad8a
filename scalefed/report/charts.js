// What do the charts of the page show? Each is made from the answer, the question and the runs, as marks between axes.
"use strict";

const NEAR = 0.13; // runs within this of a compute, in its logarithm, are drawn with it; as in scalefed.charts.planned
const SIZES_DRAWN = 61, BUDGETS_DRAWN = 17;

function spaced(low, high, count) {
  return Array.from({ length: count }, (_, i) => low * (high / low) ** (i / (count - 1)));
}

function colorsOf(look, count) {
  return Array.from({ length: count }, (_, i) => look.ramp[count === 1 ? look.ramp.length - 1 : Math.round((i / (count - 1)) * (look.ramp.length - 1))]);
}

function rangeWords(low, high, write) {
  return Number.isFinite(low) && high > low ? ` (${write(low)} to ${write(high)})` : "";
}

function runText(runs, i, target) {
  const parts = [`${runs.id[i]}: ${words.count(runs.params[i])} parameters, ${words.count(runs.tokens[i])} tokens`];
  if (runs.clients_per_round) parts.push(`${words.g(runs.clients_per_round[i])} clients a round`);
  if (runs.mixture) parts.push(runs.mixture[i]);
  parts.push(`${target} ${words.four(runs.value[i])}`);
  return parts.join(", ");
}

// Where the limits leave a size, and what it reaches there.
function reached(context, sizes) {
  const { data, rows, setting, limits, level } = context;
  const caps = limits.filter((limit) => limit.terms.some((term) => term.d));
  return sizes.map((size) => {
    const n = Math.log(size), d = ceilingAt(caps, n);
    return { size, tokens: Math.exp(d), ...bandAt(data, rows, setting, n, d, level) };
  });
}

// Loss against size within the limits of the question: the curve, its band, the best size and its interval.
function sizeChart(context, look) {
  const { data, answer, limits, level } = context, runs = data.runs;
  const low = Math.min(answer.params_low || answer.params, answer.params), high = Math.max(answer.params_high || answer.params, answer.params);
  const walls = limits.filter((limit) => !limit.terms.some((term) => term.d)).map((limit) => Math.exp(-limit.terms[0].c));
  const curve = reached(context, spaced(low / 12, Math.min(high * 12, ...walls.map((wall) => Math.max(wall, low))), SIZES_DRAWN));
  const near = [];
  runs.params.forEach((size, i) => {
    const compute = powerSum(data.setting.cost, Math.log(size)) * runs.tokens[i];
    if (Math.abs(Math.log(compute / answer.compute)) < NEAR) near.push({ x: size, y: runs.value[i], text: runText(runs, i, data.target_name) });
  });
  const lows = curve.map((one) => one.low), highs = curve.map((one) => one.high);
  const y = axisOver([Math.min(...lows), Math.min(Math.max(...highs), 1.6 * answer.loss), ...near.map((one) => one.y)], { log: true, title: data.target_title });
  const best = { x: answer.params, y: answer.loss, text: `Best: ${words.count(answer.params)}, ${data.target_name} ${words.four(answer.loss)}` };
  const marks = [
    { kind: "span", low, high, color: look.mark },
    { kind: "band", points: curve.map((one) => [one.size, Math.max(one.low, y.low), Math.min(one.high, y.high * 2)]) },
    { kind: "line", points: curve.map((one) => [one.size, one.estimate]) },
    { kind: "ticks", values: [...new Set(runs.params)], color: look.quiet },
    { kind: "points", points: near, color: look.quiet },
    { kind: "rule", x: answer.params, color: look.mark },
    { kind: "points", points: [best], shape: "diamond", color: look.mark },
  ];
  const told = curve.map((one) => ({
    x: one.size, y: one.estimate,
    text: `${words.count(one.size)} parameters on ${words.count(one.tokens)} tokens: ${data.target_name} ${words.four(one.estimate)}${rangeWords(one.low, one.high, words.four)}`,
  }));
  return {
    name: "What each size reaches within these limits",
    says: `Lowest at ${words.count(answer.params)} parameters${rangeWords(low, high, words.count)}, ${data.target_name} ${words.four(answer.loss)}.`,
    about: `Curve: predicted${Number.isFinite(answer.params_low) ? `, with the ${words.share(level)} band of a run. Shaded: ${words.share(level)} interval of the best size. Both given ${data.given}` : ""}. Grey: sizes measured${near.length ? ", and runs of this compute" : ""}.`,
    x: axisOver(curve.map((one) => one.size), { log: true, style: "count", title: "Model size (non-embedding parameters)" }),
    y, marks, told: [...told, ...near, best],
    table: { columns: ["params", "tokens", "estimate", "low", "high"], rows: curve.map((one) => [one.size, one.tokens, one.estimate, one.low, one.high]) },
  };
}

// Loss against size at several computes, with the runs near each and the best size of each.
function isoflopChart(context, look) {
  const { data, rows, setting, ask } = context, runs = data.runs;
  const levels = data.levels, colors = colorsOf(look, levels.length);
  const [small, large] = data.measured.params, sizes = spaced(small / 3, large * 3, 41);
  const marks = [], table = [], told = [], shown = [];
  const add = (compute, color, wide) => {
    const limits = limitsOf({ compute, sampled_tokens: ask.sampled_tokens }, setting, true);
    const points = sizes.map((size) => [size, Math.exp(logSum(rows.laws[0].forms, Math.log(size), ceilingAt(limits, Math.log(size))))]);
    const found = minimise([rows.laws[0]], limits)[0], best = [Math.exp(found.n), found.constant + Math.exp(found.log_excess)];
    marks.push({ kind: "line", points, color, wide });
    points.forEach(([size, value]) => table.push([compute, size, value]));
    const inside = best[0] > sizes[0] && best[0] < sizes.at(-1);
    if (inside && found.bounded) {
      const text = `${words.power(compute)} FLOPs: best ${words.count(best[0])}, ${data.target_name} ${words.four(best[1])}`;
      const point = { x: best[0], y: best[1], text };
      marks.push({ kind: "points", points: [point], color, shape: "diamond" });
      told.push(point);
      shown.push(best[1]);
    }
  };
  levels.forEach((compute, i) => {
    const near = [];
    runs.params.forEach((size, j) => {
      const spent = powerSum(data.setting.cost, Math.log(size)) * runs.tokens[j];
      if (Math.abs(Math.log(spent / compute)) < NEAR) near.push({ x: size, y: runs.value[j], text: runText(runs, j, data.target_name) });
    });
    add(compute, colors[i], 1.8);
    marks.push({ kind: "points", points: near, color: colors[i] });
    told.push(...near);
    shown.push(...near.map((point) => point.y));
  });
  add(ask.compute || context.answer.compute, look.mark, 2.6);
  return {
    name: "Loss by model size at equal compute",
    says: `${levels.length} levels of compute from ${words.power(levels[0])} to ${words.power(levels.at(-1))} FLOPs, and that of the question.`,
    about: "Curves: the law in the setting of the question. Diamonds: best size. Points: all runs within 13% of a level, whatever their setting.",
    legend: [...levels.map((level, i) => ({ label: words.power(level), color: colors[i], kind: "line" })), { label: "the question", color: look.mark, kind: "line" }],
    x: axisOver(sizes, { log: true, style: "count", title: "Model size (non-embedding parameters)" }),
    y: axisOver([...shown, Math.max(...shown) * 1.1], { log: true, title: data.target_title }),
    marks, told, table: { columns: ["compute", "params", "estimate"], rows: table },
  };
}

// The best size over compute with its interval.
function frontierChart(context, look) {
  const { data, ask, answer } = context;
  const middle = answer.compute, lowest = Math.min(data.smallest_compute, middle / 10), highest = Math.max(10 * data.largest_compute, middle * 10);
  const found = [];
  for (const compute of spaced(lowest, highest, BUDGETS_DRAWN)) {
    try {
      found.push(plan(data, { ...withoutGoal(ask), compute }));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }
  if (found.length < 2) throw new Refusal("no best size holds over a range of compute");
  const known = Number.isFinite(found[0].params_low);
  const told = found.map((one) => ({
    x: one.compute, y: one.params,
    text: `${words.power(one.compute)} FLOPs: ${words.count(one.params)}${rangeWords(one.params_low, one.params_high, words.count)} on ${words.count(one.tokens)} tokens, ${data.target_name} ${words.four(one.loss)}`,
  }));
  const now = { x: answer.compute, y: answer.params, text: `The question: ${words.count(answer.params)}` };
  const marks = [
    ...(known ? [{ kind: "band", points: found.map((one) => [one.compute, one.params_low, one.params_high]) }] : []),
    { kind: "line", points: found.map((one) => [one.compute, one.params]) },
    { kind: "rule", x: data.largest_compute, color: look.quiet, dash: true },
    { kind: "points", points: [now], shape: "diamond", color: look.mark },
  ];
  const names = ["compute", "params", "params_low", "params_high", "tokens", "rounds", "loss", "loss_low", "loss_high", ...(data.link ? ["pass_at_1"] : [])];
  return {
    name: "The best size for every budget",
    says: `From ${words.count(found[0].params)} at ${words.power(found[0].compute)} to ${words.count(found.at(-1).params)} at ${words.power(found.at(-1).compute)} FLOPs.`,
    about: `${known ? `Band: ${words.share(answer.level)} interval of the best size given ${data.given}. ` : ""}Right of the dashed line: more compute than any run had. Other limits of the question hold.`,
    x: axisOver(found.map((one) => one.compute), { log: true, style: "power", title: "Training compute, all clients (FLOPs)" }),
    y: axisOver(found.flatMap((one) => [one.params / 1.3, one.params * 1.3]), { log: true, style: "count", title: "Best model size (non-embedding parameters)" }),
    marks, told: [...told, now], table: { columns: names, rows: found.map((one) => names.map((name) => one[name])) },
  };
}

function withoutGoal(ask) {
  const { loss, pass_at_1, pass_at_k, k, ...rest } = ask;
  return rest;
}

// What more clients in a round do to the best size, at the compute of the question.
function clientsChart(context, look) {
  const { data, ask, answer, setting } = context, all = setting.given.clients || 64;
  if (!data.law.columns.some((name) => ["clients_per_round", "participation", "rounds"].includes(name)))
    throw new Refusal("the law does not say what clients per round do");
  const counts = [];
  for (let count = 1; count < all && counts.length < 14; count *= 2) counts.push(count);
  counts.push(all);
  const found = [];
  for (const count of counts) {
    const { participation, ...rest } = withoutGoal(ask);
    try {
      found.push([count, plan(data, { ...rest, clients: all, clients_per_round: count, compute: ask.compute || answer.compute })]);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }
  if (found.length < 2) throw new Refusal("one client or none: there is nothing to compare");
  const told = found.map(([count, one]) => ({
    x: count, y: one.params, low: one.params_low, high: one.params_high,
    text: `${words.count(count)} a round: ${words.count(one.params)}${rangeWords(one.params_low, one.params_high, words.count)}, ${data.target_name} ${words.four(one.loss)}`,
  }));
  const ends = told.flatMap((one) => [one.y, one.low, one.high]);
  return {
    name: "The best size by clients per round",
    says: `${words.count(told[0].y)} with one client a round, ${words.count(told.at(-1).y)} with all ${words.count(all)}.`,
    about: `At ${words.power(ask.compute || answer.compute)} FLOPs in all. ${Number.isFinite(answer.params_low) ? `Bars: ${words.share(answer.level)} intervals given ${data.given}. ` : ""}Dashed: the question.`,
    x: axisOver(counts, { log: true, style: "count", title: "Clients that train in a round", values: counts }),
    y: axisOver(ends, { log: true, style: "count", title: "Best model size (non-embedding parameters)" }),
    marks: [
      { kind: "line", points: told.map((one) => [one.x, one.y]), wide: 1.4 },
      { kind: "points", points: told },
      { kind: "rule", x: setting.given.clients_per_round, color: look.mark, dash: true },
    ],
    told,
    table: { columns: ["clients_per_round", "params", "params_low", "params_high", "loss"], rows: found.map(([count, one]) => [count, one.params, one.params_low, one.params_high, one.loss]) },
  };
}

// Shares of problems solved against loss: the runs, and the link at the size and tokens of the answer.
function passkChart(context, look) {
  const { data, rows, answer } = context, runs = data.runs;
  const ks = [1, 10].filter((k) => runs[`pass_at_${k}`]);
  if (!ks.length) throw new Refusal("the runs were not judged on problems");
  const marks = [], told = [], losses = [], tops = [0.05];
  ks.forEach((k, i) => {
    const name = `pass_at_${k}`, points = [];
    runs[name].forEach((y, j) => {
      if (y === null) return;
      const [low, high] = runs[`${name}_low`] ? [runs[`${name}_low`][j], runs[`${name}_high`][j]] : [NaN, NaN];
      points.push({ x: runs.value[j], y, low, high, text: `pass@${k} ${words.g(y, 3)}; ${runText(runs, j, data.target_name)}` });
    });
    marks.push({ kind: "points", points, color: look.categories[i] });
    told.push(...points);
    losses.push(...points.map((point) => point.x));
    tops.push(...points.flatMap((point) => [point.y, point.high || 0]));
  });
  const x = axisOver([...losses, answer.loss], { log: true, title: data.target_title });
  const table = [];
  if (data.link) {
    const n = Math.log(answer.params), d = Math.log(answer.tokens), link = data.link;
    const offset = offsetOf(link, link.theta, rows.columns, n, d);
    const at = spaced(x.low, x.high, SIZES_DRAWN).filter((loss) => link.floor === null || loss > link.floor);
    ks.forEach((k, i) => {
      const points = at.map((loss) => [loss, passAt(link, link.theta, loss, offset, null, [k])[0]]);
      marks.push({ kind: "line", points, color: look.categories[i] });
      points.forEach(([loss, share]) => table.push([k, loss, share]));
      tops.push(...points.map(([, share]) => share));
      const [value, low, high] = answer.pass_at_k[k];
      const point = { x: answer.loss, y: value, low, high, text: `The answer: pass@${k} ${words.g(value, 3)}${rangeWords(low, high, (v) => words.g(v, 3))}` };
      marks.push({ kind: "points", points: [point], shape: "diamond", color: look.mark });
      told.push(point);
      tops.push(high);
    });
  }
  const measured = told.filter((point) => !point.text.startsWith("The answer")).map((point) => [point.x, point.y]);
  return {
    name: "How many problems are solved, by loss",
    says: `${measured.length} measured values${data.link ? `; the answer is predicted at pass@1 ${words.g(answer.pass_at_1, 2)}` : ""}.`,
    about: `Points: runs, with their intervals over problems.${data.link ? " Lines: the link at the size and tokens of the answer. Diamonds: the answer." : ""}`,
    legend: ks.map((k, i) => ({ label: `pass@${k}`, color: look.categories[i] })),
    x, y: { low: 0, high: Math.min(1, Math.ceil(Math.max(...tops) * 10) / 10), title: "Share of problems solved" },
    marks, told, table: data.link ? { columns: ["k", "loss", "share"], rows: table } : { columns: ["loss", "share"], rows: measured },
  };
}

// By how many percent each run lies above or below the law.
function residualsChart(context, look) {
  const { data } = context, runs = data.runs;
  const groups = runs.clients_per_round ? [...new Set(runs.clients_per_round)].sort((a, b) => a - b) : [null];
  const colors = colorsOf(look, groups.length);
  const points = runs.value.map((value, i) => {
    const off = 100 * (value / runs.fitted[i] - 1);
    return { x: runs.params[i], y: off, group: runs.clients_per_round ? runs.clients_per_round[i] : null, text: `${off > 0 ? "+" : ""}${words.g(off, 3)}%; ${runText(runs, i, data.target_name)}` };
  });
  const usual = Math.sqrt(points.reduce((sum, point) => sum + point.y ** 2, 0) / points.length);
  const far = Math.max(...points.map((point) => Math.abs(point.y)), 1e-6) * 1.1;
  const band = axisOver(runs.params, { log: true, style: "count", title: "Model size (non-embedding parameters)" });
  return {
    name: "What the law misses, run by run",
    says: `Root mean square ${words.g(usual, 2)}%, at most ${words.g(far / 1.1, 2)}%.`,
    about: `Grey: root mean square, ${words.g(usual, 2)}%.${groups.length > 1 ? " Colours: clients per round." : ""}`,
    legend: groups.length > 1 ? groups.map((group, i) => ({ label: words.g(group), color: colors[i] })) : [],
    x: band, y: { low: -far, high: far, title: "Measured above the law (%)" },
    marks: [
      { kind: "band", points: [[band.low, -usual, usual], [band.high, -usual, usual]], color: look.quiet },
      { kind: "rule", y: 0, color: look.quiet },
      ...groups.map((group, i) => ({ kind: "points", points: points.filter((point) => point.group === group), color: colors[i] })),
    ],
    told: points, table: { columns: ["run_id", "params", "percent"], rows: points.map((point, i) => [runs.id[i], point.x, point.y]) },
  };
}

// All runs: loss by tokens, one colour a size.
function runsChart(context, look) {
  const { data } = context, runs = data.runs, names = [...new Set(runs.size)].sort((a, b) => a - b), colors = colorsOf(look, names.length);
  const points = runs.value.map((value, i) => ({ x: runs.tokens[i], y: value, size: runs.size[i], text: runText(runs, i, data.target_name) }));
  return {
    name: "The runs",
    says: `${points.length} runs of ${words.count(Math.min(...runs.params))} to ${words.count(Math.max(...runs.params))} parameters.`,
    about: `Colours: model size.${data.left_out ? ` ${data.left_out}` : ""}`,
    legend: names.map((name, i) => ({ label: words.count(name), color: colors[i] })),
    x: axisOver(runs.tokens, { log: true, style: "count", title: "Training tokens, all clients" }),
    y: axisOver(runs.value, { log: true, title: data.target_title }),
    marks: names.map((name, i) => ({ kind: "points", points: points.filter((point) => point.size === name), color: colors[i] })),
    told: points, table: { columns: ["run_id", "params", "tokens", data.target], rows: points.map((point, i) => [runs.id[i], runs.params[i], point.x, point.y]) },
  };
}

// Charts that move with the question come first; those of the runs alone are drawn once.
const CHARTS = {
  size: { make: sizeChart, moves: true },
  isoflop: { make: isoflopChart, moves: true },
  frontier: { make: frontierChart, moves: true },
  clients: { make: clientsChart, moves: true },
  passk: { make: passkChart, moves: true },
  residuals: { make: residualsChart, moves: false },
  runs: { make: runsChart, moves: false },
};
