// The next clip around samplers that are not ours: Reuse: Prepare, copies of the samplers in a row, Reuse: Join.

import {
  GAP, STOCK_SAMPLERS, avoidOthers, cloneNode, create, downstream, isContinued, makeRoom, moveWires, origin, seedAfter,
  shareWire, slotOf, stack, upstream, widgetOf, wireInto,
} from "./graph.js";
import { isLoader } from "./model_settings.js";

export const JOIN = "VidRDReuseJoin";
const PREPARE = "VidRDReusePrepare";
const MODEL_OUTPUTS = 2; // of Reuse: Prepare, its first
const LATENT_OUTPUT = 2;
const SESSION_OUTPUT = 3;
const MOTION_MODULES = /^ADE_/; // nodes of AnimateDiff-Evolved, with which a model of images samples videos
const IMAGES = ["EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage"]; // latents that images begin with
const SEEDS = ["seed", "noise_seed"];

/* Reading */

function isStock(node) {
  return STOCK_SAMPLERS.includes(node?.comfyClass);
}

// The node that takes the MODEL for a sampler: itself or its guider.
function modelTaker(sampler) {
  const taker = slotOf(sampler, "guider") < 0 ? sampler : origin(sampler, "guider");
  return taker && wireInto(taker, "model") ? taker : undefined;
}

// The nodes that a model passes before it is sampled with, from Reuse: Prepare on, and that node; else only the wire.
function modelPath(taker) {
  const patches = [];
  for (let node = taker; wireInto(node, "model"); node = patches[0]) {
    const before = origin(node, "model");
    if (before?.comfyClass === PREPARE) return { prepare: before, patches, wire: wireInto(node, "model") };
    if (!before || patches.includes(before)) break;
    patches.unshift(before);
  }
  return { patches: [], wire: wireInto(taker, "model") };
}

// A sampler that takes up another's unfinished latents adds no noise.
function addsNoNoise(sampler) {
  if (slotOf(sampler, "noise") >= 0) return origin(sampler, "noise")?.comfyClass === "DisableNoise";
  return ["disable", false].includes(widgetOf(sampler, "add_noise")?.value);
}

function nameOf(wire) {
  return `${wire.origin_id}:${wire.origin_slot}`;
}

function fedBy(node) {
  return node.getOutputNodes(0) ?? [];
}

// The samplers that make a clip together, first to last: one, or those in a row of which only the first adds noise.
function samplersInARow(sampler) {
  const row = [sampler];
  while (addsNoNoise(row[0]) && isStock(origin(row[0], "latent_image"))) row.unshift(origin(row[0], "latent_image"));
  const takenUp = (before) => fedBy(before).find((next) => isStock(next) && addsNoNoise(next) && !row.includes(next));
  for (let next = takenUp(row.at(-1)); next; next = takenUp(next)) row.push(next);
  return row;
}

// Whether a sampler's model comes from one of our loaders, through LoRA loaders, guiders and the like.
export function samplesVidRD(sampler) {
  return [...upstream(sampler, ["MODEL", "GUIDER"])].some(isLoader);
}

// Whether what is sampled there may be a video: all but what begins with the latents of images.
function maySampleVideo(first) {
  if (![...upstream(first, ["LATENT"])].some((node) => IMAGES.includes(node.comfyClass))) return true;
  return [...upstream(modelTaker(first), ["MODEL"])].some((node) => MOTION_MODULES.test(node.comfyClass ?? ""));
}

// What can be continued at a sampler or a Reuse: Join: the samplers in a row, the wires of their one or two models, and
// Reuse: Prepare and Join around them where they are there. Undefined where nothing can.
export function clipAt(node) {
  const sampler = node?.comfyClass === JOIN ? origin(node, "latent") : node;
  if (!isStock(sampler) || !sampler.graph) return undefined;
  const row = samplersInARow(sampler);
  if (!row.every(modelTaker) || !maySampleVideo(row[0])) return undefined;
  const paths = row.map((one) => modelPath(modelTaker(one)));
  const wires = new Map(paths.map(({ wire }) => [nameOf(wire), wire]));
  const { prepare } = paths[0];
  if (paths.some((path) => path.prepare !== prepare)) return undefined;
  if (!prepare && samplesVidRD(row[0])) return undefined; // only one that was recorded can be followed
  const join = fedBy(row.at(-1)).find((next) => next.comfyClass === JOIN);
  if (wires.size > MODEL_OUTPUTS || !prepare !== !join) return undefined;
  return { row, paths, models: [...wires.keys()], wires: [...wires.values()], prepare, join };
}

