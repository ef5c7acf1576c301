// The nodes' widgets tell what is used: a preset shows its values, and editing one of them chooses custom; new nodes
// start with what suits the model; what a node adds to the video, and what it took, stands below its widgets; what is
// rarely changed is folded. Without this script the same graph means the same: the preset decides on the server.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { chaining, countAnew, loops, plan } from "./clip_lengths.js";
import { chain, consumers, isWired, widgetOf } from "./graph.js";
import {
  begun, isLoader, keepValues, loadSettings, loopRules, modelAhead, modelBehind, modelOf,
} from "./model_settings.js";

const CHAINED = ["VidRDReuseAndDiffuse", "VidRDManyClips", "VidRDReusePrepare"];
const TELLING = [...CHAINED, "VidRDSampleFirstClip", "VidRDReuseJoin"]; // that say how long the video gets
// A setting of the reuse and the widget that shows it.
const SETTINGS = {
  overlap_frames: "overlap_frames", noise_alpha: "noise_alpha", guidance_beta: "guidance_beta", order: "order",
  trim_frames: "trim_frames", stages: "stages", cleaner_overlap: "guidance_lead",
};
// What new nodes take of the model: which model, and widgets by the name of what suits it.
const TAKEN = {
  VidRDEmptyLatent: [modelAhead, { width: "width", height: "height", frames: "frames" }],
  VidRDSampleFirstClip: [modelOf, { steps: "steps", cfg: "cfg", scheduler: "scheduler" }],
  VidRDReuseAndDiffuse: [modelOf, { cfg: "cfg" }],
  VidRDManyClips: [modelOf, { cfg: "cfg" }],
  VidRDTimeline: [
    modelOf,
    {
      width: "width", height: "height", steps: "steps", cfg: "cfg", scheduler: "scheduler", fps: "fps",
      negative: "negative_prompt",
    },
  ],
  VidRDPreviewClip: [modelBehind, { fps: "fps" }],
  CreateVideo: [modelBehind, { fps: "fps" }],
  CLIPTextEncode: [modelOfNegative, { negative: "text" }],
};
const TOGGLE = "vidrd_advanced";
const TOLD = "vidrd_told";
const FOLDED = "vidrd_folded"; // property of a node whose height is that of its folded widgets
const PROGRESS = "$$node-text-preview"; // the frontend's name for the text that a running node shows
const LINE = 16; // pixels
const MARGIN = 4; // around what is told
const LETTER = 5.6; // pixels, about
const WIDTH = 250; // of a new node, so that a line has room
const WAIT = 50; // milliseconds until changes that come together are looked at
const FIRST_EXAMPLE = "1_chained_demo";

const runs = new WeakMap(); // what a node said of its last run, and what was planned then

/* What new nodes start with */

function modelOfNegative(node) {
  const fed = consumers(node, 0).map((next) => ({ ...next, name: next.node.inputs[next.slot].name }));
  if (!fed.length || fed.some(({ name }) => name !== "negative")) return undefined;
  return fed.map((next) => modelOf(next.node)).find((model) => model?.cfg);
}

// Widgets that hold what they began with, or what they were given here, take what suits the model.
function takeFromModel(node) {
  const known = begun.get(node);
  const [find, widgets] = TAKEN[node.comfyClass] ?? [];
  const model = known && find?.(node);
  if (!model) return;
  for (const [name, widgetName] of Object.entries(widgets)) {
    const widget = widgetOf(node, widgetName);
    if (!widget || model[name] === undefined || widget.value !== known[widgetName]) continue;
    if (isWired(node, widgetName)) continue;
    known[widgetName] = widget.value = model[name];
  }
}

function remember(node) {
  const widgets = Object.values(TAKEN[node.comfyClass]?.[1] ?? {});
  if (widgets.length) begun.set(node, Object.fromEntries(widgets.map((name) => [name, widgetOf(node, name)?.value])));
}

/* The values of a preset */

function showPreset(node) {
  const values = chaining(node);
  if (!values) return;
  for (const [name, widgetName] of Object.entries(SETTINGS)) {
    const widget = widgetOf(node, widgetName);
    if (widget && widget.value !== values[name]) widget.value = values[name];
  }
}

// Calls `changed` after a person, but no script, has changed a widget.
function onEdit(node, name, changed) {
  const widget = widgetOf(node, name);
  if (widget) chain(widget, "callback", () => changed(node, widget));
}

function chooseCustom(node) {
  const preset = widgetOf(node, "preset");
  if (preset && preset.value !== "custom") preset.value = "custom";
}

/* What a node tells */

