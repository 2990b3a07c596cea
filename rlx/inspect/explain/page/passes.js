// What each pass did: counts and differences, alike blocks once.

function passesView() {
  return [el("p", { class: "lead" }, "Each pass takes a graph and gives another one. Lines are shown with the types of their operands; layers that changed alike are shown once."),
    D.passes.map((item, index) => el("details", { class: "card pass", open: index === 0 },
      el("summary", null, el("span", { class: "badge" }, item.level.toUpperCase()), el("h3", null, item.name),
        el("span", { class: "quiet" }, item.before === item.after ? `${item.after} lines` : `${item.before} → ${item.after} lines`),
        el("span", { class: "chips" }, item.counts.map(([op, before, after]) => el("span", { class: `chip ${after < before ? "less" : "more"}` }, `${op} ${before} → ${after}`)))),
      item.facts.length ? el("p", { class: "quiet" }, item.facts.join(" · ")) : null,
      item.blocks.length ? item.blocks.map(block => el("div", { class: "diff" },
        el("h4", null, el("button", { class: "link", type: "button", onclick: () => openBlock(block.block) }, block.block), block.times > 1 ? el("span", { class: "quiet" }, ` × ${block.times}`) : null),
        el("div", { class: "code" }, block.lines.map(([sign, text]) => el("div", { class: sign === "+" ? "plus" : sign === "-" ? "minus" : "same" }, el("span", { class: "gutter" }, sign), el("code", null, text))))))
        : el("p", { class: "quiet" }, item.counts.length || item.facts.length ? "The lines of the two levels are of different kinds." : "Nothing changed."))) ];
}
