// The strip of clip cards of a Timeline node, and what can be done with the chosen one.

import {
  before, branch, branches, change, clipOf, freshId, freshSeed, insertAfter, insertBefore, parse, remove, show, shown,
  stringify,
} from "./data.js";
import { Player } from "./player.js";
import { deleteTake, fileUrl, status } from "./server.js";
import { addStyle, make, update } from "./style.js";

const WAIT = 200; // milliseconds after an edit until the server is asked again
const ALONE = { finished: "finished", changed: "changed", waiting: "waiting", running: "running", lost: "take is gone" };
const KEYS = "Arrows: choose · Enter: prompt · N: new seed · L: lock · I, Shift+I: insert after, before · B: branch · "
  + "Delete · Space: play";

// `host`: { read(): text or null, write(text), step(work) (one step of undo), run(), settings(), fps(), name }.
export class TimelineView {
  constructor(host) {
    addStyle();
    this.host = host;
    this.cards = new Map(); // clip id -> card
    this.drawn = new WeakMap(); // field -> the clip and the value that it was given last
    this.known = { clips: [], takes: {}, video: null, folder: "" };
    this.running = "";
    this.compared = "";
    this.player = new Player();
    this.build();
    this.reread();
  }

  /* Building */

  build() {
    this.choice = make("select", {
      title: "The branch that is shown and made", "aria-label": "branch",
      onchange: () => this.edit((timeline) => show(timeline, this.choice.value), ""),
    });
    this.sum = make("span", { className: "vidrd-sum", "aria-live": "polite" });
    const bar = make("div", { className: "vidrd-bar" }, this.choice, this.sum);
    this.message = make("div", { className: "vidrd-message", role: "alert" });
    this.add = make("button", {
      className: "vidrd-add", textContent: "+", title: "Add a clip at the end", "aria-label": "Add a clip at the end",
      onclick: () => this.insert(true, shown(this.timeline).at(-1).id),
    });
    this.strip = make("div", { className: "vidrd-strip", role: "listbox", "aria-label": "clips", title: KEYS }, this.add);
    this.details = make("div", { className: "vidrd-details" });
    const lower = make("div", { className: "vidrd-lower" }, this.details, this.player.element);
    this.element = make("div", { className: "vidrd-timeline" }, bar, this.message, this.strip, lower);
    this.element.addEventListener("keydown", (event) => this.key(event));
    // The canvas behind would take these for its own.
    for (const kind of ["pointerdown", "mousedown", "dblclick", "contextmenu", "copy", "paste", "cut"]) {
      this.element.addEventListener(kind, (event) => event.stopPropagation());
    }
    this.strip.addEventListener("wheel", (event) => this.scroll(event), { passive: false });
    this.buildDetails();
  }

  buildDetails() {
    this.prompt = make("textarea", {
      placeholder: "What this clip shows", spellcheck: false, "aria-label": "prompt of the clip",
      oninput: () => this.host.write(stringify(change(this.timeline, this.chosen, { prompt: this.prompt.value }))),
      onchange: () => this.set({ prompt: this.prompt.value }),
    });
    this.seed = make("input", {
      className: "vidrd-seed", inputMode: "numeric", "aria-label": "seed of the clip",
      onchange: () => this.setSeed(),
    });
    this.frames = make("input", {
      className: "vidrd-frames", type: "number", min: 0, max: 4096, placeholder: "usual",
      title: "New frames that the clip adds; empty: as many as usual for the model",
      onchange: () => this.setFrames(),
    });
    const button = (textContent, title, onclick) => make("button", { textContent, title, onclick });
    this.lockButton = button("Lock", "Keep this take whatever changes (L)", () => this.lock());
    this.deleteButton = button("Delete", "Delete the clip; its takes stay on disk (Delete)", () => this.remove());
    this.takes = make("div", { className: "vidrd-takes" });
    this.details.append(
      this.prompt,
      make("div", { className: "vidrd-row" },
        make("label", {}, "seed", this.seed),
        button("New seed", "Another take of the same prompt (N)", () => this.reseed()),
        make("label", {}, "new frames", this.frames)),
      make("div", { className: "vidrd-row" },
        this.lockButton,
        button("Insert before", "A new clip before this one (Shift+I)", () => this.insert(false)),
        button("Insert after", "A new clip after this one (I)", () => this.insert(true)),
        button("Branch", "Another continuation of the video up to this clip (B)", () => this.branch()),
        this.deleteButton),
      this.takes,
    );
  }