function seconds(frames, fps) {
  return fps ? `, ${(frames / fps).toFixed(1)} s` : "";
}

function count(frames) {
  return `${frames} frame${frames === 1 ? "" : "s"}`;
}

function length({ added, frames }, verb, fps) {
  if (frames === undefined) return `${verb} ${count(added)}`;
  if (frames === added) return `${count(frames)}${seconds(frames, fps)}`;
  return `${verb} ${count(added)}, video so far ${count(frames)}${seconds(frames, fps)}`;
}

function fewer(most) {
  return `${most > 1 ? "1 to " : ""}${count(most)} fewer`;
}

function planned(node) {
  const model = modelOf(node);
  const lines = [];
  const making = plan(node);
  if (making) lines.push(length(making, "adds", model?.fps));
  if (making?.repeated) lines.push(`loop: ${fewer(making.repeated)}, where the motion is most even`);
  else if (loops(node) && model && !model.reuse) lines.push(`loop: ${loopRules().latents} latents fewer`);
  const preset = widgetOf(node, "preset")?.value;
  if (["auto", "smooth"].includes(preset) && model && !model.reuse) {
    lines.push(`${preset}: what suits the model's family, told here after the run`);
  } else if (preset === "auto" && !model) {
    lines.push("auto: what suits the model, once one is connected");
  } else if (preset === "auto") {
    lines.push(model.chains ? "auto: as the model's folder says" : "auto: the released values");
  }
  return lines;
}

function toldByRun(node, { frames, added, took, report, warnings }) {
  const model = modelOf(node);
  const verb = node.comfyClass === "VidRDReusePrepare" ? "adds" : "added";
  const lines = [length({ frames, added }, verb, model?.fps)];
  if (took) lines.push(took);
  if (!model?.reuse && report) lines.push(report);
  return [...lines, ...warnings];
}

function tell(node) {
  const widget = widgetOf(node, TOLD);
  if (!widget) return;
  const now = planned(node);
  const run = runs.get(node);
  const lines = run?.plan === now.join("\n") ? toldByRun(node, run.told) : now;
  if (widget.element.textContent === lines.join("")) return;
  widget.element.replaceChildren(...lines.map((text) => Object.assign(document.createElement("div"), { textContent: text })));
  widget.element.title = lines.join("\n");
  fitHeight(node);
}

function addTold(node) {
  const element = document.createElement("div");
  element.className = "vidrd-told";
  Object.assign(element.style, {
    font: "11px/16px sans-serif", color: "var(--descrip-text, #999)", overflow: "hidden", padding: "0 4px",
    overflowWrap: "anywhere", pointerEvents: "none",
  });
  const rows = (text) => Math.ceil((text.length * LETTER) / (node.size[0] - 4 * MARGIN));
  const height = () => {
    const count = [...element.children].reduce((all, line) => all + rows(line.textContent), 0);
    return count ? LINE * count + 2 * MARGIN : 0;
  };
  const widget = node.addDOMWidget(TOLD, "vidrd_told", element, {
    serialize: false, hideOnZoom: false, margin: MARGIN, getMinHeight: height, getMaxHeight: height, getValue: () => "", setValue() {},
  });
  widget.serialize = false;
}

/* Advanced inputs */

// As high as its widgets need; what a person made higher stays so, unless widgets were folded.
function fitHeight(node, shrink = false) {
  const least = node.computeSize();
  const height = shrink ? least[1] : Math.max(node.size[1], least[1]);
  if (height !== node.size[1]) node.setSize([node.size[0], height]);
  node.graph?.setDirtyCanvas?.(true, true);
}

function label(node) {
  return node.showAdvanced ? "Hide advanced inputs" : "Show advanced inputs";
}

const NOTHING = () => [0, -4]; // the frontend adds 4 pixels between widgets

// A folded widget is not drawn, but would keep its place.
function placeAdvanced(node) {
  for (const widget of node.widgets.filter((one) => one.advanced)) {
    if (!node.showAdvanced) widget.computeSize = NOTHING;
    else if (widget.computeSize === NOTHING) delete widget.computeSize;
  }
}

function showAdvanced(node, shown) {
  node.showAdvanced = shown;
  placeAdvanced(node);
  const toggle = widgetOf(node, TOGGLE);
  if (toggle) toggle.label = label(node);
  fitHeight(node, true);
}

// Frontends with drawn nodes fold by a widget's own flag and offer it in the node's menu alone; those whose nodes are
// elements of the page have a button of their own.
function fold(node) {
  const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
  if (!advanced.length) return;
  for (const widget of advanced) widget.advanced = true;
  const toggle = node.addWidget("button", TOGGLE, null, () => showAdvanced(node, !node.showAdvanced), {
    serialize: false, canvasOnly: true,
  });
  toggle.serialize = false;
  toggle.label = label(node);
  node.properties[FOLDED] = true;
  placeAdvanced(node);
}

