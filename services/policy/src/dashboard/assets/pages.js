// The pages. Each is made of one answer, or of none; `order` keeps how somebody sorted its tables.

import { get, post, watch } from "./api.js";
import { ago, el, facts, link, moment, number, rate, serviceLink, table, tiles } from "./dom.js";
import { choose, draw } from "./graph.js";

const MOST_IN_GRAPH = 60;
const orders = {};
const order = (name, by, down) => (orders[name] ??= { by, down });
const passed = (calls) => calls.allowed + calls.audited;

export async function graph(context) {
  const mesh = await get("/mesh", context.signal);
  const focus = context.query.get("around") ?? "";
  const { names, left } = choose(mesh, focus, MOST_IN_GRAPH);
  const state = (count, word) => (count ? `${number(count)} ${word}` : "none");
  const problems = mesh.problems.map((problem) =>
    el("div", { class: "card" }, el("b", {}, "The policy folder has a mistake, so the policy of before stays in force"),
      el("div", { class: "mono" }, `${problem.file}:${problem.line}:${problem.column}: ${problem.message}`)));
  const search = el("form", { role: "search", onsubmit: (event) => {
    event.preventDefault();
    const name = new FormData(event.target).get("around").trim();
    location.hash = name ? `#/?around=${encodeURIComponent(name)}` : "#/";
  } }, el("label", {}, "Only around this service", el("input", { name: "around", value: focus, autocomplete: "off", list: "services" })),
  el("datalist", { id: "services" }, mesh.services.slice(0, 2000).map((service) => el("option", { value: service.name }))),
  el("button", {}, "Show"));
  const total = mesh.edges.reduce((sum, edge) => ({ passed: sum.passed + passed(edge), refused: sum.refused + edge.refused }), { passed: 0, refused: 0 });
  return [
    el("h1", {}, "Who calls whom"),
    tiles([
      ["services", number(mesh.services.length)],
      ["sidecars connected", number(mesh.sidecars.connected)],
      ["late with the policy", state(mesh.sidecars.late, "late"), mesh.sidecars.late ? "warn" : "good"],
      ["refuse the policy", state(mesh.sidecars.refused, "refuse"), mesh.sidecars.refused ? "bad" : "good"],
      ["calls passed", rate(total.passed, mesh.window)],
      ["calls refused", rate(total.refused, mesh.window), total.refused ? "bad" : "good"],
    ]),
    mesh.recording ? null : el("div", { class: "card" }, "What sidecars report cannot be written now, so rates here are too low: see the log of the policy service."),
    problems, search,
    left ? el("p", { class: "quiet" }, `The ${names.length} services with the most calls; ${number(left)} others are in the `, link("services", "list"), ".") : null,
    names.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Service graph" }, draw(mesh, names, mesh.window))
      : el("p", {}, focus ? `There is no service ${focus}.` : "There are no services yet: apply a policy."),
    el("p", { class: "quiet" }, `Over the last ${mesh.window} s. Green: passed. Red, dashed: refused.`),
    el("h2", {}, "Pairs"),
    table({
      caption: `Calls of the last ${mesh.window} s`, order: order("pairs", 3, true), empty: "Nobody called anybody within the last minute.",
      rows: mesh.edges.filter((edge) => !focus || edge.caller === focus || edge.service === focus),
      columns: [
        { title: "Caller", of: (edge) => edge.caller, show: (edge) => serviceLink(edge.caller) },
        { title: "Service", of: (edge) => edge.service, show: (edge) => serviceLink(edge.service) },
        { title: "Passed", of: passed, show: (edge) => rate(passed(edge), mesh.window), number: true },
        { title: "Refused", of: (edge) => edge.refused, show: (edge) => refused(edge.refused, mesh.window), number: true },
      ],
    }),
  ];
}

const refused = (count, window) => el("span", { class: count ? "bad" : "quiet" }, rate(count, window));

