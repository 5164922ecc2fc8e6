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

function filters(table) {
  const rows = [...table.tBodies[0].rows];
  const count = make("output");
  const text = make("input", { type: "search", placeholder: "filter by words" });
  text.setAttribute("aria-label", "filter by words");
  const selects = table.dataset.filters.split(" ").map((fact) => {
    const select = make("select", { name: fact }, make("option", { value: "" }, `any ${fact}`));
    const numbers = {};
    for (const row of rows) numbers[row.dataset[fact]] = (numbers[row.dataset[fact]] ?? 0) + 1;
    for (const value of Object.keys(numbers).sort()) select.append(make("option", { value }, `${value} (${numbers[value]})`));
    select.setAttribute("aria-label", fact);
    return select;
  });
  const show = () => {
    const asked = words(text.value);
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !(selects.every((select) => !select.value || row.dataset[select.name] === select.value)
        && asked.every((word) => content.includes(word)));
    }
    count.value = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  const bar = make("p", { className: "filters" }, ...selects, text, count);
  bar.addEventListener("input", show);
  table.closest(".scroll").before(bar);
  show();
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
document.querySelectorAll("table[data-filters]").forEach(filters);
folds();
