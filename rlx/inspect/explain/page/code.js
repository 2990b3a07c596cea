// A kernel: Python, LLVM IR and assembly side by side. A line that is chosen marks what it became, and what it came from.

const CHUNK = 200; // lines that are drawn together; the browser leaves out those that nobody sees

function openKernel(number) {
  state.kernel = number;
  if (location.hash === "#code") draw(); else location.hash = "#code";
}

function codeView() {
  const number = state.kernel === null ? 0 : state.kernel;
  const kernel = D.kernels[number];
  const users = [...new Set(D.stepPath.filter((_, step) => D.lir.kernel[step] === number).map(folded))];
  const pane = el("div", { class: "panes" }, el("p", { class: "quiet" }, "unpacking the code…"));
  code().then(data => showCode(pane, data, number), error => replace(pane, el("p", null, `The code cannot be unpacked: ${error.message}`)));
  return [el("section", { class: "card" },
    el("div", { class: "row" }, el("h2", { class: "path" }, kernel.name),
      el("label", { class: "quiet" }, "kernel: ", el("select", { onchange: event => { state.kernel = Number(event.target.value); draw(); } },
        D.kernels.map((item, index) => el("option", { value: index, selected: index === number }, item.name))))),
    el("p", null, kernel.help, el("span", { class: "quiet" }, ` · written in ${kernel.source}`)),
    el("p", { class: "quiet" }, "used by ", users.map((key, index) => [index ? ", " : "", el("button", { class: "link", type: "button", onclick: () => openBlock(key) }, key)]))),
  pane];
}

function showCode(pane, data, number) {
  const made = data.kernels[number];
  const counts = new Map();
  for (const place of made.asm_at) if (place >= 0) counts.set(place, (counts.get(place) || 0) + 1);
  for (const place of made.llvm_at) if (place >= 0 && !counts.has(place)) counts.set(place, 0);
  const files = new Map();
  for (const [place, count] of counts) {
    const [file, line] = data.places[place];
    if (!files.has(file)) files.set(file, { total: 0, lines: new Map() });
    files.get(file).total += count;
    files.get(file).lines.set(line, [place, count]);
  }
  const order = [...files].sort((a, b) => b[1].total - a[1].total);
  const chosenFile = { name: order.length ? order[0][0] : "" };
  const mark = (place, from) => {
    for (const node of pane.querySelectorAll(".chosen")) node.classList.remove("chosen");
    const [file] = data.places[place];
    if (file !== chosenFile.name) { chosenFile.name = file; python(); }
    for (const node of pane.querySelectorAll(`[data-place="${place}"]`)) node.classList.add("chosen");
    for (const column of pane.querySelectorAll(".listing")) {
      const first = column !== from && column.querySelector(".chosen");
      if (first) column.scrollTop += first.getBoundingClientRect().top - column.getBoundingClientRect().top - 60;
    }
  };
  const listing = (text, places, firstNumber, lineCounts) => {
    const box = el("div", { class: "listing", tabindex: "0", onclick: event => { const line = event.target.closest("[data-place]"); if (line) mark(Number(line.dataset.place), box); } });
    for (let start = 0; start < text.length; start += CHUNK) {
      const part = text.slice(start, start + CHUNK);
      box.append(el("div", { class: "chunk", style: { "contain-intrinsic-height": `${part.length * 18}px` } }, part.map((line, index) => {
        const place = places[start + index];
        const count = lineCounts ? lineCounts[start + index] : 0;
        return el("div", { class: place >= 0 ? "at" : null, "data-place": place >= 0 ? place : null },
          el("span", { class: "gutter" }, lineCounts ? start + index + firstNumber : ""), el("span", null, line || " "),
          count ? el("span", { class: "count" }, count) : null);
      })));
    }
    return box;
  };
  const pythonBox = el("section", { class: "card pane" });
  const python = () => {
    const text = (data.files[chosenFile.name] || "").split("\n");
    const known = files.get(chosenFile.name) || { lines: new Map() };
    const box = listing(text, text.map((_, index) => (known.lines.has(index + 1) ? known.lines.get(index + 1)[0] : -1)), 1,
      text.map((_, index) => (known.lines.has(index + 1) ? known.lines.get(index + 1)[1] : 0)));
    replace(pythonBox, el("div", { class: "row" }, el("h3", null, "Python"), el("select", { "aria-label": "file", onchange: event => { chosenFile.name = event.target.value; python(); } },
      order.map(([file, facts]) => el("option", { value: file, selected: file === chosenFile.name }, `${file} · ${facts.total}`)))), box);
    const first = box.querySelector(".at");
    if (first) requestAnimationFrame(() => { box.scrollTop = Math.max(0, (Number(first.querySelector(".gutter").textContent) - 4) * 18); });
  };
  python();
  const titled = (title, text, places) => el("section", { class: "card pane" }, el("div", { class: "row" }, el("h3", null, title), el("span", { class: "quiet" }, `${text.length} lines`)), listing(text, places));
  replace(pane, pythonBox, titled("LLVM IR", made.llvm, made.llvm_at), titled("Assembly", made.asm, made.asm_at));
}

// The file of a block, at a line.
function openSource(source) {
  const [file, line] = source.split(":");
  const dialog = el("dialog", { class: "card", onclose: () => dialog.remove(), onclick: event => { if (event.target === dialog) dialog.close(); } });
  const box = el("div", { class: "listing tall" }, "unpacking…");
  dialog.append(el("div", { class: "row" }, el("h3", null, source), el("button", { type: "button", class: "chip", onclick: () => dialog.close() }, "close")), box);
  document.body.append(dialog);
  dialog.showModal();
  code().then(data => {
    const text = (data.files[file] || "The source of this block is not part of RLX.").split("\n");
    replace(box, text.map((item, index) => el("div", { class: index + 1 === Number(line) ? "chosen" : null }, el("span", { class: "gutter" }, index + 1), el("span", null, item || " "))));
    const chosen = box.querySelector(".chosen");
    if (chosen) chosen.scrollIntoView({ block: "center" });
  });
}
