"use strict";
const data = JSON.parse(document.getElementById("data").textContent), items = data.items;
const $ = id => document.getElementById(id);
const el = (tag, cls, ...content) => {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  e.append(...content.filter(one => one != null).map(one => one instanceof Node ? one : String(one)));
  return e;
};
let shown = [], current = null, page = 150;

const right = (it, system) => !!(it.answers[system] && it.answers[system].correct);
const broken = it => it.stages.some(s => s.calls.some(c => c.violations.length));
const group = it => it.row || it.task;
const label = it => { const keys = Object.keys(it.inputs); return it.inputs[keys[keys.length - 1]] || it.id; };

function fill(select, values) {
  values.forEach(value => { const o = el("option", "", value); o.value = value; select.append(o); });
}
fill($("f-group"), [...new Set(items.map(group))]);
fill($("f-system"), data.systems.filter(name => name !== data.stack));

function matches(it) {
  const stack = $("f-right").value, system = $("f-system").value, other = $("f-other").value;
  const text = $("f-text").value.trim().toLowerCase(), contract = $("f-contract").value;
  if (stack && String(+right(it, data.stack)) !== stack) return false;
  if ($("f-group").value && group(it) !== $("f-group").value) return false;
  if (contract && String(+broken(it)) !== contract) return false;
  if (other) {
    const names = system ? [system] : data.singles;
    if (String(+names.some(name => right(it, name))) !== other) return false;
  }
  return !text || (it.id + "\n" + Object.values(it.inputs).join("\n")).toLowerCase().includes(text);
}

function refresh() {
  shown = items.filter(matches); page = 150;
  const count = shown.filter(it => right(it, data.stack)).length;
  $("count").textContent = shown.length + " of " + items.length + " questions, " + data.stack + " right in " + count;
  if (!shown.includes(current)) current = shown[0] || null;
  drawList(); drawDetail();
}

function drawList() {
  const list = $("list"); list.replaceChildren();
  shown.slice(0, page).forEach(it => {
    const ok = right(it, data.stack), a = it.answers[data.stack];
    const b = el("button", "", el("div", "title", label(it)));
    b.setAttribute("aria-current", it === current);
    b.append(el("div", "meta", el("span", ok ? "right" : "wrong", (ok ? "✓ " : "✗ ") + (a ? a.answer || "(nothing)" : "")),
      " · " + group(it) + (ok ? "" : " · gold " + it.gold) + (broken(it) ? " · contract" : "")));
    b.onclick = () => { current = it; [...list.children].forEach(c => c.setAttribute("aria-current", c === b)); drawDetail(); };
    list.append(b);
  });
  if (shown.length > page) {
    const more = el("button", "soft", "Show more (" + (shown.length - page) + " left)");
    more.onclick = () => { page += 300; drawList(); };
    list.append(more);
  }
  if (!shown.length) list.append(el("div", "meta", "No question fits these filters."));
}

// An input: one line each if stages looked at its lines; those that a stage kept are marked and tagged with its name.
function textBlock(name, text, keepers, reader) {
  const lines = reader ? reader.calls.map(c => c.item) : text.split("\n"), box = el("div", "", el("h4", "", name));
  if (lines.length === 1) { box.append(el("div", "text", text)); return box; }
  const ol = el("ol", "lines");
  lines.forEach((line, i) => {
    const tags = keepers.filter(k => k.over === name && k.kept.has(line.trim()));
    ol.append(el("li", tags.length ? "kept" : "", el("span", "n", i + 1), line, ...tags.map(k => el("span", "tag", k.stage))));
  });
  box.append(ol);
  return box;
}

function callsTable(s) {
  const loop = s.kind === "repeat", withItem = s.calls.some(c => c.item != null), kept = new Set(s.kept || []);
  const cells = loop ? ["", ...(withItem ? ["item"] : []), "state before", "output"] : ["item", "output"];
  const head = el("tr", "", ...cells.map(c => el("th", "", c))), body = el("tbody");
  s.calls.forEach((c, i) => {
    const row = el("tr", kept.has(i) ? "kept" : "");
    if (loop) row.append(el("td", "soft", i + 1));
    if (withItem) row.append(el("td", "", c.item));
    if (loop) row.append(el("td", "text soft", c.state == null ? "" : c.state));
    row.append(el("td", c.violations.length ? "text off" : "text", c.output));
    body.append(row);
  });
  return el("div", "calls", el("table", "", el("thead", "", head), body));
}

