// The joined video with marks at its seams, two takes side by side, and the figures of the seams.

import { fileUrl, seamFigures } from "./server.js";
import { make } from "./style.js";

const SHOWS = 1.5; // times the change inside clips from which a seam is marked as one that shows

export class Player {
  constructor() {
    this.screens = make("div", { className: "vidrd-screens" });
    this.done = make("div", { className: "vidrd-done" });
    this.track = make("div", {
      className: "vidrd-track", title: "Click to go there; a mark is a seam between two clips",
      onpointerdown: (event) => this.seek(event),
    }, this.done);
    this.play = make("button", { textContent: "Play", title: "Play or pause (Space)", onclick: () => this.toggle() });
    this.measure = make("button", {
      textContent: "Measure seams", title: "How much each seam shows, as Seam Report measures it",
      onclick: () => this.showFigures(),
    });
    this.back = make("button", { textContent: "Back to the video", onclick: () => this.showVideo() });
    this.said = make("span", { className: "vidrd-sum" });
    this.figures = make("table", { className: "vidrd-figures", hidden: true });
    const bar = make("div", { className: "vidrd-bar" }, this.play, this.measure, this.back, this.said);
    this.element = make("div", { className: "vidrd-player" }, this.screens, this.track, bar, this.figures);
    this.name = undefined;
    this.showNothing();
  }

  // What there is to play: { name, seams, frames, fps } or null, of a run.
  update(run, folder, video) {
    this.run = run;
    const name = video ? `${folder}/${video.name}` : "";
    if (name === this.name) return;
    Object.assign(this, { name, folder, video });
    if (!this.comparing) this.showVideo();
  }

  get videos() {
    return [...this.screens.querySelectorAll("video")];
  }

  screen(url, caption) {
    const video = make("video", {
      src: url, muted: true, loop: true, playsInline: true, preload: "auto",
      onclick: () => this.toggle(), ontimeupdate: () => this.showTime(),
      onplay: () => this.showTime(), onpause: () => this.showTime(),
    });
    return make("figure", {}, video, caption ? make("figcaption", { textContent: caption, title: caption }) : null);
  }

  showNothing() {
    const words = "The finished video plays here. Queue the workflow to make what is waiting or changed.";
    this.screens.replaceChildren(make("div", { className: "vidrd-empty", textContent: words }));
    this.track.replaceChildren(this.done);
    this.finish();
  }

  showVideo() {
    this.comparing = false;
    this.figures.hidden = true;
    if (!this.video) return this.showNothing();
    this.screens.replaceChildren(this.screen(fileUrl(this.folder, "videos", `${this.video.name}.mp4`)));
    const marks = this.video.seams.map((frame, number) => make("button", {
      className: "vidrd-seam", title: `Seam ${number + 1}, frame ${frame}`, "data-frame": frame, tabIndex: -1,
      onpointerdown: (event) => event.stopPropagation(),
      onclick: () => this.goTo(frame),
    }));
    for (const mark of marks) mark.style.left = `${(100 * mark.dataset.frame) / this.video.frames}%`;
    this.track.replaceChildren(this.done, ...marks);
    this.finish();
  }

  compare(folder, takes) {
    this.comparing = true;
    this.figures.hidden = true;
    const shown = takes.map(({ id, caption }) => this.screen(fileUrl(folder, "takes", `${id}.mp4`), caption));
    this.screens.replaceChildren(...shown);
    this.track.replaceChildren(this.done);
    this.finish();
    this.toggle(true);
  }

  finish() {
    this.back.hidden = !this.comparing;
    this.measure.hidden = this.comparing || !this.video?.seams.length;
    this.play.disabled = !this.videos.length;
    this.showTime();
  }

  toggle(play = this.videos[0]?.paused) {
    for (const video of this.videos) play ? video.play().catch(() => {}) : video.pause();
    this.showTime();
  }

  goTo(frame) {
    const [video] = this.videos;
    if (!video || !this.video) return;
    video.pause();
    video.currentTime = (frame + 0.5) / this.video.fps;
    this.showTime();
  }

  seek(event) {
    event.stopPropagation();
    const box = this.track.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    for (const video of this.videos) if (video.duration) video.currentTime = share * video.duration;
  }

  showTime() {
    const [video] = this.videos;
    const share = video?.duration ? video.currentTime / video.duration : 0;
    this.done.style.width = `${100 * share}%`;
    this.play.textContent = !video || video.paused ? "Play" : "Pause";
    if (this.comparing || !this.video) this.said.textContent = "";
    else {
      const { frames, fps } = this.video;
      const frame = Math.min(frames - 1, Math.floor((video?.currentTime ?? 0) * fps));
      this.said.textContent = `frame ${frame} of ${frames}, ${(frames / fps).toFixed(1)} s`;
    }
  }

  async showFigures() {
    const { name } = this.video;
    this.measure.disabled = true;
    this.measure.textContent = "Measuring ...";
    try {
      const { seams, inside } = await seamFigures(this.run, name);
      if (this.video?.name !== name || this.comparing) return;
      const cell = (value) => make("td", { textContent: value === null || value === undefined ? "-" : value.toFixed(2) });
      const head = ["", "change", "warping error", "motion agrees"].map((textContent) => make("th", { textContent }));
      const lines = seams.map((seam, number) => make("tr", {},
        make("th", { textContent: `seam ${number + 1}, frame ${seam.frame}` }),
        cell(seam.change), cell(seam.warping), cell(seam.agreement)));
      const usual = make("tr", {}, make("th", { textContent: "inside clips" }), cell(inside.change), cell(inside.warping), cell());
      this.figures.replaceChildren(make("tr", {}, ...head), usual, ...lines);
      this.figures.hidden = false;
      for (const seam of seams) {
        const mark = this.track.querySelector(`[data-frame="${seam.frame}"]`);
        if (mark) mark.dataset.shows = inside.change !== null && seam.change > SHOWS * inside.change;
      }
    } catch (error) {
      this.figures.replaceChildren(make("tr", {}, make("td", { textContent: error.message })));
      this.figures.hidden = false;
    } finally {
      this.measure.disabled = false;
      this.measure.textContent = "Measure seams";
    }
  }
}