  /* What the node holds */

  // Reads the node's text where it is another than what is shown; gives whether it was.
  reread() {
    const text = this.host.read();
    if (text === this.text && this.timeline) return false;
    this.text = text;
    try {
      if (text === null) throw new Error("The timeline comes through a wire: edit it where that begins.");
      this.timeline = parse(text);
      this.problem = "";
    } catch (error) {
      this.problem = text === null ? error.message : `The timeline cannot be read (${error.message}): undo, or correct its text.`;
      this.timeline ??= { clips: [{ id: "a1", prompt: "", seed: 1 }], end: "" };
    }
    if (!shown(this.timeline).some((clip) => clip.id === this.chosen)) this.chosen = shown(this.timeline)[0].id;
    this.draw();
    this.refreshSoon();
    return true;
  }

  // One step of undo; then the clip `choose` is chosen ("": the last).
  edit(work, choose = this.chosen) {
    if (this.problem || this.gone) return;
    const edited = work(this.timeline);
    const text = stringify(edited);
    if (text === this.text && text === this.written) return;
    this.host.step(() => this.host.write(text));
    this.text = this.written = text;
    this.timeline = edited;
    this.chosen = choose || shown(edited).at(-1).id;
    this.draw();
    this.refreshSoon();
  }

  /* Gestures */

  set(changes) {
    this.edit((timeline) => change(timeline, this.chosen, changes));
  }

  setSeed() {
    const text = this.seed.value.trim();
    if (!/^\d{1,19}$/.test(text) || BigInt(text) > 2n ** 63n - 1n) {
      this.seed.value = clipOf(this.timeline, this.chosen).seed;
      return;
    }
    this.set({ seed: Number.isSafeInteger(Number(text)) ? Number(text) : text });
  }

  setFrames() {
    const frames = Math.min(4096, Math.max(0, Math.round(Number(this.frames.value) || 0)));
    this.frames.value = frames || "";
    this.set({ frames });
  }

  reseed() {
    this.set({ seed: freshSeed(), lock: false, take: "" });
  }

  lock() {
    const clip = clipOf(this.timeline, this.chosen);
    const take = clip.take || this.stateOf(clip.id).seen;
    if (clip.lock) this.set({ lock: false, take: "" });
    else if (take) this.set({ lock: true, take });
  }

  insert(after, id = this.chosen) {
    const clip = { id: freshId(this.timeline), prompt: clipOf(this.timeline, id).prompt ?? "", seed: freshSeed() };
    this.edit((timeline) => (after ? insertAfter : insertBefore)(timeline, id, clip), clip.id);
    this.focusCard();
  }

  remove() {
    const way = shown(this.timeline);
    const place = way.findIndex((clip) => clip.id === this.chosen);
    if (this.timeline.clips.length === 1) return;
    const next = way[place + 1] ?? way[place - 1] ?? this.timeline.clips.find((clip) => clip.id !== this.chosen);
    this.edit((timeline) => remove(timeline, this.chosen), next.id);
    if (!shown(this.timeline).some((clip) => clip.id === this.chosen)) this.choose(shown(this.timeline).at(-1).id);
    this.focusCard();
  }

  branch() {
    const way = shown(this.timeline);
    const next = way[way.findIndex((clip) => clip.id === this.chosen) + 1] ?? clipOf(this.timeline, this.chosen);
    const clip = { id: freshId(this.timeline), prompt: next.prompt ?? "", seed: freshSeed() };
    this.edit((timeline) => branch(timeline, this.chosen, clip), clip.id);
    this.focusCard();
  }

  // A take that follows the clip before it as it is now needs only its own prompt and seed; another one is locked.
  pick(id) {
    const take = this.known.takes[id];
    const earlier = before(this.timeline, clipOf(this.timeline, this.chosen));
    const follows = earlier ? this.stateOf(earlier.id).take : null;
    const { prompt, seed, frames } = take;
    const made = { prompt, seed, frames };
    this.set(follows === take.follows ? { ...made, lock: false, take: "" } : { ...made, lock: true, take: id });
  }

