// "Add Reuse and Diffuse" in the node menu of the sampling nodes: a continuation of the video, wired and in its place.
// Behind our own sampling nodes it is one node; behind ComfyUI's samplers see around_samplers.js. Works on the graph
// that the node lies in, so inside subgraphs too. Nothing runs before the menu is opened.

import { app } from "../../../scripts/app.js";
import { JOIN, addAroundSamplers, clipAt, samplesVidRD } from "./around_samplers.js";
import {
  GAP, STOCK_SAMPLERS, avoidOthers, chain, consumers, create, downstream, isContinued, makeRoom, moveWires, seedAfter,
  shareWire, slotOf, widgetOf, wireInto,
} from "./graph.js";
import { keepValues } from "./model_settings.js";

const LABEL = "Add Reuse and Diffuse";
const CONTINUATION = "VidRDReuseAndDiffuse";
const MANY_CLIPS = "VidRDManyClips";
const OWN_SAMPLERS = ["VidRDSampleFirstClip", CONTINUATION, MANY_CLIPS];
const VIDEO = 0; // the output of each of these samplers that holds all the video there is

// What the next clip takes over. Steps, sampler and scheduler come along with the LATENT that our own nodes hand on.
const SETTINGS = [
  "cfg", "preset", "overlap_frames", "noise_alpha", "guidance_beta", "order", "trim_frames", "stages", "guidance_lead",
  "tell_levels",
];
const SETTINGS_OF_STOCK = ["cfg", "steps", "sampler_name", "scheduler"];
const WIRES = ["model", "positive", "negative", "model_low", "sigmas"];

// A KSampler with a model of ours that was not recorded is continued by our own node, which inverts what it made.
function isOneNode(node) {
  if (!node?.graph) return false;
  if (OWN_SAMPLERS.includes(node.comfyClass)) return true;
  return node.comfyClass === "KSampler" && samplesVidRD(node) && !clipAt(node);
}

/* One node */

function copySettings(source, target) {
  const stock = STOCK_SAMPLERS.includes(source.comfyClass);
  for (const name of stock ? SETTINGS_OF_STOCK : SETTINGS) {
    const from = widgetOf(source, name);
    const to = widgetOf(target, name);
    if (!from || !to) continue;
    const choices = to.options?.values;
    if (!Array.isArray(choices) || choices.includes(from.value)) to.value = from.value;
    shareWire(wireInto(source, name), target, name);
  }
}

// A seed of its own, so that the fresh part of the noise differs from clip to clip and from branch to branch; fixed or
// random as before.
function copySeed(source, target) {
  const from = widgetOf(source, "seed");
  const to = widgetOf(target, "seed");
  if (!from || !to) return;
  const siblings = consumers(source, VIDEO)
    .filter(({ node }) => node.comfyClass === CONTINUATION)
    .map(({ node }) => Number(widgetOf(node, "seed")?.value ?? 0));
  to.value = seedAfter([Number(from.value), ...siblings]);
  const control = widgetOf(target, "control_after_generate");
  if (control) control.value = widgetOf(source, "control_after_generate")?.value ?? control.value;
}

// Many Clips encodes its prompts itself: continue with the last of them, as it would.
function encodeLastPrompt(source, target) {
  const prompts = widgetOf(source, "prompts")?.value?.trim();
  if (!prompts || wireInto(source, "prompts")) return undefined;
  const encoder = create("CLIPTextEncode", source.graph, target.pos[0], target.pos[1]);
  widgetOf(encoder, "text").value = prompts.split(/\r?\n/).at(-1).trim();
  shareWire(wireInto(source, "clip"), encoder, "clip");
  target.pos = [encoder.pos[0] + encoder.size[0] + GAP, target.pos[1]];
  encoder.connect(0, target, slotOf(target, "positive"));
  return encoder;
}

function addContinuation(source) {
  const { graph } = source;
  const branch = isContinued(source);
  const node = create(CONTINUATION, graph, source.pos[0] + source.size[0] + GAP, source.pos[1]);
  copySettings(source, node);
  keepValues(node);
  copySeed(source, node);
  const encoder = source.comfyClass === MANY_CLIPS ? encodeLastPrompt(source, node) : undefined;
  for (const name of WIRES) if (name !== "positive" || !encoder) shareWire(wireInto(source, name), node, name);
  if (!branch) moveWires(source, node);
  source.connect(VIDEO, node, slotOf(node, "prior"));

  const added = encoder ? [encoder, node] : [node];
  if (!branch) makeRoom(source, added, downstream(node));
  avoidOthers(graph, added);
  return { added: [node], said: "" };
}

/* The menu entry */

// Everything between the two events is one step for undo.
function addAsOneStep(source) {
  const { canvas } = app;
  canvas.emitBeforeChange?.();
  try {
    const { added, said } = isOneNode(source) ? addContinuation(source) : addAroundSamplers(clipAt(source));
    canvas.selectItems?.(added);
    canvas.setDirty(true, true);
    if (said) app.extensionManager?.toast?.add({ severity: "info", summary: LABEL, detail: said, life: 12000 });
  } finally {
    canvas.emitAfterChange?.();
  }
}

function menuItems(node) {
  return isOneNode(node) || clipAt(node) ? [{ content: LABEL, callback: () => addAsOneStep(node) }] : [];
}

app.registerExtension({
  name: "VidRD.AddReuseAndDiffuse",

  getNodeMenuItems: menuItems,

  // Frontends before getNodeMenuItems, such as the 1.27 that ComfyUI 0.3.64 brings.
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (app.collectNodeMenuItems || ![...OWN_SAMPLERS, ...STOCK_SAMPLERS, JOIN].includes(nodeData.name)) return;
    chain(nodeType.prototype, "getExtraMenuOptions", function (canvas, options) {
      options.push(...menuItems(this));
    });
  },
});
