// Shows a node's result as text inside the node: while it is written, and until the next run.
// The frontend's own progress text goes when a job ends. Line breaks are kept in both kinds of nodes.
// A workflow is saved without its results and without the room they take, so a run leaves it unchanged.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const EVENT = "mulan_nodes.text"; // sent while a node writes: {node: execution id, text}
const OUTPUT = "mulan_text"; // what a finished node shows, in its ui output
const WIDGET = "result";
const MIN_HEIGHT = 60;
const ROOM = 110; // for the text below the node's own widgets; people may resize it

function showText(node, text, writing = false) {
  const element = (node.widgets?.find((each) => each.name === WIDGET) ?? (text && addTextWidget(node)))?.element;
  if (!element) return;
  const atEnd = writing && element.scrollTop + element.clientHeight >= element.scrollHeight - 4;
  element.textContent = text;
  if (atEnd) element.scrollTop = element.scrollHeight; // follow what is being written
}

function addTextWidget(node) {
  const element = document.createElement("div");
  element.className = "mulan-result";
  element.setAttribute("dir", "auto");
  Object.assign(element.style, {
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere",
    overflow: "auto",
    contain: "size", // a long text is scrolled: it does not make a Nodes 2.0 node longer
    width: "100%",
    height: "100%",
    minHeight: window.LiteGraph?.vueNodesMode ? `${ROOM - 10}px` : "",
    userSelect: "text",
    cursor: "text",
    padding: "4px 6px",
    boxSizing: "border-box",
    fontSize: "12px",
    lineHeight: "1.4",
    color: "var(--input-text, #ddd)",
    background: "var(--comfy-input-bg, #222)",
    borderRadius: "4px",
  });
  element.addEventListener("pointerdown", (event) => event.stopPropagation()); // select text, do not move the node
  element.addEventListener("wheel", (event) => {
    if (element.scrollHeight > element.clientHeight) event.stopPropagation(); // scroll, do not zoom
  });
  const [width, height] = node.size;
  const needed = node.computeSize()[1] + ROOM;
  const widget = node.addDOMWidget(WIDGET, "mulan_text", element, {
    serialize: false,
    hideInPanel: true,
    getMinHeight: () => MIN_HEIGHT,
    getValue: () => element.textContent,
    setValue: (value) => (element.textContent = value ?? ""),
  });
  widget.serialize = false;
  node.setSize([width, Math.max(height, needed)]);
  saveWithoutRoom(node, height);
  app.graph?.setDirtyCanvas(true, true);
  return widget;
}

function saveWithoutRoom(node, height) {
  let room = node.size[1] - height;
  setTimeout(() => (room = node.size[1] - height), 300); // Nodes 2.0 have been laid out by then
  const onSerialize = node.onSerialize;
  node.onSerialize = function (saved) {
    onSerialize?.call(this, saved);
    if (saved.size) saved.size = [saved.size[0], saved.size[1] - room];
  };
}

// An execution id names the way through subgraphs: "12:7" is node 7 inside node 12. A locator id begins with the
// subgraph's own id.
function findNode(id) {
  const root = app.rootGraph ?? app.graph;
  const parts = String(id).split(":");
  let graph = root?.subgraphs?.has(parts[0]) ? root.subgraphs.get(parts.shift()) : root;
  let node = null;
  for (const part of parts) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node;
}

function showOutputs(outputs) {
  for (const [id, output] of Object.entries(outputs ?? {})) {
    const text = shownText(output);
    const node = text === undefined ? null : findNode(id);
    if (node) showText(node, text);
  }
}

function shownText(output) {
  const text = output?.[OUTPUT];
  return Array.isArray(text) ? text.join("\n\n") : undefined;
}

app.registerExtension({
  name: "MuLanNodes.Results",

  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      const node = findNode(detail.node);
      if (node) showText(node, detail.text, true);
    });
  },

  beforeRegisterNodeDef(nodeType) {
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output, ...rest) {
      onExecuted?.call(this, output, ...rest);
      const text = shownText(output);
      if (text !== undefined) showText(this, text);
    };
  },

  // The editor keeps the outputs, not the widgets: when another workflow was open in between, and after an undo.
  onNodeOutputsUpdated: showOutputs,
  afterConfigureGraph: () => showOutputs(app.nodeOutputs),
});