  // Another branch from one take: that take in the place of this clip, and a clip after it.
  branchFrom(id) {
    const { prompt, seed, frames } = this.known.takes[id];
    const clip = clipOf(this.timeline, this.chosen);
    const earlier = before(this.timeline, clip);
    const kept = { id: freshId(this.timeline), prompt, seed, frames, lock: true, take: id };
    const added = { id: freshId({ clips: [...this.timeline.clips, kept] }), prompt, seed: freshSeed() };
    this.edit((timeline) => {
      const begun = branch(timeline, earlier?.id ?? "", kept);
      return { clips: [...begun.clips, added], end: added.id };
    }, added.id);
  }

  async drop(id) {
    try {
      await deleteTake(this.host.run(), id);
    } catch (error) {
      this.say(error.message);
      return;
    }
    await this.refresh();
  }

  compare(id) {
    if (!this.compared || this.compared === id || !this.known.takes[this.compared]) {
      this.compared = this.compared === id ? "" : id;
      this.drawTakes();
      return;
    }
    const shownTakes = [this.compared, id].map((take) => ({ id: take, caption: this.caption(take) }));
    this.compared = "";
    this.player.compare(this.known.folder, shownTakes);
    this.drawTakes();
  }

  choose(id) {
    if (this.chosen !== id) this.compared = "";
    this.chosen = id;
    for (const [one, card] of this.cards) this.markChosen(one, card);
    this.drawDetails();
  }

  focusCard() {
    this.cards.get(this.chosen)?.element.focus({ preventScroll: false });
  }

  key(event) {
    const { key, ctrlKey, metaKey, altKey, shiftKey } = event;
    if (event.target.matches("input, textarea, select")) {
      if (key === "Escape") this.focusCard();
      if (!(ctrlKey || metaKey)) event.stopPropagation();
      return;
    }
    if (ctrlKey || metaKey || altKey) return; // undo, queue and the like are ComfyUI's
    if (event.target.matches("button") && ["Enter", " "].includes(key)) return event.stopPropagation();
    const way = shown(this.timeline);
    const place = way.findIndex((clip) => clip.id === this.chosen);
    const go = (to) => {
      this.choose(way[Math.min(way.length - 1, Math.max(0, to))].id);
      this.focusCard();
    };
    const gestures = {
      ArrowLeft: () => go(place - 1), ArrowRight: () => go(place + 1), Home: () => go(0), End: () => go(way.length - 1),
      Enter: () => this.prompt.focus(), " ": () => this.player.toggle(), n: () => this.reseed(), l: () => this.lock(),
      i: () => this.insert(!shiftKey), b: () => this.branch(), Delete: () => this.remove(), Backspace: () => this.remove(),
    };
    const gesture = gestures[key.length === 1 ? key.toLowerCase() : key];
    event.stopPropagation();
    if (!gesture) return;
    event.preventDefault();
    gesture();
  }

  // The wheel moves the strip while it can; at its ends the canvas zooms as elsewhere.
  scroll(event) {
    if (event.ctrlKey || this.strip.scrollWidth <= this.strip.clientWidth) return;
    const by = event.deltaY || event.deltaX;
    const room = by < 0 ? this.strip.scrollLeft : this.strip.scrollWidth - this.strip.clientWidth - this.strip.scrollLeft;
    if (room <= 1) return;
    event.preventDefault();
    event.stopPropagation();
    this.strip.scrollLeft += by;
  }

  /* Drawing */

  stateOf(id) {
    const known = this.known.clips.find((one) => one.id === id) ?? { state: "waiting", take: "", seen: "", joins: true };
    return this.running === id ? { ...known, state: "running" } : known;
  }

  draw() {
    const way = shown(this.timeline);
    const wanted = new Set(way.map((clip) => clip.id));
    for (const [id, card] of this.cards) {
      if (wanted.has(id)) continue;
      card.element.remove();
      this.cards.delete(id);
    }
    let next = this.strip.firstElementChild;
    way.forEach((clip, number) => {
      if (!this.cards.has(clip.id)) this.cards.set(clip.id, this.newCard(clip.id));
      const card = this.cards.get(clip.id);
      if (card.element !== next) this.strip.insertBefore(card.element, next);
      next = card.element.nextElementSibling;
      this.drawCard(card, clip, number);
    });
    this.drawBar(way);
    this.drawDetails();
  }

