// The service graph: who calls whom now. Callers stand left of those whom they call.

import { svg, rate, number } from "./dom.js";

const WIDTH = 190, HEIGHT = 46, GAP_X = 120, GAP_Y = 18, PAD = 24;

// At most `most` services: those with the most calls, and their neighbours. The rest is counted.
export function choose(mesh, focus, most) {
  const weight = new Map(mesh.services.map((service) => [service.name, 0]));
  for (const edge of mesh.edges) {
    const calls = edge.allowed + edge.refused + edge.audited;
    for (const name of [edge.caller, edge.service]) weight.set(name, (weight.get(name) ?? 0) + calls);
  }
  let names = [...weight.keys()].filter(Boolean);
  if (focus) {
    const near = new Set(mesh.edges.filter((edge) => edge.caller === focus || edge.service === focus).flatMap((edge) => [edge.caller, edge.service]));
    names = names.filter((name) => name === focus || near.has(name));
  }
  names.sort((a, b) => (b === focus) - (a === focus) || weight.get(b) - weight.get(a) || a.localeCompare(b));
  return { names: names.slice(0, most), left: Math.max(0, names.length - most) };
}

// The column of each: one more than the furthest caller of it. What calls in a circle stays where it was first met.
function columns(names, edges) {
  const column = new Map(names.map((name) => [name, 0]));
  const inner = edges.filter((edge) => edge.caller !== edge.service);
  const order = [...names].sort((a, b) => callers(a) - callers(b) || a.localeCompare(b));
  function callers(name) { return inner.filter((edge) => edge.service === name).length; }
  const state = new Map();
  function visit(name) {
    state.set(name, "open");
    for (const edge of inner.filter((it) => it.caller === name)) {
      if (state.get(edge.service) === "open") continue;
      if (column.get(edge.service) < column.get(name) + 1) {
        column.set(edge.service, column.get(name) + 1);
        visit(edge.service);
      }
    }
    state.set(name, "done");
  }
  order.forEach((name) => { if (!state.has(name)) visit(name); });
  return column;
}

export function draw(mesh, names, window) {
  const known = new Map(mesh.services.map((service) => [service.name, service]));
  const shown = new Set(names);
  const edges = mesh.edges.filter((edge) => shown.has(edge.caller) && shown.has(edge.service));
  const column = columns(names, edges);
  const rows = [];
  const place = new Map();
  [...names].sort((a, b) => column.get(a) - column.get(b) || a.localeCompare(b)).forEach((name) => {
    const x = column.get(name);
    rows[x] = (rows[x] ?? 0) + 1;
    place.set(name, { x: PAD + x * (WIDTH + GAP_X), y: PAD + (rows[x] - 1) * (HEIGHT + GAP_Y) });
  });
  const width = PAD * 2 + Math.max(1, rows.length) * (WIDTH + GAP_X) - GAP_X;
  const height = PAD * 2 + Math.max(1, ...rows.filter(Boolean)) * (HEIGHT + GAP_Y) - GAP_Y;
  const most = Math.max(1, ...edges.map((edge) => edge.allowed + edge.refused + edge.audited));
  const lines = edges.flatMap((edge) => line(edge, place, most, window));
  const boxes = names.map((name) => box(known.get(name) ?? { name, calls: {}, sidecars: 0 }, place.get(name), window));
  const title = `${names.length} services and ${edges.length} pairs that call each other; the table below says the same`;
  return svg("svg", { class: "graph", viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title, width, height },
    lines, boxes);
}

function line(edge, place, most, window) {
  const from = place.get(edge.caller), to = place.get(edge.service);
  const x1 = from.x + WIDTH, y1 = from.y + HEIGHT / 2, x2 = to.x, y2 = to.y + HEIGHT / 2;
  const bend = x2 > x1 ? (x2 - x1) / 2 : 70;
  // Beside each other, so that both are seen.
  const d = (by) => `M${x1},${y1 + by} C${x1 + bend},${y1 + by} ${x2 - bend},${y2 + by} ${x2},${y2 + by}`;
  const passed = edge.allowed + edge.audited;
  const said = `${edge.caller} calls ${edge.service}: ${rate(passed, window)} passed, ${rate(edge.refused, window)} refused`;
  const one = (kind, count, by) => svg("path", { d: d(by), class: kind, "stroke-width": 1.5 + 4.5 * Math.sqrt(count / most) }, svg("title", {}, said));
  return [passed > 0 && one("passing", passed, -5), edge.refused > 0 && one("refusing", edge.refused, 5)].filter(Boolean);
}

function box(service, { x, y }, window) {
  const { allowed = 0, refused = 0, audited = 0 } = service.calls;
  const state = [refused > 0 && "refusing", service.quarantined !== null && service.quarantined !== undefined && "quarantined"].filter(Boolean);
  const told = service.quarantined ? "quarantined" : `${rate(allowed + audited, window)} in${refused ? `, ${rate(refused, window)} refused` : ""}`;
  const name = service.name.length > 24 ? `${service.name.slice(0, 23)}…` : service.name;
  return svg("a", { href: `#/services/${encodeURIComponent(service.name)}`, class: state.join(" ") },
    svg("title", {}, `${service.name}: ${told}, ${number(service.sidecars)} sidecars`),
    svg("rect", { x, y, width: WIDTH, height: HEIGHT, rx: 7 }),
    svg("text", { x: x + 10, y: y + 19 }, `${name} `),
    svg("text", { x: x + 10, y: y + 36, class: "small" }, told));
}