export async function services(context) {
  const mesh = await get("/mesh", context.signal);
  const wanted = (context.query.get("name") ?? "").toLowerCase();
  return [
    el("h1", {}, "Services"),
    el("form", { role: "search", onsubmit: (event) => {
      event.preventDefault();
      location.hash = `#/services?name=${encodeURIComponent(new FormData(event.target).get("name").trim())}`;
    } }, el("label", {}, "Part of a name", el("input", { name: "name", value: wanted, autocomplete: "off" })), el("button", {}, "Search")),
    table({
      caption: `Services of ${mesh.mesh || "the mesh"}`, order: order("services", 6, true), empty: "No service has such a name.",
      rows: mesh.services.filter((service) => service.name.includes(wanted)),
      columns: [
        { title: "Service", of: (service) => service.name, show: (service) => serviceLink(service.name) },
        { title: "State", of: state, show: (service) => el("span", { class: tone(service) }, state(service)) },
        { title: "Product", of: (service) => service.product ?? "" },
        { title: "Rules", of: (service) => service.rules, number: true },
        { title: "Sidecars", of: (service) => service.sidecars, number: true },
        { title: "Endpoints", of: (service) => service.endpoints, number: true },
        { title: "Passed", of: (service) => passed(service.calls), show: (service) => rate(passed(service.calls), mesh.window), number: true },
        { title: "Refused", of: (service) => service.calls.refused, show: (service) => refused(service.calls.refused, mesh.window), number: true },
      ],
    }),
  ];
}

function state(service) {
  if (service.quarantined !== null) return "quarantined";
  if (!service.defined) return "not in the policy";
  return service.audit ? "audit mode" : "enforced";
}

const tone = (service) => ({ quarantined: "bad", "not in the policy": "warn", "audit mode": "warn" })[state(service)] ?? "good";

export async function service(context, name) {
  const it = await get(`/services/${encodeURIComponent(name)}`, context.signal);
  const used = [
    { title: "Passed", of: passed, show: (row) => number(passed(row)), number: true },
    { title: "Refused", of: (row) => row.refused, show: (row) => el("span", { class: row.refused ? "bad" : "quiet" }, number(row.refused)), number: true },
    { title: "Now", of: (row) => row.recent, show: (row) => rate(row.recent, it.window), number: true },
    { title: "Last, hour of", of: (row) => row.last ?? "", show: (row) => moment(row.last) },
  ];
  const calls = (title, rows, show, empty) => [el("h2", {}, title), table({
    caption: `${title}, since the record began`, order: order(`service ${title}`, 1, true), rows, empty,
    columns: [{ title: "Name", of: (row) => row.name, show: (row) => show(row.name) }, ...used],
  })];
  return [
    el("h1", {}, it.name, " ", it.defined ? null : el("span", { class: "tag warn" }, "not in the policy")),
    it.quarantined !== null ? el("div", { class: "card" }, el("b", {}, "Quarantined: "), it.quarantined || "no reason was given") : null,
    facts([
      ["Product", it.product], ["Originates tenants", it.originates ? "yes" : "no"],
      ["Audit mode", it.auditAllowlist ? `Allowlist ${it.auditAllowlist}: calls that no rule allows pass, and are counted` : null],
      ["Record", it.record.from ? el("span", {}, moment(it.record.from), " to ", moment(it.record.until)) : "nothing was recorded yet"],
      ["Sidecars", it.sidecars.length ? el("ul", { class: "lines" }, it.sidecars.map((sidecar) => el("li", {}, el("code", {}, sidecar.instance), " ", el("span", { class: sidecar.state === "ok" ? "good" : "bad" }, sidecar.error ?? sidecar.state)))) : "none is connected"],
      ["Endpoints", it.endpoints.length ? el("ul", { class: "lines" }, it.endpoints.map((at) => el("li", {}, el("code", {}, at.address), ` ${at.region}${at.zone ? ` ${at.zone}` : ""}`))) : "none"],
    ]),
    el("p", {}, link(`?around=${encodeURIComponent(name)}`, "Show it in the graph")),
    el("h2", {}, "Allowlist"),
    table({
      caption: "Rules in deciding order, with the recorded calls that each decides", order: order("rules", 0, false), empty: "No rule lets anybody call it.",
      rows: (it.rules ?? []).map((rule, index) => ({ ...rule, index: index + 1 })),
      columns: [
        { title: "#", of: (rule) => rule.index },
        { title: "Rule", of: (rule) => rule.rule, show: (rule) => el("span", {}, el("b", {}, rule.rule), rule.audit ? [" ", el("span", { class: "tag warn" }, "audit")] : null, el("div", { class: "quiet mono" }, `${rule.allowlist}${rule.source ? ` ${rule.source}` : ""}`)) },
        { title: "Callers", of: (rule) => rule.callers.join(", ") },
        { title: "Paths", of: (rule) => rule.paths.join(", "), show: (rule) => el("ul", { class: "lines mono" }, rule.paths.map((path) => el("li", {}, path))) },
        { title: "Demands", of: (rule) => rule.demands.join("; ") },
        ...used.filter((column) => column.title !== "Refused"),
      ],
    }),
    calls("Callers", it.callers, serviceLink, "Nobody called it."),
    calls("Methods", it.methods, (path) => el("code", {}, path || "(other paths)"), "No method was called."),
    calls("It calls", it.callees, serviceLink, "It called nobody."),
    el("h2", {}, "Refused"), refusalTable(it.refusals, it.window, "service refusals"),
  ];
}

