// Gives the Timeline node its strip of clip cards. The node's text input holds everything; the strip shows and edits it.

import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";
import { chain, isWired, widgetOf } from "../graph.js";
import { TimelineView } from "./view.js";

const NODE = "VidRDTimeline";
const EVENT = "vidrd.timeline";
const HEIGHT = 520; // pixels, the least of the strip and what is below it
const WIDTH = 900;
const INTERVAL = 400; // milliseconds between two looks whether the text was changed elsewhere
const SETTINGS = ["negative_prompt", "width", "height", "cfg", "steps", "sampler_name", "scheduler", "preset", "loop"];

const views = new Map(); // node -> its view
const former = new Map(); // id of a node that was removed -> its view

function valueOf(node, name) {
  return isWired(node, name) ? undefined : widgetOf(node, name)?.value;
}

// The text stays what is saved, copied, undone and sent; only its box is not shown.
function hideText(widget) {
  widget.hidden = true;
  widget.options ??= {};
  widget.options.hidden = true;
  widget.computeSize = () => [0, -4];
  widget.computeLayoutSize = () => ({ minHeight: 0, maxHeight: 0, minWidth: 0 });
  if (widget.element) widget.element.style.display = "none";
}

function hostOf(node) {
  const widget = widgetOf(node, "timeline");
  return {
    read: () => (isWired(node, "timeline") ? null : String(widget.value ?? "")),
    write: (text) => {
      widget.value = text;
      widget.callback?.(text);
    },
    step: (work) => {
      app.canvas.emitBeforeChange?.();
      try {
        work();
        node.graph?.change?.();
      } finally {
        app.canvas.emitAfterChange?.();
      }
    },
    run: () => String(valueOf(node, "run_name") ?? ""),
    fps: () => Number(valueOf(node, "fps") ?? 8),
    settings: () => Object.fromEntries(SETTINGS.map((name) => [name, valueOf(node, name)])),
  };
}

// Whether a node is in the open workflow, or in one of its subgraphs.
function isOpen(node) {
  const root = app.rootGraph ?? app.graph;
  return !!node.graph && (node.graph === root || root.subgraphs?.get(node.graph.id) === node.graph);
}

// Nodes 2.0 goes on showing the element of a node whose place another one of its id has taken, as undo does it.
function takePlace(node) {
  const [view, old] = [views.get(node), former.get(String(node.id))];
  if (!view || !old || view.element.isConnected) return;
  if (old.element.isConnected) old.element.replaceWith(view.element);
  former.delete(String(node.id));
}

function addStrip(node) {
  const text = widgetOf(node, "timeline");
  if (!text) return;
  hideText(text);
  const view = new TimelineView(hostOf(node));
  const widget = node.addDOMWidget("strip", "vidrd_timeline", view.element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getValue: () => "", setValue: () => {},
  });
  widget.serialize = false;
  widget.computeLayoutSize = () => ({ minHeight: HEIGHT, minWidth: WIDTH - 40 });
  const least = node.computeSize();
  node.setSize([Math.max(node.size[0], WIDTH, least[0]), Math.max(node.size[1], least[1])]);
  // Copies are also made only to be written down: a strip is at work while its node is in a graph.
  view.gone = true;
  let look;
  function begin() {
    if (views.has(node)) return;
    views.set(node, view);
    view.gone = false;
    let [others, wasOpen] = ["", false];
    look = setInterval(() => {
      if (wasOpen && !isOpen(node)) return end(); // nodes in a subgraph are not told that their workflow was closed
      wasOpen ||= isOpen(node);
      takePlace(node);
      if (!view.reread()) {
        const now = JSON.stringify([hostOf(node).run(), hostOf(node).settings(), hostOf(node).fps()]);
        if (now !== others) view.refreshSoon();
        others = now;
      }
    }, INTERVAL);
  }
  function end() {
    if (!views.has(node)) return;
    clearInterval(look);
    view.gone = true;
    views.delete(node);
    for (const [id, one] of former) if (!one.element.isConnected) former.delete(id);
    former.set(String(node.id), view);
  }
  chain(node, "onAdded", begin);
  chain(node, "onRemoved", end);
}

// Where an undo puts new nodes into the graph, the card that had the focus gets it again.
let focused;

app.registerExtension({
  name: "VidRD.Timeline",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    addStrip(node);
    chain(node, "onConfigure", () => {
      const view = views.get(node);
      if (!view) return;
      view.reread();
      setTimeout(() => takePlace(node));
      if (focused && String(focused.node) === String(node.id) && Date.now() - focused.time < 3000) {
        if (view.cards.has(focused.clip)) view.choose(focused.clip);
        setTimeout(() => {
          takePlace(node);
          view.focusCard();
        }, 50);
      }
    });
  },

  setup() {
    const find = (id) => [...views].filter(([node]) => String(node.id) === String(id).split(":").at(-1));
    api.addEventListener(EVENT, ({ detail }) => {
      for (const [, view] of find(detail.node)) view.told(detail);
    });
    for (const kind of ["execution_success", "execution_error", "execution_interrupted", "reconnected"]) {
      api.addEventListener(kind, () => {
        for (const view of views.values()) view.ended();
      });
    }
    document.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || !views.size) return;
      // The browser's own undo would go back in a field that was left, and focus it, while the graph's is at work.
      const isTyping = document.activeElement?.matches("input, textarea, [contenteditable]");
      if (["z", "y"].includes(event.key.toLowerCase()) && !isTyping) event.preventDefault();
      const found = [...views].find(([, view]) => view.element.contains(document.activeElement));
      if (found) focused = { node: found[0].id, clip: found[1].chosen, time: Date.now() };
    }, true);
  },
});
