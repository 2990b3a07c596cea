// Pictures: where a wall time went, the roofline, what lies in the arena.

function stackedBar(parts, total, label) {
  const bar = el("div", { class: "stack", role: "img", "aria-label": label });
  for (const part of parts) {
    if (part.seconds / total < 0.0005) continue;
    bar.append(el("span", { style: { width: `${(100 * part.seconds) / total}%`, background: part.colour }, title: `${part.name}: ${timeText(part.seconds)}, ${percent(part.seconds / total)}` }));
  }
  return bar;
}

function legend(parts, total) {
  return el("ul", { class: "legend" }, parts.filter(part => part.seconds / total >= 0.0005).map(part =>
    el("li", null, el("span", { class: "swatch", style: { background: part.colour } }),
      part.onclick ? el("button", { class: "link", type: "button", onclick: part.onclick }, part.name) : el("span", null, part.name),
      el("span", { class: "quiet" }, ` ${percent(part.seconds / total)}`))));
}

// Both axes logarithmic: operations for each byte, operations a second; a roof for each kind of arithmetic.
function rooflineChart(rows) {
  const width = 720, height = 380, left = 64, right = 16, top = 16, bottom = 44;
  const limits = D.limits, peaks = [["int8", limits.int8], ["bf16", limits.bf16], ["f32", limits.f32]].filter(item => item[1]);
  const points = rows.filter(row => row.seconds > 0 && row.operations > 0 && row.bytes > 0);
  const xs = [0.1, 1000, ...points.map(row => row.operations / row.bytes)];
  const ys = [...peaks.map(item => item[1] * 1e9), ...points.map(row => row.operations / row.seconds)];
  const bounds = values => [10 ** Math.floor(Math.log10(Math.min(...values))), 10 ** Math.ceil(Math.log10(Math.max(...values)))];
  const [x0, x1] = bounds(xs), [y0, y1] = bounds(ys);
  const place = (value, low, high, start, length) => start + (Math.log10(value / low) / Math.log10(high / low)) * length;
  const x = value => place(Math.max(x0, value), x0, x1, left, width - left - right);
  const y = value => height - bottom - (place(Math.max(y0, value), y0, y1, 0, height - top - bottom));
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": "roofline: operations a second by operations for each byte" });
  for (let tick = x0; tick <= x1 * 1.001; tick *= 10) chart.append(
    svg("line", { x1: x(tick), x2: x(tick), y1: top, y2: height - bottom, class: "grid" }),
    svg("text", { x: x(tick), y: height - bottom + 16, class: "tick middle" }, tick >= 1 ? countText(tick) : String(+tick.toPrecision(1))));
  for (let tick = y0; tick <= y1 * 1.001; tick *= 10) chart.append(
    svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "grid" }),
    svg("text", { x: left - 8, y: y(tick) + 4, class: "tick end" }, rateText(tick)));
  chart.append(svg("text", { x: (left + width - right) / 2, y: height - 8, class: "axis middle" }, "operations for each byte"),
    svg("text", { x: 14, y: (top + height - bottom) / 2, class: "axis middle", transform: `rotate(-90 14 ${(top + height - bottom) / 2})` }, "operations a second"));
  for (const [name, gigabytes] of [["memory", limits.dram], ["L3", limits.l3]]) {
    const rate = gigabytes * 1e9, edge = Math.min(x1, (peaks[0][1] * 1e9) / rate), start = Math.max(x0, y0 / rate);
    chart.append(svg("line", { x1: x(start), y1: y(start * rate), x2: x(edge), y2: y(edge * rate), class: "roof" }));
    const mark = Math.sqrt(start * edge);
    chart.append(svg("text", { x: x(mark) - 6, y: y(mark * rate) - 6, class: "roofname end" }, `${name} ${digits(gigabytes)} GB/s`));
  }
  for (const [name, peak] of peaks) {
    const rate = peak * 1e9;
    chart.append(svg("line", { x1: x(Math.max(x0, rate / (limits.l3 * 1e9))), x2: width - right, y1: y(rate), y2: y(rate), class: "roof" }),
      svg("text", { x: width - right - 4, y: y(rate) - 5, class: "roofname end" }, `${name} ${digits(peak)} G/s`));
  }
  const longest = Math.max(...points.map(row => row.seconds), 1e-12);
  for (const row of [...points].reverse()) {
    const dot = svg("circle", { cx: x(row.operations / row.bytes), cy: y(row.operations / row.seconds), r: 4 + 10 * Math.sqrt(row.seconds / longest), class: "dot", style: { fill: row.colour }, tabindex: "0" },
      svg("title", null, `${row.name}\n${timeText(row.seconds)}, ${percent(row.roofline)} of its limit (${row.limit})`));
    chart.append(dot);
  }
  return el("div", { class: "scroll" }, chart);
}