function refusalTable(rows, window, name) {
  return table({
    caption: "What was refused, or passed because of audit mode alone", order: order(name, 5, true), rows, empty: "Nothing was refused.",
    columns: [
      { title: "Caller", of: (row) => row.caller, show: (row) => serviceLink(row.caller) },
      { title: "Service", of: (row) => row.service, show: (row) => serviceLink(row.service) },
      { title: "Path", of: (row) => row.path, show: (row) => el("code", {}, row.path || "(other paths)") },
      { title: "Reason", of: (row) => row.reason, show: (row) => el("span", { class: row.decision === "AUDITED" ? "warn" : "bad" }, row.decision === "AUDITED" ? `${row.reason} (passed)` : row.reason) },
      { title: "Calls", of: (row) => row.count, show: (row) => number(row.count), number: true },
      { title: "Now", of: (row) => row.recent, show: (row) => rate(row.recent, window), number: true },
      { title: "Last, hour of", of: (row) => row.last ?? "", show: (row) => moment(row.last) },
    ],
  });
}

export async function refusals(context) {
  const hours = context.query.get("hours") ?? "24";
  const answer = await get(`/refusals?hours=${encodeURIComponent(hours)}`, context.signal);
  const span = el("select", { onchange: (event) => { location.hash = `#/refusals?hours=${event.target.value}`; } },
    [["1", "this hour"], ["24", "24 hours"], ["168", "7 days"], ["0", "all that is kept"]].map(([value, text]) => el("option", { value, selected: value === hours }, text)));
  return [
    el("h1", {}, "Refusals"),
    explainForm(""),
    el("form", { onsubmit: (event) => event.preventDefault() }, el("label", {}, "Since", span)),
    answer.total > answer.refusals.length ? el("p", { class: "quiet" }, `The ${number(answer.refusals.length)} most frequent of ${number(answer.total)}.`) : null,
    refusalTable(answer.refusals, answer.window, "refusals"),
    ...live(context, { refused: true }, "Refused calls as they end"),
  ];
}