  drawBar(way) {
    const all = branches(this.timeline);
    const end = this.timeline.end || all[0].end;
    this.choice.replaceChildren(...all.map((one) => make("option", { value: one.end, textContent: one.name })));
    this.choice.value = end;
    this.choice.hidden = all.length === 1;
    const states = way.map((clip) => this.stateOf(clip.id).state);
    const count = (state) => states.filter((one) => one === state).length;
    const frames = way.map((clip) => this.known.takes[this.stateOf(clip.id).take]?.new_frames ?? 0).reduce((a, b) => a + b);
    const parts = [`${way.length} ${way.length === 1 ? "clip" : "clips"}`];
    for (const state of ["finished", "changed", "waiting", "running", "lost"]) {
      if (count(state)) parts.push(`${count(state)} ${ALONE[state]}`);
    }
    if (frames) parts.push(`${frames} frames finished, ${(frames / this.host.fps()).toFixed(1)} s`);
    this.sum.textContent = parts.join(" · ");
    this.sum.title = this.sum.textContent;
    this.message.textContent = this.problem || this.trouble || "";
  }

  newCard(id) {
    const image = make("img", { loading: "lazy", decoding: "async", draggable: false, alt: "" });
    const number = make("span", { className: "vidrd-number" });
    const lock = make("span", { className: "vidrd-lock", textContent: "locked" });
    const state = make("span", { className: "vidrd-state" });
    const picture = make("div", { className: "vidrd-picture" }, image, number, lock, state);
    const words = make("div", { className: "vidrd-words" });
    const [seed, frames] = [make("span"), make("span")];
    const facts = make("div", { className: "vidrd-facts" }, seed, frames);
    const element = make("div", {
      className: "vidrd-card", role: "option", tabIndex: -1, "data-clip": id,
      onclick: () => this.choose(id), ondblclick: () => this.prompt.focus(), onfocus: () => this.choose(id),
      onpointerenter: () => this.hover(id, picture, true), onpointerleave: () => this.hover(id, picture, false),
    }, picture, words, facts);
    return { element, picture, image, number, lock, state, words, seed, frames };
  }

  hover(id, picture, isOver) {
    picture.querySelector("video")?.remove();
    const { seen } = this.stateOf(id);
    if (!isOver || !seen) return;
    const video = make("video", { src: fileUrl(this.known.folder, "takes", `${seen}.mp4`), muted: true, loop: true, autoplay: true });
    picture.querySelector("img").after(video);
  }

  drawCard(card, clip, number) {
    const known = this.stateOf(clip.id);
    const take = this.known.takes[known.seen];
    const url = known.seen ? fileUrl(this.known.folder, "takes", `${known.seen}.jpg`) : "";
    if ((card.image.getAttribute("src") ?? "") !== url) url ? card.image.setAttribute("src", url) : card.image.removeAttribute("src");
    const isStale = known.state !== "finished";
    if (card.picture.classList.contains("vidrd-stale") !== isStale) card.picture.classList.toggle("vidrd-stale");
    update(card.image, { hidden: !url });
    update(card.number, { textContent: String(number + 1) });
    update(card.lock, { hidden: !clip.lock, textContent: known.joins ? "locked" : "locked, seam may show" });
    update(card.state, { textContent: ALONE[known.state], "data-state": known.state });
    update(card.words, { textContent: clip.prompt ?? "", title: clip.prompt ?? "" });
    update(card.seed, { textContent: `seed ${clip.seed ?? 0}` });
    const frames = isStale ? clip.frames : take?.new_frames;
    update(card.frames, { textContent: frames ? `${frames} new` : "" });
    const label = `clip ${number + 1}, ${ALONE[known.state]}${clip.lock ? ", locked" : ""}: ${clip.prompt || "no prompt"}`;
    update(card.element, { "aria-label": label });
    this.markChosen(clip.id, card);
  }

