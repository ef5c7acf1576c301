// "Add Reuse and Diffuse" in the node menu of the sampling nodes: a continuation of the video, wired and in its place.
// Works on the graph that the node lies in, so inside subgraphs too. Nothing runs before the menu is opened.

import { app } from "../../../scripts/app.js";

const LABEL = "Add Reuse and Diffuse";
const CONTINUATION = "VidRDReuseAndDiffuse";
const MANY_CLIPS = "VidRDManyClips";
const OWN_SAMPLERS = ["VidRDSampleFirstClip", CONTINUATION, MANY_CLIPS];
const STOCK_SAMPLERS = ["KSampler"];
const LOADERS = ["VidRDLoadModel", "VidRDLoadUNet"];
const VIDEO = 0; // the output of each of these samplers that holds all the video there is
const GAP = 60;

// What the next clip takes over. Steps, sampler and scheduler come along with the LATENT that our own nodes hand on.
const SETTINGS = [
  "cfg", "preset", "overlap_frames", "noise_alpha", "guidance_beta", "order", "trim_frames", "stages", "guidance_lead",
];
const SETTINGS_OF_STOCK = ["cfg", "steps", "sampler_name", "scheduler"];

/* Reading the graph */

function wireInto(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? null : node.getInputLink(slot);
}

function comesFrom(wire, node, slot) {
  return !!wire && String(wire.origin_id) === String(node.id) && wire.origin_slot === slot;
}

// The inputs that an output feeds: [{ node, slot }].
function consumers(node, slot) {
  const fed = new Set(node.getOutputNodes(slot) ?? []);
  return [...fed].flatMap((consumer) =>
    (consumer.inputs ?? [])
      .map((_, index) => ({ node: consumer, slot: index }))
      .filter((input) => comesFrom(consumer.getInputLink(input.slot), node, slot)),
  );
}

// Outputs of the subgraph that an output of one of its nodes feeds.
function subgraphOutputs(node, slot) {
  const outputs = node.graph.outputNode?.slots ?? [];
  return outputs.filter((output) => output.linkIds.some((id) => comesFrom(node.graph.getLink(id), node, slot)));
}

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function isSampler(node) {
  return !!node.inputs?.some((slot) => slot.type === "MODEL") && !!node.outputs?.some((slot) => slot.type === "LATENT");
}

// Whether the model of a stock sampler comes from one of our loaders, through LoRA loaders and the like.
function samplesVidRD(node, seen = new Set()) {
  if (!node || seen.has(node)) return false;
  seen.add(node);
  if (LOADERS.includes(node.comfyClass)) return true;
  return (node.inputs ?? []).some((input, slot) => {
    const wire = input.type === "MODEL" || node.type === "Reroute" ? node.getInputLink(slot) : null;
    return !!wire && samplesVidRD(node.graph.getNodeById(wire.origin_id), seen);
  });
}

function canContinue(node) {
  if (!node?.graph) return false;
  return OWN_SAMPLERS.includes(node.comfyClass) || (STOCK_SAMPLERS.includes(node.comfyClass) && samplesVidRD(node));
}

// The node and everything after it that its wires lead to; only along LATENT wires where asked.
function downstream(node, latentOnly = false, found = new Set()) {
  for (const [slot, output] of (node?.outputs ?? []).entries()) {
    if (latentOnly && output.type !== "LATENT") continue;
    for (const { node: next } of consumers(node, slot)) {
      if (found.has(next)) continue;
      found.add(next);
      downstream(next, latentOnly, found);
    }
  }
  return found;
}

// Another clip already follows, so that what is added becomes a branch.
function isContinued(node) {
  return [...downstream(node, true)].some(isSampler);
}

/* Changing the graph */

// Connects the same origin to an input of `target`; the origin may be the subgraph's own input.
function shareWire(wire, target, name) {
  const slot = target.inputs.findIndex((input) => input.name === name);
  if (!wire || slot < 0) return;
  const origin = target.graph.getNodeById(wire.origin_id);
  if (origin) origin.connect(wire.origin_slot, target, slot);
  else target.graph.inputNode?.slots[wire.origin_slot]?.connect(target.inputs[slot], target);
}

// Decoders, previews and savers of the video so far are to show the longer video: their wires move.
function moveWires(source, target) {
  const inputs = consumers(source, VIDEO);
  const outputs = subgraphOutputs(source, VIDEO);
  for (const { node, slot } of inputs) target.connect(VIDEO, node, slot);
  for (const output of outputs) output.connect(target.outputs[VIDEO], target);
}

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