function explainForm(id) {
  return el("form", { role: "search", onsubmit: (event) => {
    event.preventDefault();
    const wanted = new FormData(event.target).get("id").trim();
    if (wanted) location.hash = `#/refusals/${encodeURIComponent(wanted)}`;
  } }, el("label", {}, "Request id (x-request-id of the answer)", el("input", { name: "id", value: id, autocomplete: "off", spellcheck: "false" })), el("button", {}, "Explain"));
}

export async function explain(context, id) {
  const page = [el("h1", {}, "Why was it refused?"), explainForm(id)];
  let told;
  try { told = await get(`/explain/${encodeURIComponent(id)}`, context.signal); } catch (error) {
    if (!error.message.includes("no sidecar remembers")) throw error;
    return [...page, el("div", { class: "card" }, error.message)];
  }
  const one = (decision) => el("article", { class: "card", "aria-label": `Decision of ${decision.instance}` },
    el("h2", {}, serviceLink(decision.caller), " → ", serviceLink(decision.service), " ", el("code", {}, decision.path)),
    el("p", {}, el("b", { class: decision.allowed ? "warn" : "bad" }, decision.allowed ? `passed in audit mode: ${decision.reason}` : decision.reason), " ", decision.message),
    facts([
      ["Decided", moment(decision.at)], ["By", `${decision.instance}, ${decision.direction}`],
      ["Tenant", decision.tenant ? link(`tenants/${encodeURIComponent(decision.tenant)}`, decision.tenant) : null],
      ["Rule", decision.rule ? `${decision.rule} of allowlist ${decision.allowlist}${decision.source ? ` at ${decision.source}` : ""}` : null],
      ["Nearest", decision.nearest], ["What to do", decision.next],
      ["Policy revision", decision.policyRevision], ["Tenant revision", decision.tenantRevision],
    ]));
  return [...page,
    told.decisions.map(one),
    told.proposal?.length ? [el("h2", {}, "To allow it"), el("ul", {}, told.proposal.map((step) => el("li", {}, step.message)))] : null,
    el("p", { class: "quiet" }, `${number(told.asked)} sidecars were asked, ${number(told.answered)} answered. The same: `, el("code", {}, `tenon explain ${told.requestId}`)),
  ];
}

function live(context, filter, title) {
  const list = el("tbody"), status = el("p", { class: "quiet", role: "status" });
  const start = el("button", { type: "button" }, "Watch");
  const shown = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, el("table", { hidden: true },
    el("caption", {}, `${title}, newest first`),
    el("thead", {}, el("tr", {}, ["At", "Caller", "Service", "Path", "Tenant", "Ended", "Request"].map((head) => el("th", { scope: "col" }, head)))), list));
  let stop;
  context.signal.addEventListener("abort", () => stop?.abort());
  start.addEventListener("click", async () => {
    if (stop) { stop.abort(); return; }
    stop = new AbortController();
    context.hold(true);
    start.textContent = "Stop";
    shown.firstChild.hidden = false;
    let left = 0;
    try {
      await watch(filter, (call) => {
        if (call.sidecars !== undefined) {
          left = call.leftOut;
          status.textContent = `${number(call.sidecars)} sidecars are watched${left ? `; ${number(left)} calls were left out, there were too many` : ""}.`;
          return;
        }
        list.prepend(liveRow(call));
        while (list.children.length > 200) list.lastChild.remove();
      }, stop.signal);
      status.textContent = "The policy service ended it.";
    } catch (error) {
      status.textContent = error.name === "AbortError" ? "Stopped." : error.message;
    }
    stop = undefined;
    start.textContent = "Watch";
  });
  const may = context.session.mayAct;
  if (!may) start.disabled = true;
  return [el("h2", {}, title), el("p", {}, start, may ? null : el("span", { class: "quiet" }, ` You are ${context.session.role}: watching calls is for operators.`)), status, shown];
}

