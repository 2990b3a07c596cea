// Who runs what, and why nobody else.

function dispatchView() {
  const order = ["unsupported", "decomposed", "rewritten", "native", "no kernel needed"];
  const decisions = [...D.decisions].sort((a, b) => order.indexOf(a.how) - order.indexOf(b.how) || b.count - a.count);
  const counts = order.map(how => [how, decisions.filter(item => item.how === how).reduce((total, item) => total + item.count, 0)]).filter(item => item[1]);
  return [
    el("section", { class: "card" }, el("h2", null, "Kernels"), el("p", { class: "quiet" }, "The first kernel of an op that takes the node is used. Why each other one was not:"),
      el("div", { class: "list" }, D.kernels.map((kernel, index) => el("div", { class: "entry" },
        el("div", { class: "row" }, el("button", { class: "link strong", type: "button", onclick: () => openKernel(index) }, kernel.name),
          el("span", { class: "quiet" }, `${kernel.instructions} instructions · ${kernel.source}`)),
        el("ul", { class: "candidates" }, kernel.candidates.map(item => el("li", { class: item.reason ? "no" : "yes" },
          el("span", { class: "mark", "aria-hidden": "true" }, item.reason ? "–" : "✓"), el("span", null, el("strong", null, item.variant), ` ${item.help}`, item.reason ? el("span", { class: "quiet" }, ` · not: ${item.reason}`) : null)))))))),
    el("section", { class: "card" }, el("h2", null, "Ops"), el("div", { class: "chips" }, counts.map(([how, count]) => el("span", { class: `chip ${how.split(" ")[0]}` }, `${how} ${count}`))),
      el("div", { class: "list" }, decisions.map(item => el("div", { class: "entry" },
        el("div", { class: "row" }, el("span", null, el("span", { class: `badge ${item.how.split(" ")[0]}` }, item.how), el("strong", null, ` ${item.op} `), el("span", { class: "quiet" }, `× ${item.count}`)),
          el("span", { class: "quiet" }, item.blocks.join(", "))),
        item.types ? el("code", { class: "wrap" }, item.types) : null,
        item.into.length || item.reason ? el("p", null, item.into.length ? `becomes ${item.into.join(", ")}` : "", item.reason ? el("span", { class: "quiet" }, ` · ${item.reason}`) : null) : null)))),
  ];
}