/* Adding */

function addPrepare({ row, wires, prepare }) {
  if (prepare) return cloneNode(prepare, ["prior"]);
  const added = create(PREPARE, row[0].graph, ...row[0].pos);
  for (const [place, name] of ["model", "model_low"].entries()) shareWire(wires[place], added, name);
  return added;
}

// Another seed than any in the graph, in a sampler or its noise; fixed or random as before.
function renewSeed(node) {
  for (const widget of (node.widgets ?? []).filter(({ name }) => SEEDS.includes(name))) {
    const seeds = node.graph.nodes.map((other) => widgetOf(other, widget.name)?.value);
    widget.value = seedAfter(seeds.filter((seed) => seed !== undefined).map(Number));
  }
}

// A copy of a sampler and of what it is given of its own: guider, noise, patches of the model. `copies` holds those
// that are there already, by what they were copied from.
function addSampler(sampler, path, from, copies) {
  const copyOf = (source, without) => {
    if (!copies.has(source)) copies.set(source, cloneNode(source, without));
    return copies.get(source);
  };
  const taker = modelTaker(sampler);
  const copy = copyOf(sampler, ["model", "guider", "latent_image"]);
  let model = from;
  for (const node of [...path.patches, taker]) {
    const next = copyOf(node, ["model"]);
    model.node.connect(model.slot, next, slotOf(next, "model"));
    model = { node: next, slot: 0 };
  }
  if (taker !== sampler) model.node.connect(0, copy, slotOf(copy, "guider"));
  if (addsNoNoise(sampler)) return copy;
  renewSeed(copy);
  const noise = slotOf(sampler, "noise") < 0 ? undefined : origin(sampler, "noise");
  if (noise) {
    copyOf(noise).connect(0, copy, slotOf(copy, "noise"));
    renewSeed(copyOf(noise));
  }
  return copy;
}

// Reuse: Prepare with what else is new below it, then the samplers below each other, then Reuse: Join.
function place(end, prepare, copies, samplers, join) {
  const columns = [[prepare, ...[...copies.values()].filter((node) => !samplers.includes(node))], samplers, [join]];
  let left = end.pos[0] + end.size[0] + GAP;
  for (const column of columns) left = stack(column, left, end.pos[1]) + GAP;
  return columns.flat();
}

// Adds the nodes of the next clip; gives them, and in a sentence or two what was done.
export function addAroundSamplers(clip) {
  const { row, paths, models } = clip;
  const end = clip.join ?? row.at(-1);
  const { graph } = end;
  const branch = isContinued(end);
  const prepare = addPrepare(clip);
  const copies = new Map();
  const samplers = [];
  let latent = { node: prepare, slot: LATENT_OUTPUT };
  for (const [number, sampler] of row.entries()) {
    const { wire } = paths[number];
    const slot = clip.prepare ? wire.origin_slot : models.indexOf(nameOf(wire));
    const copy = addSampler(sampler, paths[number], { node: prepare, slot }, copies);
    latent.node.connect(latent.slot, copy, slotOf(copy, "latent_image"));
    latent = { node: copy, slot: 0 };
    samplers.push(copy);
  }
  const join = create(JOIN, graph, ...end.pos);
  latent.node.connect(latent.slot, join, slotOf(join, "latent"));
  prepare.connect(SESSION_OUTPUT, join, slotOf(join, "session"));
  if (!branch) moveWires(end, join);
  end.connect(0, prepare, slotOf(prepare, "prior"));

  const added = place(end, prepare, copies, samplers, join);
  if (!branch) makeRoom(end, added, downstream(join));
  avoidOthers(graph, added);
  return { added, said: whatWasDone(clip, branch) };
}

function whatWasDone({ row, join }, branch) {
  const names = row.map((sampler) => sampler.title).join(" and ");
  const said = [`Added for the next clip: Reuse: Prepare, a copy of ${names}, Reuse: Join.`];
  if (branch) said.push("The video is continued elsewhere too, so this is a branch.");
  if (!join) said.push(`The noise of ${names} was not recorded, so the next clip follows its latents alone.`);
  if (!join) said.push(`To record it, put Reuse: Prepare and Reuse: Join around ${names} too.`);
  return said.join(" ");
}
