// The server's API. Whatever goes wrong comes as an ApiError whose message says in words what to do.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const WORDS = {
  401: "This address needs its token. Open the link that `evergreen serve` printed, with ?token= in it.",
  403: "The server refused this page. Open it at the very address that `evergreen serve` printed.",
  404: "The server does not know this any more. Reload the page.",
  413: "This is too long for the server. Shorten it and try again.",
};

async function call(method, path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. See whether `evergreen serve` still runs, then try again.", 0);
  }
  if (!response.ok) throw new ApiError(await reason(response), response.status);
  return response;
}

async function reason(response) {
  try {
    const { message } = (await response.json()).error;
    if (typeof message === "string" && message.trim()) return message;
  } catch {
    // Not this API's own words: a proxy's page, or none. The status has to do.
  }
  const failed = `The server failed (status ${response.status}). What went wrong stands in its terminal; then try again.`;
  return WORDS[response.status] ?? failed;
}

const json = async (...request) => (await call(...request)).json();
const path = encodeURIComponent;
// Unknown fields are refused, and so are nulls where a value is meant: what is not given is left out.
const given = (fields) => Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== ""));

export const contracts = () => json("GET", "/api/contracts");
export const contract = (id) => json("GET", `/api/contracts/${path(id)}`);
export const categories = () => json("GET", "/api/categories");
export const ask = (question, contract_id, signal) => json("POST", "/api/ask", { question, contract_id }, signal);
export const candidates = (question, contract_id, signal) =>
  json("POST", "/api/candidates", { question, contract_id }, signal);
/** `kind` is rating, correction, choice or skip. */
export const feedback = (kind, fields) => call("POST", `/api/feedback/${kind}`, given(fields));
export const queue = (limit) => json("GET", `/api/queue?limit=${limit}`);
export const startReview = (contract_id) => json("POST", "/api/reviews", { contract_id });
export const review = (id) => json("GET", `/api/reviews/${path(id)}`);

/** The file of a finished review: {blob, name}. */
export async function exported(id, format) {
  const response = await call("GET", `/api/reviews/${path(id)}/export.${format}`);
  return { blob: await response.blob(), name: fileName(response.headers.get("Content-Disposition"), format) };
}

function fileName(disposition, format) {
  const named = /filename\*=utf-8''([^;]+)/i.exec(disposition ?? "") ?? /filename="?([^";]+)"?/i.exec(disposition ?? "");
  if (!named) return `review.${format}`;
  try {
    return decodeURIComponent(named[1]);
  } catch {
    return named[1];
  }
}
