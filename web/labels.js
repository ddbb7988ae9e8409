// Shows in the editor's language what ComfyUI's own translation leaves out: the values of choices, the hint in an empty
// text box, and the names of inputs that grow. Workflows and the API keep the English values.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

// the folder's name in custom_nodes: .../extensions/<name>/labels.js
const PACK = decodeURIComponent(new URL(".", import.meta.url).pathname.split("/").at(-2));
const FILTERED = 4; // longer menus of the canvas can be searched, except those with labels: lists of files stay searchable

let locales = {}; // what the packs' locales folders hold

function inputTexts(node) {
  const locale = app.extensionManager.setting.get("Comfy.Locale");
  return locales[locale]?.nodeDefs?.[node.comfyClass]?.inputs ?? {};
}

function labelValues(widget, labels) {
  const values = widget.options.values;
  if (!Array.isArray(values) || values.filter((value) => !(value in labels)).length > FILTERED) return;
  widget.options.getOptionLabel = (value) => labels[value] ?? value ?? "";
}

function labelWidgets(node, texts) {
  for (const widget of node.widgets ?? []) {
    const known = texts[widget.name];
    if (known?.options && widget.options) labelValues(widget, known.options);
    if (known?.name && widget.element?.placeholder === widget.name) widget.element.placeholder = known.name;
  }
}

// images.image_2 is the second item of images
function labelItems(node, texts) {
  for (const input of node.inputs ?? []) {
    const [group, item] = input.name.split(".");
    const word = item && texts[group]?.item;
    if (word) input.label = `${word} ${item.split("_").at(-1)}`;
  }
  node.graph?.trigger("node:slot-label:changed", { nodeId: node.id, slotType: LiteGraph.INPUT }); // for Nodes 2.0
}

app.registerExtension({
  name: "MuLanNodes.Labels",

  async init() {
    locales = await api.getCustomNodesI18n();
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.python_module !== `custom_nodes.${PACK}`) return;
    const { onNodeCreated, onConnectionsChange } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...given) {
      onNodeCreated?.apply(this, given);
      const texts = inputTexts(this);
      labelWidgets(this, texts);
      labelItems(this, texts);
    };
    // the editor adds and removes items after this, in the next frame
    nodeType.prototype.onConnectionsChange = function (...given) {
      onConnectionsChange?.apply(this, given);
      const texts = inputTexts(this);
      if (Object.values(texts).some((known) => known.item)) {
        requestAnimationFrame(() => requestAnimationFrame(() => labelItems(this, texts)));
      }
    };
  },
});