function liveRow(call) {
  const bad = call.outcome === "refused";
  const ended = bad ? call.reason : call.outcome === "finished" ? `status ${call.grpcStatus ?? "?"}` : call.outcome;
  return el("tr", {}, [
    new Date(call.at).toLocaleTimeString(), serviceLink(call.caller), serviceLink(call.service), el("code", {}, call.path),
    call.tenant ? link(`tenants/${encodeURIComponent(call.tenant)}`, call.tenant) : "",
    el("span", { class: bad ? "bad" : null }, ended),
    bad ? link(`refusals/${encodeURIComponent(call.requestId)}`, "explain") : el("code", {}, call.requestId),
  ].map((cell) => el("td", {}, cell)));
}

export async function tenants(context, id) {
  const search = el("form", { role: "search", onsubmit: (event) => {
    event.preventDefault();
    const wanted = new FormData(event.target).get("id").trim();
    if (wanted) location.hash = `#/tenants/${encodeURIComponent(wanted)}`;
  } }, el("label", {}, "Id or host of a tenant", el("input", { name: "id", value: id ?? "", autocomplete: "off", spellcheck: "false" })), el("button", {}, "Look up"));
  const page = [el("h1", {}, "Tenants"), search];
  if (!id) return [...page, el("p", { class: "quiet" }, "The TCS is asked. Who looked a tenant up is written to the log of the policy service.")];
  let tenant;
  try { tenant = await get(`/tenants/${encodeURIComponent(id)}`, context.signal); } catch (error) {
    if (error.name === "AbortError" || error.constructor.name === "NotSignedIn") throw error;
    return [...page, el("div", { class: "card", role: "status" }, error.message)];
  }
  const products = Object.entries(tenant.products ?? {}).map(([name, product]) => ({ name, ...product }));
  return [...page,
    el("h2", {}, tenant.tenantId, " ", el("span", { class: `tag ${tenant.status === "ACTIVE" ? "good" : "bad"}` }, tenant.status ?? "STATUS_UNSPECIFIED")),
    facts([
      ["Revision", tenant.revision], ["Hosts", (tenant.hosts ?? []).join(", ")], ["Realm", tenant.realm], ["Home region", tenant.region],
      ["Moves to", tenant.move ? `${tenant.move.toRegion}: services take no writes for it meanwhile` : null],
      ...Object.entries(tenant.settings ?? {}).map(([name, value]) => [`Setting ${name}`, value]),
    ]),
    table({
      caption: "Products", order: order("products", 0, false), rows: products, empty: "It has no products.",
      columns: [
        { title: "Product", of: (product) => product.name }, { title: "State", of: (product) => product.state ?? "" },
        { title: "Edition", of: (product) => product.edition ?? "" }, { title: "Seats", of: (product) => product.seats ?? 0, number: true },
        { title: "Licence ends", of: (product) => product.licenseExpiresAt ?? "", show: (product) => product.licenseExpiresAt ? moment(product.licenseExpiresAt) : "" },
        { title: "Features", of: (product) => (product.features ?? []).join(", ") },
      ],
    }),
    ...live(context, { tenant: tenant.tenantId }, `Who calls for ${tenant.tenantId}`),
  ];
}

export async function sidecars(context) {
  const answer = await get("/sidecars", context.signal);
  const kinds = Object.keys(answer.heads);
  return [
    el("h1", {}, "Sidecars"),
    answer.alarms.map((alarm) => el("div", { class: "card" }, el("b", {}, `${alarm.kind}: `), alarm.alarm)),
    facts(kinds.map((kind) => [`Head of ${kind}`, answer.heads[kind] ?? "not known yet"])),
    table({
      caption: "Sidecars that are connected to this policy service, with the revision of each kind that they have", order: order("sidecars", 0, false),
      rows: answer.sidecars, empty: "No sidecar is connected to this policy service.",
      columns: [
        { title: "Service", of: (it) => it.service, show: (it) => serviceLink(it.service) },
        { title: "Instance", of: (it) => it.instance, show: (it) => el("code", {}, it.instance) },
        { title: "State", of: (it) => it.state, show: (it) => el("span", { class: { ok: "good", late: "warn" }[it.state] ?? "bad" }, it.error ? `${it.state}: ${it.error}` : it.state) },
        { title: "Reports calls", of: (it) => (it.reports ? "yes" : "no") },
        { title: "Connected", of: (it) => it.connected ?? "", show: (it) => el("span", { title: it.connected ?? "" }, ago(it.connected)) },
        ...kinds.map((kind) => ({ title: kind, of: (it) => it.acknowledged[kind] ?? "", show: (it) => el("span", { class: it.acknowledged[kind] === answer.heads[kind] ? null : "warn" }, it.acknowledged[kind] ?? "–") })),
      ],
    }),
  ];
}

