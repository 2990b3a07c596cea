// One block on every level. A line that is chosen shows its fellows on the other levels.

function openBlock(key) {
  state.block = key; state.layer = null; state.step = null;
  if (location.hash === "#blocks") draw(); else location.hash = "#blocks";
}

function phaseChoice() {
  return D.phases.length > 1 ? choice("phase", D.phases.map((phase, index) => [index, phase.name]), state.phase, value => { state.phase = value; draw(); }) : null;
}

function blocksView() {
  const tree = el("ul", { class: "tree" });
  const total = D.phases[state.phase].wall;
  const add = (node, list, depth) => {
    const times = sum(node.steps);
    const count = instances(node.key).length;
    const item = el("li", null, el("button", {
      type: "button", class: "branch", "aria-current": state.block === node.key ? "true" : null, style: { "--depth": depth }, onclick: () => openBlock(node.key),
    }, el("span", { class: "name" }, node.name.split("_").flatMap((word, part) => (part ? ["_", el("wbr"), word] : [word])), node.repeats ? el("span", { class: "times" }, ` × ${count}`) : null),
      el("span", { class: "quiet number" }, timeText(times.seconds)), meter(times.seconds / total)));
    list.append(item);
    for (const child of node.children.values()) add(child, list, depth + 1);
  };
  for (const node of D.tree.children.values()) add(node, tree, 0);
  return [el("div", { class: "split" },
    el("aside", { class: "card side" }, el("div", { class: "row" }, el("h2", null, "Blocks"), phaseChoice()), tree),
    el("div", { class: "main", id: "block" }, blockPane()))];
}

function blockPane() {
  const all = instances(state.block);
  const one = state.layer && all.includes(state.layer) ? state.layer : all[0] || state.block;
  const inside = index => (one === "program" ? D.blocks[index] === "" : within(D.blocks[index], one));
  const numbers = level => level.block.map((block, number) => [block, number]).filter(([block]) => inside(block)).map(item => item[1]);
  const steps = numbers(D.lir), times = sum(D.stepPath.map((path, step) => [path, step]).filter(([path]) => matches(path, state.block)).map(item => item[1]));
  const head = el("section", { class: "card" },
    el("div", { class: "row" }, el("h2", { class: "path" }, state.block),
      all.length > 1 ? el("label", { class: "quiet" }, "shown: ", el("select", { onchange: event => { state.layer = event.target.value; state.step = null; redrawBlock(); } },
        all.map(path => el("option", { value: path, selected: path === one }, path)))) : null),
    el("div", { class: "figures" }, figure(timeText(times.seconds), `${percent(times.seconds / D.phases[state.phase].wall)} of ${D.phases[state.phase].name}${all.length > 1 ? `, all ${all.length}` : ""}`),
      figure(`${rateText(times.seconds ? times.bytes / times.seconds : 0)}B/s`, "moved"),
      figure(`${rateText(times.seconds ? times.operations / times.seconds : 0)}op/s`, "computed"),
      figure(percent(times.roofline), `of its limit, ${times.limit || "no work"}`)));
  const flow = D.flow.filter((line, number) => line[2] && (within(folded(line[2]), state.block) || (holds(number) && within(state.block, folded(line[2])))));
  return [head,
    lines("Flow", "what the author wrote", flow.map(([depth, text, , source]) => ({ text: `${"  ".repeat(depth)}${text}`, source: D.sources[source] }))),
    lines("HIR", "block-level ops", numbers(D.hir).map(number => nodeLine(D.hir, number))),
    lines("MIR", "fused and typed for the kernels", numbers(D.mir).map(number => nodeLine(D.mir, number))),
    lines("LIR", "kernels on buffers, with their time", steps.map(step => stepLine(step))),
    kernelsOf(steps)];
}

// Whether the lines after a line of the flow are parts of it.
const holds = number => number + 1 < D.flow.length && D.flow[number + 1][0] > D.flow[number][0];

function redrawBlock() {
  const node = document.getElementById("block");
  if (node) replace(node, blockPane());
}

const nodeLine = (level, number) => ({ text: level.lines[number], source: D.sources[level.source[number]], step: level.step[number], number });

function stepLine(step) {
  const times = sum([step]);
  return { text: D.lir.lines[step], source: D.sources[D.lir.source[step]], step, kernel: D.lir.kernel[step], times };
}

function lines(title, help, items) {
  return el("details", { class: "card level", open: true },
    el("summary", null, el("h3", null, title), el("span", { class: "quiet" }, ` ${help} · ${items.length} line${items.length === 1 ? "" : "s"}`)),
    items.length ? el("div", { class: "code" }, items.map(item => codeLine(item))) : el("p", { class: "quiet" }, "No line of this level belongs to this block: a pass took its work into a neighbour."));
}

function codeLine(item) {
  const chosen = item.step !== undefined && item.step >= 0 && item.step === state.step;
  return el("div", {
    class: `line${chosen ? " chosen" : ""}`, tabindex: item.step >= 0 ? "0" : null, role: item.step >= 0 ? "button" : null, "data-step": item.step,
    onclick: item.step >= 0 ? () => choose(item.step) : null,
    onkeydown: item.step >= 0 ? event => { if (event.key === "Enter") choose(item.step); } : null,
  }, el("code", null, item.text),
    el("span", { class: "beside" }, item.times ? el("span", { class: "timing" }, `${timeText(item.times.seconds)} · ${percent(item.times.roofline)}`) : null,
    item.source ? el("button", { class: "source link", type: "button", onclick: event => { event.stopPropagation(); openSource(item.source); } }, item.source) : null));
}

// Mark the lines of all levels that belong to a step.
function choose(step) {
  state.step = state.step === step ? null : step;
  for (const line of document.querySelectorAll(".line[data-step]")) line.classList.toggle("chosen", Number(line.dataset.step) === state.step);
}

function kernelsOf(steps) {
  const used = [...new Set(steps.map(step => D.lir.kernel[step]))];
  return el("section", { class: "card" }, el("h3", null, "Kernels"), el("p", { class: "quiet" }, "The machine code behind these steps, with the Python that emitted each instruction."),
    el("div", { class: "chips" }, used.map(number => el("button", { class: "chip", type: "button", onclick: () => openKernel(number) },
      D.kernels[number].name, el("span", { class: "quiet" }, ` ${D.kernels[number].instructions} instructions`)))));
}
