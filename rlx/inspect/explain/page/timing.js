// Times, rates and limits by kernel, block or step.

const chosen = { by: "kernel", count: 60 };

function timingView() {
  const phase = D.phases[state.phase];
  const by = {
    kernel: step => D.kernels[D.lir.kernel[step]].name,
    block: (step, path) => folded(path),
    step: step => `${step}  ${D.stepPath[step]}  ${D.kernels[D.lir.kernel[step]].name}`,
  };
  const rows = groups(by[chosen.by], phase);
  const shown = rows.slice(0, chosen.count);
  const kernelRows = groups(by.kernel, phase).map((row, index) => ({ ...row, colour: index < 7 ? `var(--series-${index + 1})` : "var(--series-rest)" }));
  const open = row => (chosen.by === "kernel" ? openKernel(D.lir.kernel[row.list[0]]) : openBlock(folded(D.stepPath[row.list[0]])));
  const others = [["kernels", sum(D.stepPath.map((_, step) => step), phase).seconds], ...phase.others, ["not accounted for", phase.wall * (1 - phase.accounted)]];
  return [
    el("section", { class: "card" }, el("div", { class: "row" }, el("h2", null, "Time"), phaseChoice(), choice("by", [["kernel", "by kernel"], ["block", "by block"], ["step", "by step"]], chosen.by, value => { chosen.by = value; chosen.count = 60; draw(); })),
      table([chosen.by, "steps", "time", "share", "B/s", "op/s", "bound by", "of limit"], shown.map(row => [[
        el("button", { class: "link", type: "button", onclick: () => open(row) }, row.name), row.steps, timeText(row.seconds),
        el("span", { class: "bar" }, meter(row.seconds / phase.wall), percent(row.seconds / phase.wall)),
        rateText(row.seconds ? row.bytes / row.seconds : 0), rateText(row.seconds ? row.operations / row.seconds : 0), row.limit || "",
        el("span", { class: "bar" }, meter(row.roofline, "roof"), percent(row.roofline))], null]), `time by ${chosen.by}`),
      rows.length > shown.length ? el("button", { class: "chip", type: "button", onclick: () => { chosen.count += 400; draw(); } }, `${rows.length - shown.length} more`) : null),
    el("section", { class: "card" }, el("h2", null, "The whole"), el("p", { class: "quiet" }, `${percent(phase.accounted)} of the wall time of ${timeText(phase.wall)} is accounted for. Time in kernels and waits is thread time divided by the ${D.limits.threads} thread${D.limits.threads === 1 ? "" : "s"}.`),
      table(["where", "time", "share"], others.map(([name, seconds]) => [[name, timeText(Math.max(0, seconds)), el("span", { class: "bar" }, meter(seconds / phase.wall), percent(Math.max(0, seconds) / phase.wall))], null]), "the whole")),
    el("section", { class: "card" }, el("h2", null, "Roofline"), el("p", { class: "quiet" }, "Each dot is a kernel, as big as its time. The lines are limits that were measured in the same process: what memory delivers, and what the arithmetic does at most. What lies in a cache may be above the line of memory."),
      rooflineChart(kernelRows), legend(kernelRows.map(row => ({ name: row.name, seconds: row.seconds, colour: row.colour, onclick: () => openKernel(D.lir.kernel[row.list[0]]) })), phase.wall)),
  ];
}
