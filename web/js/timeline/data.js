// A timeline as data: reading and writing its text, and the edits of its clips. vidrd_core/jobs/timeline.py describes it
// and decides what is finished; here nothing is decided. Every edit gives a new timeline and leaves the old one alone.

const VERSION = 1;
const BIG_SEED = /("seed"\s*:\s*)(\d{16,})/g; // beyond JavaScript's exact numbers: kept as text
const DEFAULTS = { frames: 0, lock: false, take: "", branch: "" };

export function parse(text) {
  const values = JSON.parse(text.replace(BIG_SEED, '$1"$2"'));
  if (!Array.isArray(values?.clips) || !values.clips.length) throw new Error("the timeline has no list of clips");
  if (values.version !== VERSION) throw new Error(`the timeline's version is ${values.version}, not ${VERSION}`);
  return { clips: values.clips, end: values.end ?? "" };
}

export function stringify({ clips, end }) {
  const lines = clips.map((clip) => {
    const entries = Object.entries(clip).filter(([name, value]) => value !== undefined && value !== DEFAULTS[name]);
    return JSON.stringify(Object.fromEntries(entries));
  });
  return `{"version": ${VERSION}, "clips": [\n${lines.join(",\n")}\n]${end ? `, "end": ${JSON.stringify(end)}` : ""}}`;
}

/* Reading */

export function clipOf(timeline, id) {
  return timeline.clips.find((clip) => clip.id === id);
}

export function before(timeline, clip) {
  if (clip.after !== undefined && clip.after !== null) return clipOf(timeline, clip.after);
  return timeline.clips[timeline.clips.indexOf(clip) - 1];
}

export function wayTo(timeline, clip) {
  const way = [];
  for (let one = clip; one && way.length <= timeline.clips.length; one = before(timeline, one)) way.unshift(one);
  return way;
}

function begins(clip) {
  return clip.after !== undefined && clip.after !== null;
}

export function shown(timeline) {
  const end = timeline.end && clipOf(timeline, timeline.end);
  if (end) return wayTo(timeline, end);
  const branch = timeline.clips.findIndex((clip, place) => place > 0 && begins(clip));
  return branch < 0 ? timeline.clips : timeline.clips.slice(0, branch);
}

// The last clip of every branch, with a name for it.
export function branches(timeline) {
  const found = [];
  let first = timeline.clips[0];
  timeline.clips.forEach((clip, place) => {
    if (begins(clip)) first = clip;
    const next = timeline.clips[place + 1];
    if (!next || begins(next)) found.push({ end: clip.id, first, name: first.branch || "" });
  });
  return found.map((one, place) => ({ ...one, name: one.name || (place ? `branch ${place + 1}` : "main") }));
}

/* Editing */

const LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789";

export function freshId(timeline) {
  for (;;) {
    const id = Array.from({ length: 6 }, () => LETTERS[Math.floor(Math.random() * LETTERS.length)]).join("");
    if (!clipOf(timeline, id)) return id;
  }
}

export function freshSeed() {
  return Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
}

export function change(timeline, id, changes) {
  return { ...timeline, clips: timeline.clips.map((clip) => (clip.id === id ? { ...clip, ...changes } : clip)) };
}

// The list with a clip put in at a place; the end follows where the last clip got a successor.
function put(timeline, place, clip) {
  return { ...timeline, clips: [...timeline.clips.slice(0, place), clip, ...timeline.clips.slice(place)] };
}

// A new clip after one of the branch that is shown; what follows in this branch then follows the new one, and other
// branches stay as they are.
export function insertAfter(timeline, id, clip) {
  const way = shown(timeline);
  const next = way[way.findIndex((one) => one.id === id) + 1];
  const wasEnd = timeline.end === id;
  if (next && begins(next)) {
    const place = timeline.clips.indexOf(next);
    const freed = { ...timeline, clips: timeline.clips.map((one) => (one === next ? { ...one, after: undefined } : one)) };
    const branch = next.branch;
    freed.clips[place] = { ...freed.clips[place], branch: undefined };
    return put(freed, place, { ...clip, after: id, branch });
  }
  const place = timeline.clips.findIndex((one) => one.id === id) + 1;
  const longer = put(timeline, place, clip);
  return wasEnd ? { ...longer, end: clip.id } : longer;
}

export function insertBefore(timeline, id, clip) {
  const next = clipOf(timeline, id);
  const place = timeline.clips.indexOf(next);
  const { after, branch } = next;
  const freed = change(timeline, id, { after: undefined, branch: undefined });
  return put(freed, place, begins(next) ? { ...clip, after, branch } : clip);
}

// Without a clip; what followed it follows the one before it. The last one of all stays.
export function remove(timeline, id) {
  if (timeline.clips.length === 1) return timeline;
  const gone = clipOf(timeline, id);
  const earlier = before(timeline, gone);
  const place = timeline.clips.indexOf(gone);
  let clips = timeline.clips.filter((clip) => clip !== gone);
  clips = clips.map((clip) => (clip.after === id ? { ...clip, after: earlier?.id ?? "" } : clip));
  const next = timeline.clips[place + 1];
  if (begins(gone) && next && !begins(next)) {
    clips = clips.map((clip) => (clip.id === next.id ? { ...clip, after: gone.after, branch: gone.branch } : clip));
  }
  if (clips[0].after === "") clips = [{ ...clips[0], after: undefined }, ...clips.slice(1)];
  const isWholeBranch = begins(gone) && (!next || begins(next));
  const end = timeline.end !== id ? timeline.end : isWholeBranch ? "" : (earlier?.id ?? "");
  return { clips, end };
}

// A new branch that goes on after one clip; it becomes the one that is shown.
export function branch(timeline, id, clip) {
  const name = `branch ${branches(timeline).length + 1}`;
  const added = { ...clip, after: id, branch: name };
  return { clips: [...timeline.clips, added], end: added.id };
}

export function show(timeline, end) {
  return { ...timeline, end: end === branches(timeline)[0].end ? "" : end };
}
