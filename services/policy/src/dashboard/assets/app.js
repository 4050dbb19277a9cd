// Which page is shown, for whom, and how often it is made anew.

import { NotSignedIn, get, hasToken, signIn, signOut } from "./api.js";
import { el } from "./dom.js";
import * as pages from "./pages.js";

const EVERY = 5000;
const main = document.getElementById("main");
const alert = document.getElementById("alert");
let session = null, shown = null;

const routes = [
  [/^\/$/, pages.graph, "Graph"],
  [/^\/services$/, pages.services, "Services"],
  [/^\/services\/([^/]+)$/, pages.service, "Service"],
  [/^\/refusals$/, pages.refusals, "Refusals"],
  [/^\/refusals\/([^/]+)$/, pages.explain, "Refusal", { once: true }],
  [/^\/tenants$/, pages.tenants, "Tenants", { once: true }],
  [/^\/tenants\/([^/]+)$/, pages.tenants, "Tenant", { once: true }],
  [/^\/sidecars$/, pages.sidecars, "Sidecars"],
  [/^\/rollouts$/, pages.rollouts, "Rollouts"],
];

function alarm(text) {
  alert.hidden = !text;
  if (alert.textContent !== text) alert.textContent = text;
}

async function route() {
  shown?.controller.abort();
  clearTimeout(shown?.timer);
  const whole = location.hash.slice(1) || "/";
  const [path, query] = whole.split("?");
  const found = routes.find(([pattern]) => pattern.test(path));
  const controller = new AbortController();
  const mine = (shown = { controller, timer: undefined, held: false });
  document.querySelectorAll("#nav a").forEach((link) => {
    const own = link.getAttribute("href").slice(1);
    own === `/${path.split("/")[1]}` ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  });
  if (!found) {
    main.replaceChildren(el("h1", {}, "There is no such page"), el("p", {}, el("a", { href: "#/" }, "Go to the graph")));
    return;
  }
  const [pattern, page, title, { once = false } = {}] = found;
  let part = path.match(pattern)[1];
  try { part = part && decodeURIComponent(part); } catch { /* taken as it stands */ }
  document.title = `${part ? `${part}, ` : ""}${title} – Tenon`;
  main.setAttribute("aria-busy", "true");
  const context = { signal: controller.signal, session, query: new URLSearchParams(query), alarm, again: route, hold: (held) => { mine.held = held; } };
  let first = true;
  async function make() {
    // What somebody types, sorts or watches stays as it is.
    const busy = !first && (mine.held || (main.contains(document.activeElement) && /^(INPUT|SELECT)$/.test(document.activeElement.tagName)) || document.hidden || !getSelection().isCollapsed);
    if (!busy) {
      try {
        const made = (await page(context, part)).flat(9).filter(Boolean);
        if (controller.signal.aborted) return;
        replace(made);
        alarm("");
      } catch (error) {
        if (controller.signal.aborted) return;
        if (error instanceof NotSignedIn) { leave(error.message); return; }
        alarm(error.message);
        if (first) main.replaceChildren(el("h1", {}, title), el("p", { class: "quiet" }, "Nothing can be shown now; it is tried again."));
      }
      main.removeAttribute("aria-busy");
      if (first && mine.focus !== false && document.body.dataset.moved) main.focus({ preventScroll: true });
      first = false;
    }
    if (!once) mine.timer = setTimeout(make, EVERY);
  }
  await make();
}

// The focus stays on what has the same place and text as before.
function replace(made) {
  const at = document.activeElement, inside = main.contains(at) && at !== main;
  const same = inside ? [at.tagName, at.getAttribute("href") ?? at.getAttribute("aria-label") ?? at.textContent] : null;
  const scrolls = [...main.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  main.replaceChildren(...made);
  main.querySelectorAll(".scroll").forEach((box, index) => { box.scrollLeft = scrolls[index] ?? 0; });
  if (same) [...main.querySelectorAll(same[0])].find((it) => (it.getAttribute("href") ?? it.getAttribute("aria-label") ?? it.textContent) === same[1])?.focus({ preventScroll: true });
}

function leave(why) {
  shown?.controller.abort();
  clearTimeout(shown?.timer);
  session = null;
  document.getElementById("who").replaceChildren();
  document.getElementById("nav").hidden = true;
  alarm("");
  document.title = "Sign in – Tenon";
  main.replaceChildren(el("h1", {}, "Sign in"), el("p", {}, why), el("p", {}, "Run this on the machine of the mesh, and open the link that it prints:"), el("pre", {}, el("code", {}, "tenon dashboard")));
  main.removeAttribute("aria-busy");
}

async function enter() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  // Not in the history, and not on the screen.
  if (code) history.replaceState(null, "", "/#/");
  try {
    if (!code && !hasToken()) throw new NotSignedIn("The dashboard shows nothing to whom it does not know.");
    session = code ? await signIn(code) : await get("/session");
    const mesh = await get("/mesh");
    document.getElementById("mesh-name").textContent = mesh.mesh;
    document.getElementById("foot").textContent = `${mesh.trustDomain}, policy ${mesh.revision}${mesh.source ? ` from ${mesh.source}` : ""}`;
  } catch (error) {
    leave(error.message);
    return;
  }
  const name = session.operator.split("/").pop();
  document.getElementById("who").replaceChildren(
    el("span", { title: session.operator }, `${name}, ${session.role}`),
    el("button", { class: "plain", type: "button", onclick: async () => { await signOut(); leave("You are signed out."); } }, "Sign out"));
  document.getElementById("nav").hidden = false;
  await route();
}

addEventListener("hashchange", () => {
  if (new URLSearchParams(location.hash.slice(1)).has("code")) { enter(); return; }
  document.body.dataset.moved = "yes";
  if (session) route();
});
enter();
