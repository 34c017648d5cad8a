// How are numbers written? One format on the whole page, that of scalefed.charts.theme.
"use strict";

const words = {
  // So many digits that count, as Python's ".Ng".
  g(value, digits = 6) {
    if (!Number.isFinite(value)) return value > 0 ? "inf" : Number.isNaN(value) ? "nan" : "-inf";
    if (value === 0) return "0";
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = Number(exponent);
    if (power < -4 || power >= digits) {
      const short = mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa;
      return `${short}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
    }
    const plain = Number(value).toFixed(Math.max(digits - 1 - power, 0));
    return plain.includes(".") ? plain.replace(/\.?0+$/, "") : plain;
  },
  four(value) {
    return words.g(value, 4);
  },
  // So many digits, with thousands set apart below a billion; as scalefed.units.grouped.
  grouped(value, digits = 4) {
    if (value === 0 || (Math.abs(value) >= 1e-4 && Math.abs(value) < 1e9))
      return Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumFractionDigits: 10 });
    return words.g(value, digits).replace(/e([+-])0*(\d)/, (_, sign, digit) => `e${sign === "-" ? "-" : ""}${digit}`);
  },
  // A count in at most three digits: 24.6k, 2M, 7B.
  count(value) {
    for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(value) >= size * 0.9995) return words.g(value / size, 3).replace(/e\+(\d+)$/, "e$1") + unit;
    return words.g(value, 3);
  },
  // A large number in scientific notation: 1e15.
  power(value) {
    const [mantissa, exponent] = value.toExponential(1).split("e");
    return `${mantissa.replace(/\.0$/, "")}e${Number(exponent)}`;
  },
  share(value) {
    return `${words.g(100 * value, 3)}%`;
  },
  bytes(value) {
    for (const [size, unit] of [[1e15, "PB"], [1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
      if (value >= size * 0.9995) return `${words.g(value / size, 3)} ${unit}`;
    return `${words.g(value, 3)} B`;
  },
};