export async function rollouts(context) {
  const { rollout, history } = await get("/rollouts", context.signal);
  return [
    el("h1", {}, "Rollouts"), rollout ? rolloutCard(context, rollout) : el("p", { class: "quiet" }, "There was no rollout in steps yet. This begins one: ", el("code", {}, "tenon policy apply -f DIR --canary 5%")),
    el("h2", {}, "History"),
    table({
      caption: "Changes of the policy", order: order("history", 0, true), rows: history, empty: "No policy was ever applied.",
      columns: [
        { title: "Revision", of: (entry) => `${entry.epoch}.${entry.revision}`, number: true }, { title: "At", of: (entry) => entry.at ?? "", show: (entry) => moment(entry.at) },
        { title: "What", of: (entry) => entry.action.toLowerCase().replaceAll("_", " ") }, { title: "By", of: (entry) => entry.by },
        { title: "Changes", of: (entry) => entry.changes.join("; "), show: (entry) => el("ul", { class: "lines" }, entry.changes.slice(0, 5).map((change) => el("li", {}, change)), entry.changes.length > 5 ? el("li", { class: "quiet" }, `and ${entry.changes.length - 5} more`) : null) },
        { title: "Note", of: (entry) => entry.note },
      ],
    }),
  ];
}

function rolloutCard(context, rollout) {
  const running = rollout.state === "RUNNING";
  const end = async (complete) => {
    const word = complete ? "Make the new policy everybody's now" : "Give the rollout up, so that the policy of before is everybody's";
    if (!confirm(`${word}?`)) return;
    try { await post("/rollout/end", { complete, note: "from the dashboard" }); } catch (error) { context.alarm(error.message); return; }
    context.again();
  };
  return el("article", { class: "card" },
    el("h2", {}, `Revision ${rollout.epoch}.${rollout.revision}: `, el("span", { class: { COMPLETED: "good", HALTED: "bad" }[rollout.state] ?? "warn" }, rollout.state.toLowerCase())),
    facts([
      ["By", rollout.by], ["Began", moment(rollout.startedAt)], ["Plan", rollout.plan ? `${rollout.plan.canaryPercent} % for ${rollout.plan.holdSeconds} s` : null],
      ["Doing well for", `${rollout.heldSeconds} s`], ["Sidecars that it touches", number(rollout.touched)], ["Why", rollout.reason],
    ]),
    rollout.canaries.length ? el("ul", {}, rollout.canaries.map((canary) => el("li", {}, el("code", {}, canary.instance), ` of ${canary.service}: `, canary.nack ? el("span", { class: "bad" }, canary.nack) : canary.acknowledged ? "has it" : "has not yet"))) : null,
    rollout.refused.length ? refusalTable(rollout.refused.map((flow) => ({ ...flow, recent: 0, last: null })), 60, "canaries") : null,
    running ? el("p", {}, el("button", { disabled: !context.session.mayAct, onclick: () => end(true) }, "Complete"), " ", el("button", { disabled: !context.session.mayAct, onclick: () => end(false) }, "Give up"),
      context.session.mayAct ? null : el("span", { class: "quiet" }, ` You are ${context.session.role}: this is for operators.`)) : null);
}