function counted(s) {
  const n = s.calls.length;
  if (s.by === "given") return "given, not run";
  if (s.kind === "map") return "on each of " + n + (n === 1 ? " item" : " items") + (s.kept ? ", kept " + s.kept.length : "");
  if (s.kind === "repeat") return "a loop of " + n + (n === 1 ? " call" : " calls");
  return n === 1 ? "one call" : n + " calls";
}

function stageBlock(s, number) {
  const rule = s.by === "rule", n = s.calls.length;
  const box = el("div", "stage" + (rule ? " rule" : s.by === "given" ? " given" : ""));
  box.append(el("div", "", el("span", "name", number + ". " + s.name), rule ? el("span", "tag", "rule, no model") : null,
    el("span", "soft small", "  " + counted(s))), el("div", "value", s.value));
  s.calls.forEach((c, i) => c.violations.forEach(v =>
    box.append(el("div", "broken", "contract broken" + (s.kind === "once" ? "" : " in call " + (i + 1)) + ": " + v))));
  if (!n) return box;
  if (s.kind !== "once") {
    const all = el("details", "", el("summary", "", s.kind === "map" ? "Every item" : "Every call"), callsTable(s));
    all.open = s.kind === "repeat" && n <= 24;
    box.append(all);
  }
  if (s.prompt) box.append(el("details", "", el("summary", "", s.kind === "once" ? "Prompt" : "The first prompt"), el("pre", "", s.prompt)));
  return box;
}

function answersTable(it) {
  const body = el("tbody");
  body.append(el("tr", "", el("td", "", "gold"), el("td", "text", it.gold), el("td")));
  data.systems.forEach(name => {
    const a = it.answers[name];
    if (!a) return;
    const partly = a.score > 0 && a.score < 1 ? " (" + (100 * a.score).toFixed(0) + "%)" : "";
    const wrote = a.text && a.text.trim() !== a.answer ? a.text.trim() : "";
    body.append(el("tr", name === data.stack ? "chief" : "", el("td", "", name),
      el("td", "text " + (a.correct ? "right" : "wrong"), (a.correct ? "✓ " : "✗ ") + (a.answer || "(nothing)") + partly),
      el("td", "text soft small", wrote)));
  });
  return el("div", "scroll", el("table", "", body));
}

function drawDetail() {
  const d = $("detail"); d.replaceChildren();
  if (!current) { d.append(el("p", "soft", "Choose a question.")); return; }
  const it = current, ok = right(it, data.stack);
  d.append(el("h3", "", el("span", "pill " + (ok ? "right" : "wrong"), ok ? "✓ right" : "✗ wrong"), "  " + group(it) + " ",
    el("span", "soft small", it.id)));
  const keepers = it.stages.filter(s => s.kept && s.kind === "map" && s.calls.length)
    .map(s => ({ stage: s.name, over: s.over, kept: new Set(s.kept.map(i => s.calls[i].item)) }));
  Object.entries(it.inputs).forEach(([name, text]) =>
    d.append(textBlock(name, text, keepers, it.stages.find(s => s.kind === "map" && s.over === name && s.calls.length))));
  d.append(el("h4", "", "hand-offs"), ...it.stages.map((s, i) => stageBlock(s, i + 1)), el("h4", "", "answers"), answersTable(it));
}

["f-right", "f-group", "f-system", "f-other", "f-contract"].forEach(id => $(id).onchange = refresh);
$("f-text").oninput = refresh;
document.addEventListener("keydown", e => {
  if (!["j", "k"].includes(e.key) || e.ctrlKey || e.metaKey || /INPUT|SELECT/.test(document.activeElement.tagName)) return;
  const next = shown[shown.indexOf(current) + (e.key === "j" ? 1 : -1)];
  if (!next) return;
  current = next;
  if (shown.indexOf(next) >= page) page += 300;
  drawList(); drawDetail();
  $("list").querySelector("[aria-current=true]").scrollIntoView({ block: "nearest" });
});
document.addEventListener("click", e => {  // a worst case's "in the traces" opens it there
  const id = e.target.dataset && e.target.dataset.trace, found = id != null && items.find(it => it.id === id);
  if (!found) return;
  ["f-right", "f-group", "f-system", "f-other", "f-contract", "f-text"].forEach(name => { $(name).value = ""; });
  current = found; refresh();
  page = Math.max(page, shown.indexOf(found) + 50); drawList();
  $("list").querySelector("[aria-current=true]").scrollIntoView({ block: "nearest" });
});
refresh();
