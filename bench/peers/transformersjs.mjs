// transformers.js in Node on EdgeVLM's ONNX files: the protocol of protocol.py.
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [mode, folder, threads, work] = process.argv.slice(2);
if (mode === "prepare") {
  console.log(JSON.stringify({ seconds: null, error: "its converter has no class for this family; EdgeVLM's files are taken" }));
  process.exit(0);
}
const require = createRequire(`${process.env.NODE_ENVIRONMENT}/package.json`);
const js = await import(pathToFileURL(require.resolve("@huggingface/transformers")));
js.env.allowRemoteModels = false;
js.env.localModelPath = `${folder}/`;

const peak = () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
const say = (reply) => process.stdout.write(`${JSON.stringify({ ...reply, peak: peak() })}\n`);
const now = () => performance.now() / 1000;

let start = now();
const names = ["vision_encoder", "embed_tokens", "decoder_model_merged"];
const externalData = names.map((name) => ({ path: `${name}.onnx_data`, data: `onnx/${name}.onnx_data` }));
const session_options = { externalData, intraOpNumThreads: Number(threads) };
const model = await js.AutoModelForImageTextToText.from_pretrained("bundle", { dtype: "fp32", session_options });
const tile = npy(`${work}/tile.npy`);
const ids = JSON.parse(readFileSync(`${work}/ids.json`));
say({ load: now() - start });

function npy(file) {
  const bytes = readFileSync(file);
  const header = bytes.readUInt16LE(8);
  const shape = /'shape': \(([^)]*)\)/.exec(bytes.toString("latin1", 10, 10 + header))[1].split(",").map(Number);
  return { data: bytes.subarray(10 + header), height: shape[0], width: shape[1] };
}

function pixels(shift) {
  const { data, height, width } = tile;
  const out = new Float32Array(3 * height * width);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++)
        out[(c * height + y) * width + ((x + shift) % width)] = data[(y * width + x) * 3 + c] / 127.5 - 1;
  return {
    pixel_values: new js.Tensor("float32", out, [1, 1, 3, height, width]),
    pixel_attention_mask: new js.Tensor("bool", new Uint8Array(height * width).fill(1), [1, 1, height, width]),
  };
}

class Clock extends js.BaseStreamer {
  constructor() { super(); this.times = []; }
  put() { this.times.push(now()); }
  end() {}
}

async function answer(prompt, count) {
  const input_ids = new js.Tensor("int64", BigInt64Array.from(prompt.map(BigInt)), [1, prompt.length]);
  const attention_mask = new js.Tensor("int64", new BigInt64Array(prompt.length).fill(1n), [1, prompt.length]);
  const streamer = new Clock();
  const started = now();
  const output = await model.generate({
    input_ids, attention_mask, streamer, max_new_tokens: count, min_new_tokens: count, do_sample: false,
  });
  const found = output.tolist()[0].slice(prompt.length).map(Number);
  const times = streamer.times.slice(1); // the first call has the prompt itself
  return { found, prefill: times[0] - started, decode: (times[times.length - 1] - times[0]) / Math.max(1, count - 1) };
}

let turn = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const task = JSON.parse(line);
  turn += 1;
  try {
    const changed = task.changed ?? true;
    if (task.do === "encode") {
      const given = pixels(changed ? turn : 0);
      start = now();
      const { image_features } = await model.sessions.vision_encoder.run(
        Object.fromEntries(model.sessions.vision_encoder.inputNames.map((name) => [name, given[name].ort_tensor])),
      );
      const seconds = now() - start;
      if (task.features) writeNpy(task.features, image_features);
      say({ seconds });
    } else {
      const at = changed ? turn % 7 : 0;
      const count = task.do === "decode" ? task.count + 1 : 1;
      const { found, prefill, decode } = await answer(ids.slice(at, at + task.tokens), count);
      say(task.do === "decode" ? { seconds: decode, ids: found } : { seconds: prefill, token: found[0] });
    }
  } catch (error) {
    say({ error: String(error).slice(0, 300) });
  }
}

function writeNpy(file, tensor) {
  const shape = [tensor.dims.at(-2), tensor.dims.at(-1)];
  let header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")}), }`;
  header = header.padEnd(64 * Math.ceil((header.length + 11) / 64) - 11) + "\n";
  const head = Buffer.alloc(10);
  head.write("\x93NUMPY", 0, "latin1");
  head[6] = 1;
  head.writeUInt16LE(header.length, 8);
  writeFileSync(file, Buffer.concat([head, Buffer.from(header), Buffer.from(tensor.data.buffer)]));
}