  markChosen(id, card) {
    const isChosen = id === this.chosen;
    update(card.element, { "aria-selected": String(isChosen), tabIndex: isChosen ? 0 : -1 });
  }

  drawDetails() {
    const clip = clipOf(this.timeline, this.chosen);
    // What is being typed stays while an answer of the server has the strip drawn again.
    const fill = (field, value) => {
      const drawn = JSON.stringify([clip.id, value]);
      if (this.drawn.get(field) === drawn) return;
      this.drawn.set(field, drawn);
      if (field.value !== value) field.value = value;
    };
    fill(this.prompt, clip.prompt ?? "");
    fill(this.seed, String(clip.seed ?? 0));
    fill(this.frames, clip.frames ? String(clip.frames) : "");
    this.lockButton.setAttribute("aria-pressed", Boolean(clip.lock));
    this.lockButton.textContent = clip.lock ? "Unlock" : "Lock";
    this.lockButton.disabled = !clip.lock && !this.stateOf(clip.id).seen;
    this.deleteButton.disabled = this.timeline.clips.length === 1;
    this.drawTakes();
  }

  caption(id) {
    const take = this.known.takes[id];
    return take ? `seed ${take.seed}: ${take.prompt || "no prompt"}` : "";
  }

  drawTakes() {
    const used = this.stateOf(this.chosen).take;
    const own = Object.entries(this.known.takes).filter(([id, take]) => take.clip === this.chosen || id === used);
    const text = JSON.stringify([own, used, this.compared, this.known.folder]);
    if (text === this.takesShown) return;
    this.takesShown = text;
    this.takes.replaceChildren(...own.map(([id, take]) => this.takeCard(id, take, id === used)));
  }

  takeCard(id, take, isUsed) {
    const image = make("img", { src: fileUrl(this.known.folder, "takes", `${id}.jpg`), alt: "", draggable: false });
    const picture = make("div", {
      className: "vidrd-picture", title: `${this.caption(id)}. Click to use this take.`,
      onclick: () => !isUsed && this.pick(id),
      onpointerenter: () => picture.append(make("video", {
        src: fileUrl(this.known.folder, "takes", `${id}.mp4`), muted: true, loop: true, autoplay: true,
      })),
      onpointerleave: () => picture.querySelector("video")?.remove(),
    }, image);
    const tool = (textContent, title, onclick, more = {}) => make("button", { textContent, title, onclick, ...more });
    const tools = make("div", { className: "vidrd-tools" },
      tool(isUsed ? "Used" : "Use", "Use this take", () => this.pick(id), { disabled: isUsed }),
      tool("Compare", this.compared && this.compared !== id ? "Side by side with the other" : "Side by side with another take",
        () => this.compare(id), { "aria-pressed": this.compared === id }));
    const more = make("div", { className: "vidrd-tools" },
      tool("Branch", "Another continuation from this take", () => this.branchFrom(id)),
      tool("Delete", "Delete this take from disk; its seed and prompt make it again", () => this.drop(id)));
    const card = make("div", { className: "vidrd-take", "data-take": id, "data-used": isUsed }, picture,
      make("small", { textContent: `seed ${take.seed}`, title: this.caption(id) }), tools, more);
    return card;
  }

  /* The server */

  refreshSoon() {
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.refresh(), WAIT);
  }

  async refresh() {
    if (this.problem || this.gone) return;
    const asked = { run: this.host.run(), timeline: this.text, settings: this.host.settings(), fps: this.host.fps() };
    try {
      const known = await status(asked);
      if (asked.timeline !== this.text) return; // edited meanwhile; another request is on its way
      this.known = known;
      this.trouble = "";
    } catch (error) {
      this.trouble = `What is finished is not known: ${error.message}. Edits are kept in the workflow all the same.`;
    }
    this.draw();
    this.player.update(this.host.run(), this.known.folder, this.known.video);
  }

  // What the running node tells: a clip began or is finished.
  told({ clip, state }) {
    this.running = state === "running" ? clip : "";
    this.refresh();
  }

  ended() {
    this.running = "";
    this.refresh();
  }

  say(text) {
    this.trouble = text;
    this.drawBar(shown(this.timeline));
  }
}
