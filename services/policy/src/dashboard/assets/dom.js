// Elements from data. Text is always text: nothing that a caller wrote is ever read as markup.

export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  set(element, attributes);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  set(element, attributes);
  element.append(...children.flat().filter(Boolean));
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
}

export function link(path, text) {
  return el("a", { href: `#/${path}` }, text);
}

export function serviceLink(name) {
  return name ? link(`services/${encodeURIComponent(name)}`, name) : el("span", { class: "quiet" }, "(nobody)");
}

export function number(value) {
  return new Intl.NumberFormat("en").format(value);
}

export function rate(count, window) {
  const perSecond = count / window;
  if (perSecond === 0) return "0/s";
  return perSecond < 10 ? `${perSecond.toFixed(perSecond < 0.1 ? 2 : 1)}/s` : `${number(Math.round(perSecond))}/s`;
}

export function moment(text) {
  if (!text) return el("span", { class: "quiet" }, "never");
  const at = new Date(text);
  return el("time", { datetime: text, title: text }, at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }));
}

export function ago(text) {
  if (!text) return "";
  const seconds = Math.max(0, Math.round((Date.now() - new Date(text)) / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

// Columns: {title, of(row) for sorting and text, show(row) for what is put there, number: true}. Rows beyond `most` are
// left out, which the caption says. Keeps the order that somebody chose in `order`.
export function table({ caption, columns, rows, order, most = 500, empty = "nothing" }) {
  if (rows.length === 0) return el("p", { class: "quiet" }, empty);
  const body = el("tbody");
  const heads = columns.map((column, index) => {
    const head = el("th", { scope: "col", class: column.number ? "number" : null });
    head.append(el("button", { type: "button", onclick: () => sort(index, order.by === index ? !order.down : Boolean(column.number)) }, column.title));
    return head;
  });
  function sort(by, down) {
    Object.assign(order, { by, down });
    const value = columns[by].of;
    const compare = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
    const sorted = [...rows].sort((a, b) => (down ? -1 : 1) * compare(value(a), value(b)));
    heads.forEach((head, index) => index === by ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    body.replaceChildren(...sorted.slice(0, most).map((row) => el("tr", {}, columns.map((column) =>
      el("td", { class: column.number ? "number" : null }, column.show ? column.show(row) : String(column.of(row) ?? ""))))));
  }
  sort(order.by ?? 0, order.down ?? Boolean(columns[order.by ?? 0].number));
  const said = rows.length > most ? `${caption}: ${number(most)} of ${number(rows.length)} shown, narrow the search for others` : caption;
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, said), el("thead", {}, el("tr", {}, heads)), body));
}

export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {}, shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

export function tiles(list) {
  return el("ul", { class: "tiles" }, list.map(([name, value, tone]) => el("li", {}, el("b", { class: tone ?? null }, String(value)), name)));
}
