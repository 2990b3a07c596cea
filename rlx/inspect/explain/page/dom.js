// Elements, made of text: nothing of the data is ever read as HTML. Numbers as a person reads them.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, item] of Object.entries(value)) node.style.setProperty(key, item);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child.nodeType ? child : document.createTextNode(String(child)));
  }
  return node;
}

const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);

const digits = value => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

function scaled(value, step, units) {
  let index = 0;
  while (Math.abs(value) >= step && index < units.length - 1) { value /= step; index += 1; }
  return `${index || value % 1 ? digits(value) : value} ${units[index]}`.trim();
}

const bytesText = value => scaled(value, 1000, ["B", "kB", "MB", "GB", "TB"]);
const countText = value => scaled(value, 1000, ["", "K", "M", "G", "T"]);
const rateText = value => (value ? scaled(value, 1000, ["", "k", "M", "G", "T"]) : "0");
const percent = value => (value >= 0.0995 || value === 0 ? `${(100 * value).toFixed(0)}%` : `${(100 * value).toFixed(1)}%`);

function timeText(seconds) {
  if (seconds >= 1) return `${digits(seconds)} s`;
  if (seconds >= 1e-3) return `${digits(1e3 * seconds)} ms`;
  return `${digits(1e6 * seconds)} µs`;
}

function replace(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter(child => child !== null && child !== undefined));
  return node;
}

// A row of buttons of which one is chosen.
function choice(label, options, chosen, choose) {
  return el("div", { class: "choice", role: "group", "aria-label": label },
    options.map(([value, text]) => el("button", {
      type: "button", "aria-pressed": value === chosen ? "true" : "false", onclick: () => choose(value),
    }, text)));
}

// A table whose first column is text and whose others are numbers. Rows are [cells, attributes].
function table(heads, rows, caption) {
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", null,
      el("thead", null, el("tr", null, heads.map((head, index) => el("th", { scope: "col", class: index ? "number" : null }, head)))),
      el("tbody", null, rows.map(([cells, attributes]) => el("tr", attributes,
        cells.map((cell, index) => el("td", { class: index ? "number" : "first" }, cell)))))));
}

const meter = (part, kind) => el("span", { class: "meter" },
  el("span", { class: `fill ${kind || ""}`, style: { width: `${Math.min(100, Math.max(0, 100 * part))}%` } }));
