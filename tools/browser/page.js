// What a template looks like in ComfyUI's editor. Lengths are in the graph's own pixels, whatever the zoom; a rectangle
// is [left, top, width, height] and holds the title.
(() => {
  const vue = () => app.extensionManager.setting.get('Comfy.VueNodes.Enabled') === true
  const settle = async frames => {
    app.canvas.setDirty(true, true)
    for (let i = 0; i < frames; i++) await new Promise(requestAnimationFrame)
  }
  const nodes = () => app.canvas.graph._nodes
  const domOf = node => document.querySelector(`[data-node-id="${node.id}"]`)

  function rectangle(node) {
    const dom = vue() && domOf(node)
    if (!dom) {
      node.updateArea?.()
      return Array.from(node.boundingRect)
    }
    const { scale, offset } = app.canvas.ds
    const box = dom.getBoundingClientRect()
    const canvas = app.canvas.canvas.getBoundingClientRect()
    return [
      (box.left - canvas.left) / scale - offset[0],
      (box.top - canvas.top) / scale - offset[1],
      box.width / scale,
      box.height / scale
    ]
  }

  // How much of the texts below `root` lies outside the boxes that hold them.
  function hiddenHeight(root) {
    let hidden = 0
    for (const part of [root, ...root.querySelectorAll('*')]) {
      const style = getComputedStyle(part)
      if (part.clientHeight > 0 && part.innerText !== '' && /auto|scroll|hidden/.test(style.overflowY))
        hidden = Math.max(hidden, part.scrollHeight - part.clientHeight)
    }
    return hidden
  }

  const roots = node =>
    vue() ? [domOf(node)].filter(Boolean) : (node.widgets ?? []).map(w => w.element).filter(e => e?.isConnected)

  async function show(node) {
    const { ds, canvas } = app.canvas
    ds.scale = 1
    const [x, y, width, height] = node.boundingRect
    ds.offset[0] = canvas.clientWidth / 2 - x - width / 2
    ds.offset[1] = canvas.clientHeight / 2 - y - height / 2
    await settle(4)
  }

  function result(node) {
    const pictures = (node.imgs ?? []).filter(image => image.naturalWidth > 0).length
    const dom = vue() ? [...(domOf(node)?.querySelectorAll('img, video') ?? [])].filter(i => i.naturalWidth > 0).length : 0
    const texts = (node.widgets ?? [])
      .filter(w => w.element && (w.options?.read_only || w.options?.serialize === false || w.serialize === false))
      .map(w => w.element.value ?? w.element.innerText ?? w.value ?? '')
      .concat((node.widgets ?? []).filter(w => !w.element && /preview|result/.test(w.name)).map(w => w.value ?? ''))
      .map(String)
      .filter(text => text.trim() !== '')
    return { pictures: vue() ? dom : pictures, texts }
  }

  window.measuring = {
    open: async (graph, name) => {
      await app.loadGraphData(graph, true, true, name, { openSource: 'template' })
      await settle(10)
    },
    view: () => ({
      zoom: app.canvas.ds.scale,
      blank: !vue() && !!app.canvas.low_quality,
      font: Math.min(
        14 * app.canvas.ds.scale,
        ...[...document.querySelectorAll('[data-node-id] .lg-node-widget, [data-node-id] .lg-slot, [data-node-id] p')]
          .filter(e => e.innerText?.trim())
          .map(e => parseFloat(getComputedStyle(e).fontSize) * app.canvas.ds.scale)
      ),
      dialogs: [...document.querySelectorAll('[role="dialog"], .p-dialog, [data-testid="error-overlay"]')]
        .filter(e => e.offsetWidth > 0)
        .map(e => e.innerText.trim().slice(0, 300))
        .filter(Boolean),
      unknown: nodes().filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type]).map(n => n.type)
    }),
    layout: async () => {
      await settle(4)
      return {
        nodes: nodes().map(n => ({
          id: String(n.id),
          type: n.type,
          title: n.title,
          rectangle: rectangle(n),
          note: /Note$/.test(n.type)
        })),
        groups: app.canvas.graph._groups.map(g => ({ title: g.title, rectangle: Array.from(g._bounding) }))
      }
    },
    // The hidden part of every node's texts, each looked at by itself at zoom 1.
    hidden: async () => {
      const { ds } = app.canvas
      const before = [ds.scale, ...ds.offset]
      const found = {}
      for (const node of nodes()) {
        if (!node.widgets?.length) continue
        await show(node)
        found[node.id] = Math.max(0, ...roots(node).map(hiddenHeight))
      }
      ;[ds.scale, ds.offset[0], ds.offset[1]] = before
      await settle(4)
      return found
    },
    results: async () => {
      const { ds } = app.canvas
      const before = [ds.scale, ...ds.offset]
      const found = {}
      for (const node of nodes()) {
        if (!node.constructor?.nodeData?.output_node && !node.isSubgraphNode?.()) continue
        await show(node)
        await settle(6)
        found[node.id] = { type: node.type, ...result(node) }
      }
      ;[ds.scale, ds.offset[0], ds.offset[1]] = before
      await settle(4)
      return found
    }
  }
})()
