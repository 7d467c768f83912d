// The story, told with @gradientai/nodejs-sdk.

const { Gradient } = require("@gradientai/nodejs-sdk");
const story = JSON.parse(require("fs").readFileSync(0, "utf8"));

async function ids(gradient) {
  return (await gradient.listModels({ onlyBase: false })).map((model) => model.id);
}

async function main() {
  const gradient = new Gradient({});
  const base = await gradient.getBaseModel({ baseModelSlug: "tiny" });
  const adapter = await base.createModelAdapter({ name: "node", rank: 8, learningRate: 0.005 });
  const ask = async (query) =>
    (await adapter.complete({ query, maxGeneratedTokenCount: 40 })).generatedOutput;
  const told = {
    listed: await ids(gradient),
    adapter: adapter.id,
    known: await ask(story.known),
    before: await ask(story.query),
    losses: [],
  };
  for (let time = 0; time < story.times; time++) {
    const tuned = await adapter.fineTune({ samples: [{ inputs: story.sample }] });
    told.losses.push(tuned.sumLoss / tuned.numberOfTrainableTokens);
  }
  told.after = await ask(story.query);
  const embeddings = await gradient.getEmbeddingsModel({ slug: "bge-large" });
  const inputs = story.texts.map((input) => ({ input }));
  told.vectors = (await embeddings.generateEmbeddings({ inputs })).embeddings.map((each) => each.embedding);
  await adapter.delete();
  told.left = await ids(gradient);
  console.log(JSON.stringify(told));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
