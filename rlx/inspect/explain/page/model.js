// What the page knows: the data, how blocks are folded, sums of steps.

const state = { phase: 0, block: null, layer: null, kernel: null, step: null };
let D = null;
let codePromise = null;

async function unpacked(id) {
  const text = document.getElementById(id).textContent.trim();
  const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// The code is several times as big as all else, so it is unpacked when the first kernel is opened.
function code() {
  codePromise = codePromise || unpacked("code");
  return codePromise;
}

const folded = path => path.replace(/(^|\.)\d+(?=\.|$)/g, "$1*") || "program";
const matches = (path, key) => { const name = folded(path); return name === key || name.startsWith(`${key}.`); };
const within = (path, prefix) => path === prefix || path.startsWith(`${prefix}.`);

// The block paths that a folded name stands for: layers.0.mlp, layers.1.mlp, ... for layers.*.mlp.
function instances(key) {
  const depth = key.split(".").length;
  const found = new Set();
  for (const path of D.blocks) if (matches(path, key)) found.add(key.includes("*") ? path.split(".").slice(0, depth).join(".") : key);
  return [...found];
}

function prepare(data) {
  D = data;
  D.stepPath = D.lir.block.map(index => D.blocks[index]);
  const root = { name: "", key: "", children: new Map(), steps: [], count: 0 };
  D.stepPath.forEach((path, step) => {
    let node = root;
    node.steps.push(step);
    const parts = folded(path).split(".");
    parts.forEach((part, depth) => {
      const key = parts.slice(0, depth + 1).join(".");
      if (!node.children.has(part)) node.children.set(part, { name: part, key, children: new Map(), steps: [], count: 0 });
      node = node.children.get(part);
      node.steps.push(step);
    });
  });
  for (const node of root.children.values()) join(node);
  D.tree = root;
  state.phase = D.phases.length - 1;
  state.block = [...root.children.values()].map(node => node.key).find(key => key.includes("layers")) || [...root.children.keys()][0];
}

// A block that holds numbered layers and nothing else is one line with them: layers.* for layers and its *.
function join(node) {
  const only = node.children.size === 1 ? node.children.get("*") : null;
  if (only) { node.key = only.key; node.children = only.children; node.repeats = true; }
  for (const child of node.children.values()) join(child);
}

// Seconds, bytes, operations, least seconds of steps in a phase; what bounds them, and the arithmetic of the longest.
function sum(steps, phase = D.phases[state.phase]) {
  const total = { seconds: 0, bytes: 0, operations: 0, bound: 0, memory: 0, arithmetic: "", steps: steps.length };
  let longest = -1;
  for (const step of steps) {
    const [seconds, bytes, operations, bound, share, arithmetic] = phase.steps[step];
    total.seconds += seconds; total.bytes += bytes; total.operations += operations; total.bound += bound;
    total.memory += share * bound;
    if (seconds > longest) { longest = seconds; total.arithmetic = arithmetic; }
  }
  total.limit = total.bound ? (total.memory / total.bound >= 0.5 ? "memory" : total.arithmetic) : "";
  total.roofline = total.seconds ? total.bound / total.seconds : 0;
  return total;
}

function groups(nameOf, phase) {
  const found = new Map();
  D.stepPath.forEach((path, step) => {
    const name = nameOf(step, path);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(step);
  });
  return [...found].map(([name, steps]) => ({ name, ...sum(steps, phase), list: steps })).sort((a, b) => b.seconds - a.seconds);
}

// Colours go to the largest blocks in fixed order; all others share one.
function colours() {
  if (D.colour) return D.colour;
  const order = new Map();
  for (const phase of D.phases) for (const row of groups((step, path) => folded(path), phase)) if (!order.has(row.name)) order.set(row.name, row.seconds / phase.wall);
  D.colour = new Map([...order.keys()].map((name, index) => [name, index < 7 ? `var(--series-${index + 1})` : "var(--series-rest)"]));
  return D.colour;
}

const colourOf = path => colours().get(folded(path)) || "var(--series-rest)";
