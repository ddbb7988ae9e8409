// A node has written files that others choose from: do what a person would do by pressing R, so that the lists offer them.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

app.registerExtension({
  name: "MuLanNodes.ModelFiles",

  setup() {
    api.addEventListener("mulan_nodes.files", () => app.extensionManager.command.execute("Comfy.RefreshNodeDefinitions"));
  },
});