// A seed that none of these is. Above 2^53 numbers cannot tell neighbours apart, so it continues from a smaller one there.
function seedAfter(seeds) {
  let next = Math.max(...seeds) + 1;
  if (!Number.isSafeInteger(next)) next = (next % Number.MAX_SAFE_INTEGER) + 1;
  while (seeds.includes(next)) next = (next + 1) % Number.MAX_SAFE_INTEGER;
  return next;
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

function create(type, graph, x, y) {
  const node = LiteGraph.createNode(type);
  if (!node) throw new Error(`the node type ${type} is not registered`);
  node.pos = [x, y];
  graph.add(node);
  return node;
}

// Many Clips encodes its prompts itself: continue with the last of them, as it would.
function encodeLastPrompt(source, target) {
  const prompts = widgetOf(source, "prompts")?.value?.trim();
  if (!prompts || wireInto(source, "prompts")) return undefined;
  const encoder = create("CLIPTextEncode", source.graph, target.pos[0], target.pos[1]);
  widgetOf(encoder, "text").value = prompts.split(/\r?\n/).at(-1).trim();
  shareWire(wireInto(source, "clip"), encoder, "clip");
  target.pos = [encoder.pos[0] + encoder.size[0] + GAP, target.pos[1]];
  encoder.connect(0, target, target.inputs.findIndex((input) => input.name === "positive"));
  return encoder;
}

/* Placing nodes */

function overlap(a, b) {
  const title = LiteGraph.NODE_TITLE_HEIGHT ?? 30;
  return (
    a.pos[0] < b.pos[0] + b.size[0] &&
    b.pos[0] < a.pos[0] + a.size[0] &&
    a.pos[1] - title < b.pos[1] + b.size[1] &&
    b.pos[1] - title < a.pos[1] + a.size[1]
  );
}

function holds(group, node) {
  return [0, 1].every((i) => node.pos[i] >= group.pos[i] && node.pos[i] < group.pos[i] + group.size[i]);
}

// Shifts what was to the right of `source` and comes after it, until there is room for `added`; groups go along as a
// whole, and in a subgraph the box of its outputs.
function makeRoom(source, added, followers) {
  const { graph } = source;
  const right = source.pos[0] + source.size[0];
  const nodes = [...followers].filter((node) => !added.includes(node) && node.pos[0] >= right);
  const groups = (graph.groups ?? []).filter((group) => group.pos[0] >= right && nodes.some((node) => holds(group, node)));
  const members = graph.nodes.filter((node) => !added.includes(node) && groups.some((group) => holds(group, node)));
  const shifted = [...new Set([...nodes, ...members, ...groups])];
  const box = graph.outputNode;
  if (box?.pos?.[0] >= right) shifted.push(box);
  const needed = Math.max(...added.map((node) => node.pos[0] + node.size[0])) + GAP;
  const by = needed - Math.min(...shifted.map((item) => item.pos[0]));
  if (shifted.length && by > 0) for (const item of shifted) item.pos = [item.pos[0] + by, item.pos[1]];
  box?.arrange?.();
}

// Lets the new nodes slide down where others are in their way.
function avoidOthers(graph, added) {
  const others = graph.nodes.filter((node) => !added.includes(node));
  for (let tries = 0; tries <= others.length; tries++) {
    const blocker = others.find((other) => added.some((node) => overlap(node, other)));
    if (!blocker) return;
    const y = blocker.pos[1] + blocker.size[1] + GAP;
    for (const node of added) node.pos = [node.pos[0], y];
  }
}

/* The menu entry */

function addContinuation(source) {
  const { graph } = source;
  const branch = isContinued(source);
  const node = create(CONTINUATION, graph, source.pos[0] + source.size[0] + GAP, source.pos[1]);
  copySettings(source, node);
  copySeed(source, node);
  const encoder = source.comfyClass === MANY_CLIPS ? encodeLastPrompt(source, node) : undefined;
  const names = encoder ? ["model", "negative"] : ["model", "positive", "negative"];
  for (const name of names) shareWire(wireInto(source, name), node, name);
  if (!branch) moveWires(source, node);
  source.connect(VIDEO, node, node.inputs.findIndex((input) => input.name === "prior"));

  const added = encoder ? [encoder, node] : [node];
  if (!branch) makeRoom(source, added, downstream(node));
  avoidOthers(graph, added);
  return node;
}

// Everything between the two events is one step for undo.
function addAsOneStep(source) {
  const { canvas } = app;
  canvas.emitBeforeChange?.();
  try {
    const node = addContinuation(source);
    canvas.selectItems?.([node]);
    canvas.setDirty(true, true);
  } finally {
    canvas.emitAfterChange?.();
  }
}

function menuItems(node) {
  return canContinue(node) ? [{ content: LABEL, callback: () => addAsOneStep(node) }] : [];
}

app.registerExtension({
  name: "VidRD.AddReuseAndDiffuse",

  getNodeMenuItems: menuItems,

  // Frontends before getNodeMenuItems, such as the 1.27 that ComfyUI 0.3.64 brings.
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (app.collectNodeMenuItems || ![...OWN_SAMPLERS, ...STOCK_SAMPLERS].includes(nodeData.name)) return;
    const original = nodeType.prototype.getExtraMenuOptions;
    nodeType.prototype.getExtraMenuOptions = function (canvas, options) {
      const more = original?.apply(this, arguments);
      options.push(...menuItems(this));
      return more;
    };
  },
});
