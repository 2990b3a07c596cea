// The first view: how fast, where the time goes, what the levels hold.

function overview() {
  const cards = D.phases.map((phase, index) => {
    const all = sum(D.stepPath.map((_, step) => step), phase);
    const parts = groups((step, path) => folded(path), phase).map(row => ({
      name: row.name, seconds: row.seconds, colour: colourOf(row.name), onclick: () => { state.phase = index; openBlock(row.name); },
    }));
    parts.push(...phase.others.map(([name, seconds], i) => ({ name, seconds, colour: i < 2 ? "var(--wait)" : "var(--python)" })));
    return el("section", { class: "card" },
      el("h2", null, phase.name),
      el("div", { class: "figures" },
        figure(`${digits(phase.amount / phase.wall)}`, `${phase.unit} a second`),
        figure(percent(all.bound / phase.wall), "of what the machine's limits allow"),
        figure(timeText(phase.wall), `for ${phase.amount} ${phase.unit} in ${phase.runs} run${phase.runs === 1 ? "" : "s"}`),
        figure(percent(phase.accounted), "of the time is accounted for")),
      stackedBar(parts, phase.wall, `where the time of ${phase.name} goes`),
      legend(parts, phase.wall));
  });
  const instructions = D.kernels.reduce((total, kernel) => total + kernel.instructions, 0);
  const groupsOfSteps = D.lir.group.length ? D.lir.group[D.lir.group.length - 1] : 0;
  const strip = [
    ["Flow", `${D.flow.length} lines`, "blocks"], ["HIR", `${D.hir.lines.length} nodes`, "blocks"], ["MIR", `${D.mir.lines.length} nodes`, "passes"],
    ["LIR", `${D.lir.lines.length} steps in ${groupsOfSteps} groups`, "timing"], ["LLVM IR", `${D.kernels.length} kernels`, "dispatch"],
    ["Assembly", `${countText(instructions)} instructions`, "dispatch"],
  ];
  return [
    el("p", { class: "lead" }, "From the blocks that the author of the model wrote to the instructions that run, with the time each of them takes. Choose a block to follow it through every level."),
    el("nav", { class: "levels", "aria-label": "levels" }, strip.map(([name, text, view]) =>
      el("a", { href: `#${view}` }, el("strong", null, name), el("span", { class: "quiet" }, text)))),
    el("div", { class: "cards" }, cards),
    el("section", { class: "card" }, el("h2", null, "The model and the machine"),
      el("dl", { class: "facts" }, [...D.facts, ...limitFacts()].map(([name, value]) => el("div", null, el("dt", null, String(name).replaceAll("_", " ")), el("dd", null, factText(name, value)))))),
  ];
}

const figure = (value, text) => el("div", null, el("strong", null, value), el("span", { class: "quiet" }, text));

function factText(name, value) {
  if (typeof value !== "number") return value;
  if (/bytes/.test(name)) return bytesText(value);
  if (/seconds/.test(name)) return timeText(value);
  return value >= 1e5 ? countText(value) : value;
}

function limitFacts() {
  const limits = D.limits;
  return [["reads from memory", `${digits(limits.dram)} GB/s`], ["reads from L3", `${digits(limits.l3)} GB/s`], ["reads from L2", `${digits(limits.l2)} GB/s`],
    ["f32", `${digits(limits.f32)} GFLOP/s`], ["int8", `${digits(limits.int8)} GOP/s`], ...(limits.bf16 ? [["bf16", `${digits(limits.bf16)} GFLOP/s`]] : [])];
}
