// Reading, listening to and changing the graph that a node lies in, so inside subgraphs too: wires, copies, places.

export const GAP = 60; // pixels between nodes
export const STOCK_SAMPLERS = ["KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"];

/* Reading */

export function slotOf(node, name) {
  return node.inputs?.findIndex((input) => input.name === name) ?? -1;
}

export function wireInto(node, name) {
  const slot = slotOf(node, name);
  return slot < 0 ? null : node.getInputLink(slot);
}

// Whether an input has a wire; also of a copy that is in no graph.
export function isWired(node, name) {
  return (node.inputs?.[slotOf(node, name)]?.link ?? null) !== null;
}

// The node at the other end of the wire into an input, past reroutes; undefined at the edge of a subgraph.
export function origin(node, name) {
  const wire = wireInto(node, name);
  const from = wire && node.graph.getNodeById(wire.origin_id);
  return from?.type === "Reroute" ? origin(from, from.inputs[0].name) : (from ?? undefined);
}

function comesFrom(wire, node, slot) {
  return !!wire && String(wire.origin_id) === String(node.id) && wire.origin_slot === slot;
}

// The inputs that an output feeds: [{ node, slot }].
export function consumers(node, slot) {
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

export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

export function isSampler(node) {
  return !!node.inputs?.some((slot) => slot.type === "MODEL") && !!node.outputs?.some((slot) => slot.type === "LATENT");
}

// The node and everything after it that its wires lead to; only along LATENT wires where asked.
export function downstream(node, latentOnly = false, found = new Set()) {
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

// Everything that a node comes from, along wires of these types.
export function upstream(node, types, found = new Set()) {
  for (const [slot, input] of (node?.inputs ?? []).entries()) {
    const wire = types.includes(input.type) || node.type === "Reroute" ? node.getInputLink(slot) : null;
    const before = wire && node.graph.getNodeById(wire.origin_id);
    if (!before || found.has(before)) continue;
    found.add(before);
    upstream(before, types, found);
  }
  return found;
}

// Another clip already follows, so that what is added becomes a branch.
export function isContinued(node) {
  return [...downstream(node, true)].some((next) => isSampler(next) || slotOf(next, "guider") >= 0);
}

/* Listening */

// Do something more when one of the object's methods is called; gives what the method gave.
export function chain(object, name, work) {
  const own = object[name];
  object[name] = function (...given) {
    const result = own?.apply(this, given);
    work.apply(this, given);
    return result;
  };
}

/* Changing */

// Connects the same origin to an input of `target`; the origin may be the subgraph's own input.
export function shareWire(wire, target, name) {
  const slot = slotOf(target, name);
  if (!wire || slot < 0) return;
  const from = target.graph.getNodeById(wire.origin_id);
  if (from) from.connect(wire.origin_slot, target, slot);
  else target.graph.inputNode?.slots[wire.origin_slot]?.connect(target.inputs[slot], target);
}

// Decoders, previews and savers of the video so far are to show the longer video: their wires move.
export function moveWires(source, target, output = 0) {
  const inputs = consumers(source, output);
  const outputs = subgraphOutputs(source, output);
  for (const { node, slot } of inputs) target.connect(0, node, slot);
  for (const slot of outputs) slot.connect(target.outputs[0], target);
}

// A seed that none of these is. Above 2^53 numbers cannot tell neighbours apart, so it continues from a smaller one
// there.
export function seedAfter(seeds) {
  let next = Math.max(...seeds) + 1;
  if (!Number.isSafeInteger(next)) next = (next % Number.MAX_SAFE_INTEGER) + 1;
  while (seeds.includes(next)) next = (next + 1) % Number.MAX_SAFE_INTEGER;
  return next;
}

export function create(type, graph, x, y) {
  const node = LiteGraph.createNode(type);
  if (!node) throw new Error(`the node type ${type} is not registered`);
  node.pos = [x, y];
  graph.add(node);
  return node;
}

// A node like another, with the same wires into it but for those inputs that are named.
export function cloneNode(source, without = []) {
  const copy = source.clone();
  if (!copy) throw new Error(`the node type ${source.type} cannot be copied`);
  source.graph.add(copy);
  for (const { name } of source.inputs ?? []) {
    if (!without.includes(name)) shareWire(wireInto(source, name), copy, name);
  }
  return copy;
}

/* Placing */

function overlap(a, b) {
  const title = LiteGraph.NODE_TITLE_HEIGHT ?? 30;
  return (
    a.pos[0] < b.pos[0] + b.size[0] &&
    b.pos[0] < a.pos[0] + a.size[0] &&
    a.pos[1] - title < b.pos[1] + b.size[1] &&
    b.pos[1] - title < a.pos[1] + a.size[1]
  );
}

// Places nodes below each other; gives where the next column may begin.
export function stack(nodes, left, top) {
  const title = LiteGraph.NODE_TITLE_HEIGHT ?? 30;
  for (const node of nodes) {
    node.pos = [left, top];
    top += node.size[1] + title + GAP; // nodes grow by a few lines once they tell how long the video gets
  }
  return Math.max(left, ...nodes.map((node) => left + node.size[0]));
}

function holds(group, node) {
  return [0, 1].every((i) => node.pos[i] >= group.pos[i] && node.pos[i] < group.pos[i] + group.size[i]);
}

// Shifts what was to the right of `source` and comes after it, until there is room for `added`; groups go along as a
// whole, and in a subgraph the box of its outputs.
export function makeRoom(source, added, followers) {
  const { graph } = source;
  const right = source.pos[0] + source.size[0];
  const nodes = [...followers].filter((node) => !added.includes(node) && node.pos[0] >= right);
  const after = (graph.groups ?? []).filter((group) => group.pos[0] >= right);
  const groups = after.filter((group) => nodes.some((node) => holds(group, node)));
  const members = graph.nodes.filter((node) => !added.includes(node) && groups.some((group) => holds(group, node)));
  const shifted = [...new Set([...nodes, ...members, ...groups])];
  const box = graph.outputNode;
  if (box?.pos?.[0] >= right) shifted.push(box);
  const needed = Math.max(...added.map((node) => node.pos[0] + node.size[0])) + GAP;
  const by = needed - Math.min(...shifted.map((item) => item.pos[0]));
  if (shifted.length && by > 0) for (const item of shifted) item.pos = [item.pos[0] + by, item.pos[1]];
  box?.arrange?.();
}

// Lets the new nodes slide down together where others are in their way.
export function avoidOthers(graph, added) {
  const others = graph.nodes.filter((node) => !added.includes(node));
  for (let tries = 0; tries <= others.length * added.length; tries++) {
    const met = added.flatMap((node) => others.filter((other) => overlap(node, other)).map((other) => [node, other]));
    if (!met.length) return;
    const [[node, blocker]] = met;
    const by = blocker.pos[1] + blocker.size[1] + GAP - node.pos[1];
    for (const moved of added) moved.pos = [moved.pos[0], moved.pos[1] + by];
  }
}
