// Shows in the editor's language what ComfyUI's own translation leaves out: the values of choices, the hint in an empty
// text box, and the names of inputs that grow. Workflows and the API keep the English values.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

// the folder's name in custom_nodes: .../extensions/<name>/labels.js
const PACK = decodeURIComponent(new URL(".", import.meta.url).pathname.split("/").at(-2));
const FILTERED = 4; // longer menus of the canvas can be searched, except those with labels: lists of files stay searchable

let locales = {}; // what the packs' locales folders hold

function inputTexts(node, locale = app.extensionManager.setting.get("Comfy.Locale")) {
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
function itemLabel(texts, name) {
  const [group, item] = name.split(".");
  const word = texts[group]?.item;
  return word ? `${word} ${item.split("_").at(-1)}` : item;
}

// a saved workflow brings the labels of the language it was saved in, and those that a person wrote
function labelItem(node, input, label = input.label) {
  if (!input.name.includes(".")) return;
  const labels = ["en", ...Object.keys(locales)].map((locale) => itemLabel(inputTexts(node, locale), input.name));
  input.label = !label || labels.includes(label) ? itemLabel(inputTexts(node), input.name) : label;
}

app.registerExtension({
  name: "MuLanNodes.Labels",

  async init() {
    locales = await api.getCustomNodesI18n();
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.python_module !== `custom_nodes.${PACK}`) return;
    const { onNodeCreated, onConfigure, onInputAdded } = nodeType.prototype;
    nodeType.prototype.onNodeCreated = function (...given) {
      onNodeCreated?.apply(this, given);
      labelWidgets(this, inputTexts(this));
    };
    nodeType.prototype.onInputAdded = function (input, ...given) {
      onInputAdded?.call(this, input, ...given);
      labelItem(this, input);
    };
    nodeType.prototype.onConfigure = function (saved, ...given) {
      onConfigure?.call(this, saved, ...given);
      // growing again has made new inputs, without what a person wrote
      for (const input of this.inputs ?? []) {
        labelItem(this, input, saved.inputs?.find(({ name }) => name === input.name)?.label);
      }
    };
  },
});
