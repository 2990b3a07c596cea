// What lies in memory, and the arena over time.

const view = { memory: 0, whole: false };

function memoryView() {
  const map = D.memory[view.memory];
  const sizes = [...Object.entries(D.sizes), ["arena", map.arena]];
  const total = sizes.reduce((all, item) => all + item[1], 0);
  const parts = sizes.map(([name, size], index) => ({ name: `${name} ${bytesText(size)}`, seconds: size, colour: `var(--series-${index + 1})` }));
  return [
    el("section", { class: "card" }, el("div", { class: "row" }, el("h2", null, "Memory"),
      D.memory.length > 1 ? choice("phase", D.memory.map((item, index) => [index, item.name]), view.memory, value => { view.memory = value; draw(); }) : null),
      el("div", { class: "figures" }, figure(bytesText(total), "held in all"), figure(bytesText(map.arena), `arena, for ${D.phases[view.memory].dims.T || ""} rows`),
        figure(bytesText(map.unshared), "without sharing"), figure(String(map.placed.length), "buffers in the arena")),
      stackedBar(parts, total, "memory by kind"), legend(parts, total)),
    el("section", { class: "card" }, el("div", { class: "row" }, el("h2", null, "The arena over time"),
      choice("part", [[false, "first layers"], [true, "whole program"]], view.whole, value => { view.whole = value; draw(); })),
      el("p", { class: "quiet" }, "Left to right: groups of steps as they run. Bottom to top: bytes. A box is a buffer from its first use to its last; buffers that are never used together share a place. Choose one to see its block."),
      arenaChart(map)),
  ];
}

function arenaChart(map) {
  const lastShown = view.whole ? map.groups : Math.min(map.groups, firstGroups());
  const width = view.whole ? Math.max(1000, map.groups * 6) : 1000, height = 360, left = 68, bottom = 60, top = 8, under = 56;
  const x = group => left + ((width - left - 8) * group) / lastShown;
  const y = bytes => height - bottom - ((height - bottom - top) * bytes) / Math.max(1, map.arena);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height + under}`, class: "chart arena", role: "img", "aria-label": "buffers of the arena over time", style: { "min-width": view.whole ? `${width}px` : "640px" } });
  for (let part = 0; part <= 4; part += 1) {
    const bytes = (map.arena * part) / 4;
    chart.append(svg("line", { x1: left, x2: width - 8, y1: y(bytes), y2: y(bytes), class: "grid" }), svg("text", { x: left - 6, y: y(bytes) + 4, class: "tick end" }, bytesText(bytes)));
  }
  for (const item of map.placed) {
    if (item.first > lastShown) continue;
    const path = D.stepPath[item.step];
    const box = svg("rect", { x: x(item.first - 1), width: Math.max(1, x(Math.min(item.last, lastShown)) - x(item.first - 1)), y: y(item.offset + item.size), height: Math.max(1.5, y(item.offset) - y(item.offset + item.size)), class: "buffer", style: { fill: colourOf(path) }, onclick: () => openBlock(folded(path)) },
      svg("title", null, `b${item.buffer} of ${path}\n${bytesText(item.size)} at ${bytesText(item.offset)}\ngroups ${item.first} to ${item.last}`));
    chart.append(box);
  }
  const live = new Array(map.groups + 2).fill(0);
  for (const item of map.placed) for (let group = item.first; group <= item.last; group += 1) live[group] += item.size;
  const peak = Math.max(...live, 1), base = height + under - 22, tall = 60;
  let line = `M ${x(0)} ${base}`;
  for (let group = 1; group <= lastShown; group += 1) line += ` L ${x(group - 1)} ${base - (tall * live[group]) / peak} L ${x(group)} ${base - (tall * live[group]) / peak}`;
  chart.append(svg("path", { d: `${line} L ${x(lastShown)} ${base} Z`, class: "live" }), svg("text", { x: left - 6, y: base - tall + 10, class: "tick end" }, bytesText(peak)), svg("text", { x: left - 6, y: base, class: "tick end" }, "in use"));
  const every = Math.max(1, Math.round(lastShown / (width / 90)));
  for (let group = 0; group <= lastShown; group += every) chart.append(svg("text", { x: x(group), y: base + 16, class: "tick middle" }, group));
  return el("div", { class: "scroll", tabindex: "0" }, chart, legend(arenaLegend(map), 1));
}

function arenaLegend(map) {
  const seen = new Map();
  for (const item of map.placed) { const path = folded(D.stepPath[item.step]); seen.set(path, (seen.get(path) || 0) + item.size / map.unshared); }
  return [...seen].sort((a, b) => b[1] - a[1]).map(([name, share]) => ({ name, seconds: share, colour: colourOf(name), onclick: () => openBlock(name) }));
}

// As many groups as two layers take.
function firstGroups() {
  const third = D.stepPath.findIndex(path => /(^|\.)2(\.|$)/.test(path));
  return third > 0 ? D.lir.group[third] : D.lir.group[D.lir.group.length - 1] || 1;
}
