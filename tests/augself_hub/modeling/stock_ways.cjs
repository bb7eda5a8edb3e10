// What transformers.js makes of a model folder, alone: node stock_ways.cjs FOLDER PHOTO PIXELS SIDE
// PIXELS holds float32, (N, 3, SIDE, SIDE). Prints the pooler's output of these, and the pipeline's.
const fs = require("node:fs");
const path = require("node:path");
const { AutoModel, Tensor, env, pipeline } = require("@huggingface/transformers");

async function main([folder, photo, file, side]) {
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(folder);
  const name = path.basename(folder);
  const bytes = fs.readFileSync(file);
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const dims = [values.length / (3 * side * side), 3, Number(side), Number(side)];
  const model = await AutoModel.from_pretrained(name);
  const answer = await model({ pixel_values: new Tensor("float32", values, dims) });
  const extract = await pipeline("image-feature-extraction", name);
  const features = await extract(photo, { pool: true });
  const { pooler_output: pooled, last_hidden_state: hidden } = answer;
  const said = { pooled: [...pooled.data], hidden: hidden.dims, pipeline: [...features.data] };
  console.log(JSON.stringify(said));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
