// The frame: views by the address, light or dark, and the start.

const VIEWS = [["overview", "Overview", overview], ["blocks", "Blocks", blocksView], ["code", "Code", codeView], ["passes", "Passes", passesView],
  ["dispatch", "Dispatch", dispatchView], ["memory", "Memory", memoryView], ["timing", "Time", timingView]];

function draw() {
  const name = location.hash.slice(1).split("/")[0];
  const current = VIEWS.find(item => item[0] === name) || VIEWS[0];
  for (const link of document.querySelectorAll("header nav a")) {
    const is = link.getAttribute("href") === `#${current[0]}`;
    if (is) { link.setAttribute("aria-current", "page"); link.scrollIntoView({ block: "nearest", inline: "nearest" }); } else link.removeAttribute("aria-current");
  }
  const main = document.getElementById("view");
  main.dataset.view = current[0];
  replace(main, current[2]());
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

async function start() {
  const app = document.getElementById("app");
  try {
    prepare(await unpacked("core"));
  } catch (error) {
    replace(app, el("p", { class: "lead" }, `This page cannot be read: ${error.message}`));
    return;
  }
  replace(app,
    el("header", null, el("div", { class: "bar-top" }, el("h1", null, D.model), el("span", { class: "quiet" }, "rlx explain"),
      el("button", { class: "chip theme", type: "button", onclick: toggleTheme, "aria-label": "light or dark" }, "◐")),
      el("nav", { "aria-label": "views" }, VIEWS.map(([name, text]) => el("a", { href: `#${name}` }, text)))),
    el("main", { id: "view" }));
  addEventListener("hashchange", () => { draw(); scrollTo(0, 0); });
  draw();
  document.documentElement.dataset.ready = "true";
}

start();
