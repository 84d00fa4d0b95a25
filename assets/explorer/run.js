// Runs the exported networks with ONNX Runtime Web on one thread. All that is needed comes as scripts, since a page
// that is opened from a folder may not fetch files; it is asked for only when `start` is called.
(() => {
  "use strict";
  const page = (window.payattnExplorer ??= {});

  const script = (address) => new Promise((done, failed) => {
    const tag = document.createElement("script");
    tag.src = address;
    tag.onload = done;
    tag.onerror = () => failed(new Error(`${address} is missing`));
    document.head.append(tag);
  });

  // base64 of gzip, as bytes
  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Load the list of networks, then the runtime and one session per network.
  page.start = async ([networks, ...runtime], listed) => {
    await script(networks);
    listed();
    if (typeof DecompressionStream === "undefined" || typeof WebAssembly === "undefined")
      throw new Error("this browser is too old: it has no DecompressionStream or no WebAssembly");
    for (const address of runtime) await script(address);
    const {ort} = window, wasm = new Blob([await unpacked(window.payattnRuntime)], {type: "application/wasm"});
    window.payattnRuntime = "";
    const address = URL.createObjectURL(wasm);
    Object.assign(ort.env.wasm, {numThreads: 1, wasmPaths: {"ort-wasm-simd.wasm": address}});
    for (const network of window.payattnNetworks.networks) {
      network.session = await ort.InferenceSession.create(await unpacked(network.onnx), {executionProviders: ["wasm"]});
      network.onnx = "";
    }
    URL.revokeObjectURL(address);
  };

  // Logits and maps, each a flat Float32Array with its sides, of one picture: planar RGB, uint8.
  page.run = async (network, pixels) => {
    const {size, session} = network, images = Float32Array.from(pixels, (value) => value / 255);
    const found = await session.run({images: new window.ort.Tensor("float32", images, [1, 3, size, size])});
    const maps = Object.keys(network.maps).map((name) => ({name, values: found[name].data, sides: found[name].dims.slice(1)}));
    return {logits: found.logits.data, maps};
  };
})();
