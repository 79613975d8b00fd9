// The original package under the same tasks as benchmarks/guide.py. One JSON request a line on stdin, one JSON
// answer a line on stdout, so that rounds of both implementations can be interleaved. Arguments: none, or
// `memory PROFILE N` for a process of its own that prints its growth.
//   node --expose-gc probe.js
'use strict';
const { SonaEngine } = require('@ruvector/sona');
const { direction, ewc, regression } = require('./learn');

const DIM = 3072;
const PROFILES = { // the guide's, verbatim
  realtime: { hiddenDim: DIM, microLoraRank: 2, baseLoraRank: 4, microLoraLr: 0.0005, qualityThreshold: 0.7, patternClusters: 25, trajectoryCapacity: 500, enableSimd: true },
  batch: { hiddenDim: DIM, microLoraRank: 2, baseLoraRank: 8, microLoraLr: 0.001, qualityThreshold: 0.5, patternClusters: 50, trajectoryCapacity: 5000, backgroundIntervalMs: 1800000, enableSimd: true },
  research: { hiddenDim: DIM, microLoraRank: 2, baseLoraRank: 16, microLoraLr: 0.002, baseLoraLr: 0.0002, ewcLambda: 2000, qualityThreshold: 0.2, patternClusters: 100, trajectoryCapacity: 10000, backgroundIntervalMs: 900000, enableSimd: true },
  edge: { hiddenDim: DIM, microLoraRank: 1, baseLoraRank: 4, microLoraLr: 0.001, qualityThreshold: 0.6, patternClusters: 15, trajectoryCapacity: 200, backgroundIntervalMs: 7200000, enableSimd: true },
};

const { mulberry32, normal, cosine, unit, plus, near, mean, trajectory } = require('./vectors');

const random = mulberry32(1);
const INPUTS = Array.from({ length: 64 }, () => unit(normal(DIM, random)));
const ATTENTION = new Array(64).fill(1 / 64);

function seconds(body) {
  const began = process.hrtime.bigint();
  body();
  return Number(process.hrtime.bigint() - began) / 1e9;
}

// the guide's "Basic LLM Enhancement", the model's own layers left out
function inference(engine, layers, i) {
  const query = INPUTS[i & 63];
  const id = engine.beginTrajectory(query);
  let hidden = query;
  for (let layer = 0; layer < layers; layer++) hidden = engine.applyMicroLora(hidden);
  engine.addTrajectoryStep(id, hidden, ATTENTION, 0.8);
  engine.endTrajectory(id, 0.8);
  engine.tick();
}

function patternsStored(engine) {
  return Number(/"?patterns_stored"?\s*:\s*(\d+)/.exec(engine.getStats())[1]);
}

// Four clusters with a target each; quality is the cosine to the target, as in benchmarks/guide_parts/learning.py.
function learning({ profile, dim, trajectories, seed, shuffled }) {
  const draw = mulberry32(seed), noise = mulberry32(seed + 999);
  const centres = Array.from({ length: 4 }, () => unit(normal(dim, draw)));
  const targets = centres.map(() => unit(normal(dim, draw)));
  const sample = () => { const k = Math.floor(draw() * 4); return [near(centres[k], 0.3, draw), targets[k]]; };
  const engine = SonaEngine.withConfig({ ...PROFILES[profile], hiddenDim: dim });
  const test = Array.from({ length: 200 }, sample);
  const quality = () => mean(test.map(([x, target]) => (1 + cosine(engine.applyMicroLora(x), target)) / 2));
  const before = quality();
  for (let i = 0; i < trajectories; i++) {
    const [x, target] = sample(), out = engine.applyMicroLora(x);
    const steps = Array.from({ length: 4 }, () => {
      const candidate = plus(out, unit(normal(dim, draw)), 0.5);
      return [candidate, shuffled ? noise() : (1 + cosine(candidate, target)) / 2];
    });
    trajectory(engine, x, steps, shuffled ? noise() : (1 + cosine(out, target)) / 2, []);
  }
  engine.flush();
  return { before, after: quality() };
}

const engines = {};
const operations = {
  make: ({ name, profile, change }) => { engines[name] = SonaEngine.withConfig({ ...PROFILES[profile], ...change }); return {}; },
  drop: ({ name }) => { delete engines[name]; global.gc(); return {}; },
  micro: ({ name, n }) => { const e = engines[name]; return { seconds: seconds(() => { for (let i = 0; i < n; i++) e.applyMicroLora(INPUTS[i & 63]); }) }; },
  base: ({ name, n }) => { const e = engines[name]; return { seconds: seconds(() => { for (let i = 0; i < n; i++) e.applyBaseLora(0, INPUTS[i & 63]); }) }; },
  inference: ({ name, n, layers }) => { const e = engines[name]; return { seconds: seconds(() => { for (let i = 0; i < n; i++) inference(e, layers, i); }) }; },
  trajectory: ({ name, n }) => { const e = engines[name]; return { seconds: seconds(() => { for (let i = 0; i < n; i++) trajectory(e, INPUTS[i & 63], [[INPUTS[(i + 7) & 63], 0.5]], 0.8, ATTENTION); }) }; },
  tokens: ({ name, n }) => { // the adapter once a token, one trajectory for every 64 tokens
    const e = engines[name];
    return { seconds: seconds(() => {
      let id;
      for (let i = 0; i < n; i++) {
        if (i % 64 === 0) id = e.beginTrajectory(INPUTS[i & 63]);
        const hidden = e.applyMicroLora(INPUTS[i & 63]);
        if (i % 64 === 63) { e.addTrajectoryStep(id, hidden, ATTENTION, 0.8); e.endTrajectory(id, 0.8); e.tick(); }
      }
    }) };
  },
  fill: ({ name, n, clusters, spread, seed }) => {
    const draw = mulberry32(seed), centres = Array.from({ length: clusters }, () => unit(normal(DIM, draw)));
    for (let i = 0; i < n; i++) { const x = near(centres[i % clusters], spread, draw); trajectory(engines[name], x, [[x, 0.8]], 0.8, []); }
    return {};
  },
  learn: ({ name }) => { const e = engines[name]; let said; return { seconds: seconds(() => { said = e.forceLearn(); }), said, patterns: patternsStored(e) }; },
  find: ({ name, n, k }) => { const e = engines[name]; return { seconds: seconds(() => { for (let i = 0; i < n; i++) e.findPatterns(INPUTS[i & 63], k); }) }; },
  learning, direction, regression, ewc,
  version: () => ({ version: require('@ruvector/sona/package.json').version, node: process.version }),
};

function memory(profile, n) {
  const rss = () => { for (let i = 0; i < 3; i++) global.gc(); return process.memoryUsage().rss; };
  SonaEngine.withConfig({ hiddenDim: 8 }).applyMicroLora(new Array(8).fill(1)); // the native module is loaded
  const before = rss();
  const engine = SonaEngine.withConfig({ ...PROFILES[profile], trajectoryCapacity: Math.max(n, 1) });
  engine.applyMicroLora(INPUTS[0]);
  const empty = rss();
  for (let i = 0; i < n; i++) trajectory(engine, INPUTS[i & 63], [[INPUTS[(i + 3) & 63], 0.8]], 0.8, ATTENTION);
  const full = rss();
  console.log(JSON.stringify({ growth: full - before, trajectory_bytes: (full - empty) / n }));
}

if (process.argv[2] === 'memory') {
  memory(process.argv[3], Number(process.argv[4]));
} else {
  require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
    const { op, ...options } = JSON.parse(line);
    process.stdout.write(JSON.stringify(operations[op](options)) + '\n');
  });
}
