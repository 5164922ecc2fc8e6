"use strict";
// Search over all pages, filters of lists, folds. No page needs any of it to be read.

const make = (tag, facts = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), facts);
  element.append(...children);
  return element;
};
const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

// The search index is a script, since pages opened from a disk may not fetch.
let index;
const loaded = () => (index ??= new Promise((done) =>
  document.head.append(make("script", { src: "index.js", onload: () => done(window.SECTIONS) }))));

function score([, , heading, text, code], asked) {
  const places = [[heading, 8], [text, 2], [code, 1]].map(([part, worth]) => [part.toLowerCase(), worth]);
  let sum = 0;
  for (const word of asked) {
    const best = Math.max(...places.map(([part, worth]) => (part.includes(word) ? worth : 0)));
    if (!best) return 0;
    sum += best;
  }
  return sum;
}

function result([page, anchor, heading, text, code], asked) {
  const where = asked.some((word) => text.toLowerCase().includes(word)) ? text : code || text;
  const at = Math.max(0, ...asked.map((word) => where.toLowerCase().indexOf(word)));
  const end = at + Math.max(...asked.map((word) => word.length));
  const mark = make("mark", {}, where.slice(at, end));
  const directive = where === text && text.toLowerCase().includes(asked[0])
    ? ":~:text=" + encodeURIComponent(asked[0]).replaceAll("-", "%2D") : "";
  const link = make("a", { href: `${page}#${encodeURIComponent(anchor)}${directive}` }, heading || window.PAGES[page]);
  const quote = make("span", {}, where.slice(Math.max(0, at - 60), at).replace(/^\S* /, at > 60 ? "… " : "$&"), mark, where.slice(end, at + 100));
  return make("li", {}, link, make("small", {}, ` ${window.PAGES[page]}`), make("br"), quote);
}

function search() {
  const box = make("input", { type: "search", placeholder: "search all pages" });
  const list = make("ol", { className: "results", hidden: true });
  box.setAttribute("aria-label", "search all pages");
  const show = async () => {
    const sections = await loaded();
    const asked = words(box.value);
    const hits = asked.length ? sections.map((row) => [score(row, asked), row]).filter(([value]) => value) : [];
    hits.sort((a, b) => b[0] - a[0]);
    list.replaceChildren(...hits.slice(0, 30).map(([, row]) => result(row, asked)));
    if (asked.length && !hits.length) list.append(make("li", {}, `Nothing on any page has “${box.value}”.`));
    if (hits.length > 30) list.append(make("li", {}, `… and ${hits.length - 30} more: add a word.`));
    list.hidden = !asked.length;
  };
  box.addEventListener("input", show);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") list.hidden = true;
    if (event.key === "/" && !/input|select|textarea/i.test(document.activeElement.tagName)) {
      event.preventDefault();
      box.focus();
    }
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("form")) list.hidden = true;
    if (event.target.closest(".results a")) list.hidden = true;
  });
  const form = make("form", { role: "search" }, box, list);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    list.querySelector("a")?.click();
  });
  document.querySelector("header").append(form);
}

// What a question asks for: its words without those that every question has; short words and numbers are meant whole.
const QUIET = new Set("a an and about any are at by can do does for happen happens how in is it know knows me of on or say tell that the to what when where which who why will with".split(" "));

function question(text) {
  const asked = words(text.replace(/[?!“”‘’]/g, " ").replace(/\b(head|neuron|feature)s? (\d+)/gi, "$1~$2"));
  const meant = asked.filter((word) => !QUIET.has(word));
  return (meant.length ? meant : asked).map((word) => {
    if (/^(\d+|[a-z]{1,3}|[a-z]+~\d+)$/.test(word)) {
      const whole = new RegExp(`(?<![a-z0-9])${word.replace("~", " ")}(?![a-z0-9])`);
      return (content) => whole.test(content);
    }
    const stem = /^[a-z]+$/.test(word) ? word.replace(/s$/, "") : word;
    return (content) => content.includes(stem);
  });
}

