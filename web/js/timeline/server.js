// What the server says of a timeline: its takes, what is stale, seams. See nodes/timeline_routes.py.

import { api } from "../../../../scripts/api.js";

async function ask(path, asked) {
  let answer;
  try {
    answer = await api.fetchApi(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
    });
  } catch {
    throw new Error("the server does not answer");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error ?? `the server answers ${answer.status}`);
  return found;
}

export const status = (asked) => ask("/vidrd/timeline", asked);
export const deleteTake = (run, take) => ask("/vidrd/timeline/delete", { run, take });
export const seamFigures = (run, video) => ask("/vidrd/timeline/seams", { run, video });

export function fileUrl(folder, kind, name) {
  const place = new URLSearchParams({ filename: name, subfolder: `${folder}/${kind}`, type: "output" });
  return api.apiURL(`/view?${place}`);
}
