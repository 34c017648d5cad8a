// What does a law say of a run of this size and length? The terms that were fitted, read as scalefed.laws.terms has them.
//
// A column is written in the planner's two variables, n = log params and d = log tokens: {c, n, d} stands for
// log(column) = c + n n' + d d', {at} for any other function (n, d) -> log(column); `raw` is the value of a fixed one.
// A form is the logarithm of a term in the same variables: c + n n' + d d' + the functions in `more`; `sign` is -1 for a
// term that is subtracted, and `plain` says that minimising it is convex (a sum of powers).
"use strict";

const HIGHEST = 300; // log of the largest factor, as in scalefed.laws.terms

function fixedColumn(value) {
  return { c: Math.log(value), n: 0, d: 0, raw: value };
}

function columnAt(column, n, d) {
  return column.at ? column.at(n, d) : column.c + column.n * n + column.d * d;
}

function isFixed(form) {
  return !form.at && form.n === 0 && form.d === 0 && !(form.more && form.more.length);
}

function formAt(form, n, d) {
  let total = form.c + form.n * n + form.d * d;
  for (const more of form.more) total += more(n, d);
  return total;
}

// Adds a polynomial in parameters and columns to a form, times a factor.
function addPolynomial(form, parts, law, row, columns) {
  for (const part of parts) {
    let known = part.coefficient;
    for (const name of part.parameters) known *= law.positive.has(name) ? Math.log(row[name]) : row[name];
    const moving = [];
    let only = null;
    for (const atom of part.atoms) {
      const column = columns[atom.columns[0]];
      const fixed = isFixed(column);
      if (atom.kind === "log" && !column.at && !fixed) only = column;
      const value =
        atom.kind === "log" ? (n, d) => columnAt(column, n, d)
        : atom.kind === "raw" ? (n, d) => column.raw ?? Math.exp(columnAt(column, n, d))
        : (n, d) => Math.log(columnAt(column, n, d));
      if (fixed) known *= value(0, 0);
      else moving.push(value);
    }
    for (const factor of part.factors) {
      const inner = compileTerm(factor, law, row, columns);
      const value = (n, d) => Math.exp(Math.min(formAt(inner, n, d), HIGHEST));
      if (isFixed(inner)) known *= value(0, 0);
      else moving.push(value);
    }
    if (moving.length === 0) form.c += known;
    else if (moving.length === 1 && only) {
      form.c += known * only.c;
      form.n += known * only.n;
      form.d += known * only.d;
    } else {
      form.plain = false;
      form.more.push((n, d) => moving.reduce((product, value) => product * value(n, d), known));
    }
  }
}

// A term with a row of parameter values and the columns put in.
function compileTerm(term, law, row, columns) {
  const form = { c: 0, n: 0, d: 0, more: [], sign: term.sign, plain: term.sign > 0, rises: false };
  addPolynomial(form, term.parts, law, row, columns);
  form.rises = form.d > 1e-12;
  for (const power of term.powers) addPower(form, power, law, row, columns);
  for (const repeats of term.repeats) addRepeats(form, repeats, law, row, columns);
  return form;
}

function exponentOf(parts, law, row, columns) {
  const exponent = { c: 0, n: 0, d: 0, more: [], plain: true };
  addPolynomial(exponent, parts, law, row, columns);
  return exponent;
}

// A sum raised to a power.
function addPower(form, power, law, row, columns) {
  const exponent = exponentOf(power.exponent, law, row, columns);
  const inner = power.terms.map((term) => compileTerm(term, law, row, columns));
  if (isFixed(exponent) && inner.every(isFixed)) {
    form.c += exponent.c * logSum(inner, 0, 0);
    return;
  }
  form.plain = form.plain && isFixed(exponent) && exponent.c >= 0 && inner.every((one) => one.plain);
  form.rises = form.rises || inner.some((one) => one.rises);
  if (isFixed(exponent)) form.more.push((n, d) => exponent.c * logSum(inner, n, d));
  else form.more.push((n, d) => formAt(exponent, n, d) * logSum(inner, n, d));
}

// Effective tokens after repeats, U (1 + R (1 - exp(-(D/U - 1)/R))): Muennighoff et al. 2023, equation 5.
function addRepeats(form, repeats, law, row, columns) {
  const exponent = exponentOf(repeats.exponent, law, row, columns);
  const tokens = compileTerm(repeats.tokens, law, row, columns);
  const unique = compileTerm(repeats.unique, law, row, columns);
  const decay = row[repeats.decay];
  const value = (n, d) => {
    const all = formAt(tokens, n, d);
    const fresh = Math.min(formAt(unique, n, d), all);
    const worth = fresh + Math.log1p(-decay * Math.expm1(-(Math.exp(all - fresh) - 1) / decay));
    return formAt(exponent, n, d) * worth;
  };
  if (isFixed(tokens) && isFixed(unique) && isFixed(exponent)) form.c += value(0, 0);
  else {
    form.rises = form.rises || exponent.c > 0;
    form.more.push(value);
  }
}

// The logarithm of a sum of terms without overflow; NaN where subtracted terms leave nothing above 0.
function logSum(forms, n, d) {
  if (forms.length === 1 && forms[0].sign > 0) return formAt(forms[0], n, d);
  let top = -Infinity;
  let rest = 0;
  for (const form of forms) {
    const value = formAt(form, n, d);
    if (value > top) {
      rest = rest * Math.exp(top - value) + form.sign;
      top = value;
    } else if (value === top) rest += form.sign;
    else rest += form.sign * Math.exp(value - top);
  }
  return rest > 0 ? top + Math.log(rest) : NaN;
}

// A law with a row of parameter values: `moving` terms, `constant` (what no size and no data removes), and how to search.
function compileLaw(law, row, columns) {
  const forms = law.terms.map((term) => compileTerm(term, law, row, columns));
  const moving = forms.filter((form) => !isFixed(form));
  let constant = 0;
  for (const form of forms) if (isFixed(form)) constant += form.sign * Math.exp(form.c);
  return {
    forms,
    moving,
    constant,
    plain: moving.every((form) => form.plain),
    rises: moving.some((form) => form.rises),
  };
}

// One row of parameter values of a law: the fixed ones, and the others at a place among the replicates.
function rowOf(law, index) {
  const row = { ...law.fixed };
  for (const name of law.free) row[name] = law.values[name][index];
  return row;
}