function filters(list) {
  const rows = list.tBodies ? [...list.tBodies[0].rows] : [...list.children];
  const home = list.tBodies ? list.tBodies[0] : list;
  const known = (row) => (row.textContent.replace(row.querySelector(".examples")?.textContent ?? "", "")
    + ` ${row.dataset.parts ?? ""}`).toLowerCase();
  const contents = new Map(rows.map((row) => [row, known(row)])); // stories say he and she everywhere
  const summaries = [...document.querySelectorAll("[data-summary]")];
  const count = make("output");
  const text = make("input", { type: "search", placeholder: list.tBodies ? "filter by words" : "ask, or filter by words" });
  text.setAttribute("aria-label", "filter by words");
  const selects = list.dataset.filters.split(" ").map((fact) => {
    const select = make("select", { name: fact }, make("option", { value: "" }, fact === "sure" ? "however sure" : `any ${fact}`));
    const numbers = {};
    for (const row of rows) numbers[row.dataset[fact]] = (numbers[row.dataset[fact]] ?? 0) + 1;
    for (const value of Object.keys(numbers).sort()) select.append(make("option", { value }, `${value} (${numbers[value]})`));
    select.setAttribute("aria-label", fact);
    return select;
  });
  const sorts = make("select", { name: "sort" }, ...(list.dataset.sorts ?? "").split(" ").map((fact) =>
    make("option", { value: fact }, `sort by ${fact === "matters" ? "what it matters" : fact}`)));
  sorts.setAttribute("aria-label", "sort by");
  const show = () => {
    const asked = question(text.value);
    const hits = new Map(rows.map((row) => [row, asked.filter((has) => has(contents.get(row))).length]));
    const fits = (row) => selects.every((select) => !select.value || row.dataset[select.name] === select.value);
    const all = rows.some((row) => fits(row) && hits.get(row) === asked.length);
    for (const row of rows) row.hidden = !fits(row) || (asked.length > 0 && hits.get(row) < (all ? asked.length : 1));
    if (list.dataset.sorts) {
      const by = sorts.value;
      const value = (row) => (by === "matters" ? Number(row.dataset.matters) : row.dataset[by]);
      const early = (row) => asked.filter((has) => has(row.querySelector("summary").textContent.toLowerCase())).length;
      const order = (a, b) => (by === "matters" ? value(b) - value(a) : value(a).localeCompare(value(b), "en", { numeric: true }));
      home.append(...rows.sort((a, b) => hits.get(b) - hits.get(a) || early(b) - early(a) || order(a, b)));
      const group = selects.find((select) => select.name === "group")?.value;
      for (const part of summaries) {
        const told = part.textContent.toLowerCase();
        part.hidden = Boolean((group && part.dataset.summary !== group) || (asked.length && !asked.every((has) => has(told))));
      }
    }
    count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  const bar = make("p", { className: "filters" }, text, ...selects, ...(list.dataset.sorts ? [sorts] : []), count);
  bar.addEventListener("input", show);
  const heading = list.previousElementSibling;
  const top = list.closest(".scroll") ?? (heading?.matches("h2") ? heading : list);
  top.before(bar);
  if (!list.tBodies) bar.after(...summaries);
  show();
  const reveal = () => {
    const aim = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (aim?.matches("details")) { aim.open = true; aim.scrollIntoView(); }
  };
  window.addEventListener("hashchange", reveal);
  reveal();
}

function folds() {
  const blocks = [...document.querySelectorAll("details.code:not(.sentence)")];
  const contents = document.querySelector(".contents details");
  if (contents && window.innerWidth < 1100) contents.open = false;
  if (!blocks.length) return;
  const button = make("button", { type: "button" }, "show all code");
  button.addEventListener("click", () => {
    const open = blocks.some((block) => !block.open);
    for (const block of blocks) block.open = open;
    button.textContent = open ? "fold all code" : "show all code";
  });
  document.querySelector(".made").append(" ", button);
}

search();
document.querySelectorAll("[data-filters]").forEach(filters);
folds();
