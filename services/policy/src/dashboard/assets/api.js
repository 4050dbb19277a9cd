// What the pages ask the policy service. The token lies in this origin's storage, which no other port can read.

const KEY = "tenon-session";

export class NotSignedIn extends Error {}

export function hasToken() {
  return localStorage.getItem(KEY) !== null;
}

async function ask(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  const token = localStorage.getItem(KEY);
  if (token) headers.authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(`/api${path}`, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the policy service does not answer: is it running?");
  }
  if (answer.ok) return answer;
  let text = `${answer.status}`;
  try { text = (await answer.json()).error ?? text; } catch { /* not ours to read */ }
  if (answer.status === 401) {
    localStorage.removeItem(KEY);
    throw new NotSignedIn(text);
  }
  throw new Error(text);
}

export async function get(path, signal) {
  return (await ask(path, { signal })).json();
}

export async function post(path, body) {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return (await ask(path, options)).json();
}

export async function signIn(code) {
  const { token, session } = await post("/session", { code });
  localStorage.setItem(KEY, token);
  return session;
}

export async function signOut() {
  try { await ask("/session", { method: "DELETE" }); } finally { localStorage.removeItem(KEY); }
}

// Calls `each` for every line until `signal` is aborted or the service ends the stream.
export async function watch(filter, each, signal) {
  const wanted = Object.entries(filter).filter(([, value]) => value !== "" && value !== false);
  const answer = await ask(`/tap?${new URLSearchParams(wanted)}`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.filter(Boolean).forEach((line) => each(JSON.parse(line)));
  }
}
