// Builds an example workflow on the page: window.vidrdBuild(name, uuid, rows, sizes, properties) -> its JSON as text.
(() => {
  const GAP = 40, PADDING = 20, TITLE = 30, GROUP_TITLE = 50;
  const ROOM = 60; // below a node, which gets a few lines higher once it tells what a run took

  function makeNode(spec, sizes, properties) {
    const node = LiteGraph.createNode(spec.type);
    if (!node) throw new Error(`the node type ${spec.type} is not registered`);
    app.graph.add(node);
    if (spec.title) node.title = spec.title;
    for (const [name, value] of Object.entries(spec.values)) {
      const widget = name ? node.widgets.find((entry) => entry.name === name) : node.widgets[0];
      if (!widget) throw new Error(`${spec.type} has no widget ${name}`);
      widget.value = value;
    }
    Object.assign(node.properties, spec.type.startsWith("VidRD") ? properties : {}, spec.properties);
    const [width, height] = spec.size ?? sizes[spec.type] ?? [0, 0];
    const least = node.computeSize();
    node.setSize([Math.max(width, least[0]), Math.max(height, least[1])]);
    return node;
  }

  function connect(nodes, spec) {
    for (const [name, origin] of Object.entries(spec.wires)) {
      const [key, output] = origin.split(".");
      const slot = nodes[spec.key].inputs.findIndex((input) => input.name === name);
      if (slot < 0) throw new Error(`${spec.type} has no input ${name}`);
      if (!nodes[key].connect(Number(output), nodes[spec.key], slot)) throw new Error(`${origin} does not fit ${name}`);
    }
  }

  // Columns side by side, the nodes of a column below each other; gives the group's box.
  function placeGroup(group, nodes, left, top) {
    let x = left + PADDING, bottom = top;
    for (const column of group.columns) {
      let y = top + GROUP_TITLE + TITLE, width = 0;
      for (const spec of column) {
        const node = nodes[spec.key];
        node.pos = [x, y];
        y += node.size[1] + TITLE + ROOM;
        width = Math.max(width, node.size[0]);
      }
      for (const spec of column) nodes[spec.key].setSize([width, nodes[spec.key].size[1]]);
      bottom = Math.max(bottom, y - TITLE - ROOM);
      x += width + GAP;
    }
    return [left, top, x - GAP + PADDING - left, bottom + PADDING - top];
  }

  function placeRows(rows, nodes) {
    let top = 0;
    for (const row of rows) {
      let left = 0, bottom = top;
      for (const group of row) {
        const box = placeGroup(group, nodes, left, top);
        const frame = new LiteGraph.LGraphGroup(group.title);
        frame.pos = [box[0], box[1]];
        frame.size = [box[2], box[3]];
        app.graph.add(frame);
        left += box[2] + GAP;
        bottom = Math.max(bottom, top + box[3]);
      }
      top = bottom + GAP;
    }
  }

  window.vidrdBuild = async (uuid, rows, sizes, properties) => {
    app.graph.clear();
    app.graph.id = uuid;
    const specs = rows.flat().flatMap((group) => group.columns.flat());
    const nodes = Object.fromEntries(specs.map((spec) => [spec.key, makeNode(spec, sizes, properties)]));
    for (const spec of specs) connect(nodes, spec);
    await new Promise((done) => setTimeout(done, 500)); // the nodes' own lines come a moment later, and make them higher
    placeRows(rows, nodes);
    vidrdCheck.fit();
    return JSON.stringify(app.graph.serialize());
  };
})();
