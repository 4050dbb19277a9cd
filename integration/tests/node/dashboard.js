// Clicks through the dashboard in a headless Chromium and prints what it saw as JSON.
//
// Arguments: one JSON object {chromium, link, requestId, tenant, service, shots}. `shots`: a folder for screenshots, or null.
"use strict";

const path = require("node:path");
const { chromium } = require("playwright-core");
const axe = require("axe-core");

const wanted = JSON.parse(process.argv[2]);
const saw = { errors: [], faults: [], pages: {}, notes: {} };

async function look(page, name) {
  await page.waitForFunction(() => !document.querySelector("main").hasAttribute("aria-busy"));
  saw.pages[name] = await page.locator("main").innerText();
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    // The content security policy of the page lets nothing in but its own files; this goes by the debugger.
    await page.evaluate(axe.source);
    const result = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
    for (const fault of result.violations) {
      saw.faults.push({ page: name, scheme, id: fault.id, impact: fault.impact, at: fault.nodes.slice(0, 3).map((node) => node.html) });
    }
    if (wanted.shots) await page.screenshot({ path: path.join(wanted.shots, `${name}-${scheme}.png`) });
  }
}

async function follow(page, name, heading) {
  await page.getByRole("navigation", { name: "Pages" }).getByRole("link", { name, exact: true }).click();
  await page.getByRole("heading", { level: 1, name: heading }).waitFor();
}

async function walk(page) {
  await page.goto(wanted.origin);
  await page.getByRole("heading", { level: 1, name: "Sign in" }).waitFor();
  await look(page, "sign-in");
  await page.goto(wanted.link);
  await page.getByRole("heading", { level: 1, name: "Who calls whom" }).waitFor();
  saw.notes.urlAfterSignIn = page.url();
  await page.locator(`svg.graph a[href="#/services/${wanted.service}"]`).first().waitFor();
  // What was called a moment ago is reported within some seconds.
  await page.locator("svg.graph path.refusing").first().waitFor({ timeout: 60_000 });
  // A minute of calls makes a better picture.
  if (wanted.shots) await page.waitForTimeout(60_000);
  await look(page, "graph");
  await page.locator(`svg.graph a[href="#/services/${wanted.service}"]`).click();
  await page.getByRole("heading", { level: 1, name: wanted.service }).waitFor();
  await look(page, "service");
  await follow(page, "Services", "Services");
  await look(page, "services");
  await page.getByLabel("Part of a name").fill(wanted.service.slice(0, 3));
  await page.keyboard.press("Enter");
  await page.getByRole("link", { name: wanted.service, exact: true }).waitFor();
  await page.getByRole("button", { name: "Rules" }).click();
  saw.notes.sorted = await page.getByRole("columnheader", { name: "Rules" }).getAttribute("aria-sort");
  await follow(page, "Refusals", "Refusals");
  await page.getByRole("button", { name: "Watch" }).click();
  await page.getByText(/sidecars are watched/).waitFor();
  process.stdout.write("watching\n");
  await page.getByRole("link", { name: "explain" }).first().waitFor({ timeout: 60_000 });
  await look(page, "refusals");
  await page.getByLabel("Request id").fill(wanted.requestId);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "Why was it refused?" }).waitFor();
  await page.getByRole("article").first().waitFor();
  await look(page, "refusal");
  await follow(page, "Tenants", "Tenants");
  await page.getByLabel("Id or host of a tenant").fill(wanted.tenant);
  await page.getByRole("button", { name: "Look up" }).click();
  await page.getByRole("heading", { level: 2, name: wanted.tenant }).first().waitFor();
  await look(page, "tenant");
  await page.getByLabel("Id or host of a tenant").fill("nobody-of-this-name");
  await page.getByRole("button", { name: "Look up" }).click();
  await page.locator(".card").waitFor();
  saw.notes.unknownTenant = await page.locator(".card").innerText();
  await follow(page, "Sidecars", "Sidecars");
  await page.getByRole("table").waitFor();
  await look(page, "sidecars");
  await follow(page, "Rollouts", "Rollouts");
  await page.getByRole("table").waitFor();
  await look(page, "rollouts");
  // By keyboard alone: the first stop is the way past the header, and the pages are links.
  await page.goto(`${wanted.origin}/#/`);
  await page.reload();
  await page.getByRole("heading", { level: 1, name: "Who calls whom" }).waitFor();
  await page.keyboard.press("Tab");
  saw.notes.firstStop = await page.evaluate(() => document.activeElement.textContent);
  await page.locator("svg.graph a").first().focus();
  await page.keyboard.press("Enter");
  await page.locator("main h2", { hasText: "Allowlist" }).waitFor();
  saw.notes.byKeyboard = page.url();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByRole("heading", { level: 1, name: "Sign in" }).waitFor();
  await page.goto(wanted.link);
  await page.getByText("used already").waitFor();
  saw.notes.usedLink = await page.locator("main").innerText();
}

async function main() {
  wanted.origin = new URL(wanted.link).origin;
  const browser = await chromium.launch({ executablePath: wanted.chromium, args: ["--no-sandbox", "--disable-gpu"] });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
    page.setDefaultTimeout(30_000);
    // Answers of 401 and 404 are part of the walk; the browser itself reports each as an error to load.
    const expected = /the server responded with a status of (401|404)/;
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type()) && !expected.test(message.text())) saw.errors.push(message.text());
    });
    page.on("pageerror", (error) => saw.errors.push(String(error)));
    page.on("request", (request) => {
      if (!request.url().startsWith(wanted.origin)) saw.errors.push(`asks ${request.url()}`);
    });
    await walk(page).catch(async (error) => {
      saw.failed = `${error}\nat ${page.url()}\n${await page.locator("body").innerText().catch(() => "")}`;
    });
  } finally {
    await browser.close();
  }
  process.stdout.write(`${JSON.stringify(saw)}\n`);
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