// Workflows of versions that folded nothing hold nodes as high as all their inputs.
function shrinkOnce(node, saved) {
  if (!widgetOf(node, TOGGLE) || saved?.properties?.[FOLDED] || node.showAdvanced) return;
  node.properties[FOLDED] = true;
  const folded = node.widgets.filter((widget) => widget.advanced).length * (LiteGraph.NODE_WIDGET_HEIGHT + 4);
  node.setSize([node.size[0], Math.max(node.size[1] - folded, node.computeSize()[1])]);
}

// The frontend's own menu and button fold too, and so does a workflow that is loaded.
function keepUp(node) {
  const toggle = widgetOf(node, TOGGLE);
  if (!toggle || toggle.label === label(node)) return;
  showAdvanced(node, !!node.showAdvanced);
}

/* When to look */

function ours(node) {
  return node.comfyClass?.startsWith("VidRD");
}

function refresh(graph) {
  const nodes = (graph?.nodes ?? []).filter((node) => ours(node) || node.comfyClass in TAKEN);
  for (const node of nodes) takeFromModel(node);
  countAnew();
  for (const node of nodes.filter((one) => CHAINED.includes(one.comfyClass))) showPreset(node);
  for (const node of nodes) tell(node);
  for (const node of nodes) keepUp(node);
}

const waiting = new Set();
function refreshSoon(graph) {
  if (!graph || waiting.has(graph)) return;
  waiting.add(graph);
  setTimeout(() => {
    waiting.delete(graph);
    refresh(graph);
  }, WAIT);
}

async function readAgain(node) {
  await loadSettings();
  refreshSoon(node.graph);
}

function prepare(node) {
  remember(node);
  chain(node, "onConfigure", (saved) => {
    keepValues(node);
    shrinkOnce(node, saved);
    refreshSoon(node.graph ?? app.canvas?.graph);
  });
  if (!ours(node)) return;
  fold(node);
  if (TELLING.includes(node.comfyClass)) addTold(node);
  for (const name of CHAINED.includes(node.comfyClass) ? Object.values(SETTINGS) : []) onEdit(node, name, chooseCustom);
  for (const widget of node.widgets ?? []) if (widget.name !== TOGGLE && widget.name !== TOLD) onEdit(node, widget.name, look);
  if (isLoader(node)) for (const widget of node.widgets ?? []) onEdit(node, widget.name, readAgain);
  if (widgetOf(node, TOGGLE) || widgetOf(node, TOLD)) node.setSize([Math.max(WIDTH, node.size[0]), node.computeSize()[1]]);
}

// After an edit: at once, so that a preset's values stand there when the menu closes.
function look(node) {
  if (node.graph) refresh(node.graph);
}

// Chaining that was set by hand is to be seen.
function openCustom(node) {
  if (widgetOf(node, "preset")?.value === "custom" && CHAINED.includes(node.comfyClass)) showAdvanced(node, true);
}

// ComfyUI lists the examples of a pack as the disk does.
function listInReadingOrder() {
  const original = api.getWorkflowTemplates;
  if (!original) return;
  const byNumber = new Intl.Collator("en", { numeric: true }).compare;
  api.getWorkflowTemplates = async function () {
    const templates = await original.apply(this, arguments);
    for (const names of Object.values(templates)) if (names.includes?.(FIRST_EXAMPLE)) names.sort(byNumber);
    return templates;
  };
}

app.registerExtension({
  name: "VidRD.Widgets",

  async init() {
    listInReadingOrder();
    await loadSettings();
    api.addEventListener("graphChanged", () => refreshSoon(app.canvas?.graph));
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("VidRD")) return;
    chain(nodeType.prototype, "onConnectionsChange", function () {
      refreshSoon(this.graph);
    });
    if (!TELLING.includes(nodeData.name)) return;
    chain(nodeType.prototype, "onExecuted", function (output) {
      if (!output?.vidrd?.[0]) return;
      countAnew();
      runs.set(this, { told: JSON.parse(output.vidrd[0]), plan: planned(this).join("\n") });
      const progress = widgetOf(this, PROGRESS);
      if (progress) this.removeWidget?.(progress);
      tell(this);
    });
  },

  nodeCreated(node) {
    if (ours(node) || node.comfyClass in TAKEN) prepare(node);
  },

  loadedGraphNode: openCustom,
});
