// What suits the model that a node samples with, and the values of the presets: asked of the server once, and again
// where a model is chosen that it did not know.

import { api } from "../../../scripts/api.js";
import { downstream, origin, slotOf, upstream, widgetOf, wireInto } from "./graph.js";

const ROUTE = "/vidrd/settings";
const LOADERS = { VidRDLoadModel: "model_name", VidRDLoadUNet: "unet_name" }; // and the widget that names the model

export const begun = new WeakMap(); // of a new node: what its widgets began with, or were given of the model since

let settings = { presets: {}, models: {}, loop: undefined };

// A node of a workflow, a copy or one with settings of its own keeps its values.
export function keepValues(node) {
  begun.delete(node);
}

// Asks the server; without an answer nodes behave as without this script.
export async function loadSettings() {
  try {
    const answer = await api.fetchApi(ROUTE, { cache: "no-store" });
    if (answer.ok) settings = await answer.json();
  } catch (error) {
    console.warn("VidRD: the settings of the models could not be read:", error);
  }
}

export function presetValues(name) {
  return settings.presets[name];
}

// How a loop closes; undefined where the server did not answer.
export function loopRules() {
  return settings.loop;
}

function ofLoader(loader) {
  return settings.models[loader.comfyClass]?.[widgetOf(loader, LOADERS[loader.comfyClass])?.value];
}

export function isLoader(node) {
  return node.comfyClass in LOADERS;
}

// What suits the model that comes into a node: undefined where none is connected, {} where it is no VidRD model or
// nothing is known of it.
export function modelOf(node) {
  if (slotOf(node, "session") >= 0) {
    const prepare = origin(node, "session");
    return prepare && modelOf(prepare);
  }
  const first = node && origin(node, "model");
  if (!first) return wireInto(node, "model") ? {} : undefined;
  const loader = [first, ...upstream(first, ["MODEL"])].find(isLoader);
  return (loader && ofLoader(loader)) ?? {};
}

// What suits the model behind latents, frames or a VAE that come into a node.
export function modelBehind(node) {
  const before = [...upstream(node, ["LATENT", "IMAGE", "VAE", "VIDRD_SESSION", "MODEL"])];
  const loader = before.find(isLoader);
  return loader && ofLoader(loader);
}

// What suits the model that is to sample what a node hands on.
export function modelAhead(node) {
  for (const next of downstream(node)) {
    const known = slotOf(next, "model") >= 0 || slotOf(next, "session") >= 0 ? modelOf(next) : undefined;
    if (known?.width) return known;
  }
  return undefined;
}
