// How clips are chained and how long the video gets, from the widgets of the nodes that it comes from. Frames are
// counted for VidRD's own models; of other families' the nodes tell after the run.

import { STOCK_SAMPLERS, widgetOf, wireInto } from "./graph.js";
import { loopRules, modelOf, presetValues } from "./model_settings.js";

const VIDEO = 0; // the output of our samplers that holds the whole video, before that of the new clip

// As ReuseSettings.fitted in vidrd_core/reuse/settings.py: as far as clips of so many frames have room.
export function fitted(settings, numFrames) {
  const room = settings.trim_frames ? Math.floor((numFrames * 5) / 8) : numFrames;
  const overlap = Math.min(settings.overlap_frames, room);
  return { ...settings, overlap_frames: overlap, trim_frames: Math.min(settings.trim_frames, overlap) };
}

// As closing and choices in vidrd_core/reuse/goal.py: how the last clip of a loop, of so many frames, is chained, and
// the most frames of the beginning that it ends with.
export function closing(settings, numFrames, rules) {
  const room = Math.max(numFrames - 1 - rules.most_repeated, rules.least_overlap);
  const overlap = Math.min(settings.overlap_frames, room);
  const repeated = Math.max(1, Math.min(numFrames - 1 - overlap, rules.most_repeated));
  return { overlap_frames: overlap, trim_frames: Math.min(settings.trim_frames, overlap), repeated };
}

function valueOf(node, name) {
  return widgetOf(node, name)?.value;
}

// The output that comes into an input, past reroutes: { node, slot }.
function source(node, name) {
  const wire = wireInto(node, name);
  const from = wire && node.graph.getNodeById(wire.origin_id);
  if (!from) return undefined;
  return from.type === "Reroute" ? source(from, from.inputs[0].name) : { node: from, slot: wire.origin_slot };
}

// The video that comes into an input: { frames, clip }, in frames; 0 of an empty latent, which begins one.
function videoInto(node, name, seen) {
  const from = source(node, name);
  return from && videoOf(from.node, from.slot, seen);
}

let counted = new Map(); // the videos of nodes, until a widget or a wire changes

export function countAnew() {
  counted = new Map();
}

function videoOf(node, slot, seen) {
  if (seen.has(node)) return undefined;
  const name = `${node.id}:${slot}`;
  if (!counted.has(name)) counted.set(name, videoFrom(node, slot, new Set([...seen, node])));
  return counted.get(name);
}

function videoFrom(node, slot, seen) {
  if (node.comfyClass === "VidRDEmptyLatent") return { frames: 0, clip: valueOf(node, "frames") };
  if (node.comfyClass === "VidRDSaveState") return videoInto(node, "latent", seen);
  if (STOCK_SAMPLERS.includes(node.comfyClass)) {
    const begun = videoInto(node, "latent_image", seen);
    return begun?.frames === 0 ? { frames: begun.clip, clip: begun.clip } : undefined;
  }
  const planned = plan(node, seen);
  return planned && { frames: slot === VIDEO ? planned.frames : planned.clip, clip: planned.clip };
}

function clipLength(node, prior, model) {
  return valueOf(node, "clip_frames") || prior?.clip || model.frames;
}

// Whether a node closes a loop, where it is known how.
export function loops(node) {
  return !!valueOf(node, "loop") && !!loopRules();
}

// The settings that a node's preset comes to with the video that comes in; undefined for custom, and where that is
// known only after the run.
function settled(node, prior) {
  const preset = valueOf(node, "preset");
  const model = modelOf(node);
  if (preset === "custom" || (preset === "auto" && !model?.reuse)) return undefined;
  if (preset !== "paper" && model && !model.reuse) return undefined; // the family's own, of another model than VidRD's
  const settings = preset === "auto" ? model.reuse : presetValues(preset);
  return settings && model?.frames ? fitted(settings, clipLength(node, prior, model)) : settings;
}

export function chaining(node) {
  return settled(node, videoInto(node, "prior", new Set([node])));
}

// What a node makes: { added, frames, clip, repeated }; frames is undefined where the video that comes in is of unknown
// length. A loop gets shorter by 1 to `repeated` frames; 0 of no loop.
export function plan(node, seen = new Set()) {
  seen = new Set([...seen, node]);
  if (node.comfyClass === "VidRDReuseJoin") {
    const prepare = source(node, "session")?.node;
    return prepare && !seen.has(prepare) ? plan(prepare, seen) : undefined;
  }
  const model = modelOf(node);
  if (!model?.frames) return undefined;
  if (node.comfyClass === "VidRDSampleFirstClip") {
    const begun = videoInto(node, "latent", seen);
    return begun && { added: begun.clip, frames: begun.clip, clip: begun.clip };
  }
  if (!widgetOf(node, "preset")) return undefined;
  const prior = videoInto(node, "prior", seen);
  const clip = clipLength(node, prior, model);
  const custom = { overlap_frames: valueOf(node, "overlap_frames"), trim_frames: valueOf(node, "trim_frames") };
  const settings = settled(node, prior) ?? custom;
  const last = loops(node) ? closing(settings, clip, loopRules()) : { ...settings, repeated: 0 };
  const clips = valueOf(node, "num_clips") ?? 1;
  const first = prior?.frames === 0 ? settings.trim_frames : 0; // a first clip is not trimmed
  const added = clips * (clip - settings.trim_frames) + first + settings.trim_frames - last.trim_frames;
  const frames = prior?.frames === undefined ? undefined : prior.frames + added;
  return { added, frames, clip, repeated: last.repeated };
}
