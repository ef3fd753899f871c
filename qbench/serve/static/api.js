/** Requests to the server that this page came from. */

const KEY = "qbench-token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function keepToken(token) {
  sessionStorage.setItem(KEY, token);
}

async function send(path, method = "GET", body = undefined) {
  const headers = {};
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The server does not answer. Start qbench serve again; what was answered is kept.");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Refused(response.status, told?.error?.message ?? `The server answered with status ${response.status}.`);
}

const json = async (...request) => (await send(...request)).json();
const one = (id) => `/compare/conversations/${encodeURIComponent(id)}`;

export const about = () => json("/compare/about");
export const conversations = () => json("/compare/conversations");
export const conversation = (id) => json(one(id));
export const remove = (id) => json(one(id), "DELETE");
export const exported = async (id, format) => (await send(`${one(id)}/export?format=${format}`)).blob();
export const stop = (turn) => json(`/compare/turns/${turn}/stop`, "POST");
export const vote = (turn, choice) => json(`/compare/turns/${turn}/vote`, "POST", { choice });

/** Ask both, and hand on each event as it comes. */
export async function ask(wanted, onEvent) {
  const response = await send("/compare/turns", "POST", wanted);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch {
      throw new Refused(0, "The connection to the server broke off; what had arrived is kept.");
    }
    if (read.done) return;
    const lines = (kept + read.value).split("\n");
    kept = lines.pop();
    for (const line of lines) onEvent(JSON.parse(line));
  }
}
