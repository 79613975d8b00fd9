// Does it learn? The tasks of benchmarks/learning_parts/original.py, which explains them, for the original.
'use strict';
const { createHash } = require('crypto');
const { SonaEngine } = require('@ruvector/sona');
const { mulberry32, normal, dot, cosine, unit, plus, near, mean, trajectory } = require('./vectors');

const engineOf = (dim, change) => SonaEngine.withConfig({
  hiddenDim: dim, microLoraRank: 2, baseLoraRank: 8, microLoraLr: 0.002, qualityThreshold: 0.2,
  patternClusters: 50, trajectoryCapacity: 10000, ...change,
});
const directionOf = (dim, random) => unit(normal(dim, random));

// Four noisy candidates around the present output (or so many as asked), rewarded by their cosine to the target.
function candidates(engine, x, target, steps, random, noise) {
  const y = engine.applyMicroLora(x);
  const made = Array.from({ length: steps }, () => {
    const candidate = plus(y, directionOf(x.length, random), 0.5);
    return [candidate, noise ? noise() : (1 + cosine(candidate, target)) / 2];
  });
  trajectory(engine, x, made, (1 + cosine(y, target)) / 2, []);
}

// Share of unseen inputs around one centre that move towards the target.
function direction({ seed, lr, dim, trajectories, inputs }) {
  const random = mulberry32(seed), centre = directionOf(dim, random), target = directionOf(dim, random);
  const engine = engineOf(dim, { microLoraLr: lr });
  for (let i = 0; i < trajectories; i++) {
    trajectory(engine, near(centre, 0.5, random), [[target, 1], [directionOf(dim, random), 0]], 1, []);
  }
  engine.flush();
  const moved = Array.from({ length: inputs }, () => {
    const x = near(centre, 0.5, random);
    return dot(plus(engine.applyMicroLora(x), x, -1), target) > 0 ? 1 : 0;
  });
  return { towards: mean(moved) };
}

// Four clusters with a target each: gain in mean cosine on unseen inputs.
function regression({ seed, lr, dim, trajectories, steps, shuffled, unseen }) {
  const random = mulberry32(seed), noise = shuffled ? mulberry32(seed + 999) : null;
  const centres = Array.from({ length: 4 }, () => directionOf(dim, random));
  const targets = centres.map(() => directionOf(dim, random));
  const sample = () => { const k = Math.floor(random() * 4); return [near(centres[k], 0.3, random), targets[k]]; };
  const engine = engineOf(dim, { microLoraLr: lr }), test = Array.from({ length: unseen }, sample);
  const score = () => test.map(([x, target]) => cosine(engine.applyMicroLora(x), target));
  const before = score();
  for (let i = 0; i < trajectories; i++) candidates(engine, ...sample(), steps, random, noise);
  engine.flush();
  const after = score();
  return {
    before: mean(before), after: mean(after),
    improved: mean(after.map((value, i) => (value > before[i] + 1e-9 ? 1 : 0))),
  };
}

// Task A, then task B at overlapping inputs, in background cycles: what of A is left.
function ewc({ seed, lr, dim, cycles, each, lambda, unseen }) {
  const random = mulberry32(seed), common = directionOf(dim, random);
  const centres = [0, 1].map(() => unit(plus(common, directionOf(dim, random), 1)));
  const targets = [0, 1].map(() => directionOf(dim, random));
  const tests = centres.map((centre) => Array.from({ length: unseen }, () => near(centre, 0.3, random)));
  const engine = engineOf(dim, { microLoraLr: lr, ewcLambda: lambda, patternClusters: 4, trajectoryCapacity: 200 });
  const score = (k) => mean(tests[k].map((x) => cosine(engine.applyMicroLora(x), targets[k])));
  const learn = (k) => {
    for (let cycle = 0; cycle < cycles; cycle++) {
      for (let i = 0; i < each; i++) candidates(engine, near(centres[k], 0.3, random), targets[k], 4, random, null);
      engine.forceLearn();
    }
    engine.flush();
  };
  const start = [score(0), score(1)];
  learn(0);
  const learned = score(0);
  learn(1);
  const outputs = createHash('sha256');
  for (const x of tests.flat()) outputs.update(Buffer.from(Float64Array.from(engine.applyMicroLora(x)).buffer));
  return {
    learned: learned - start[0], forgotten: learned - score(0), relearned: score(1) - start[1],
    tasks: Number(/"?ewc_tasks"?\s*:\s*(\d+)/.exec(engine.getStats())[1]), outputs: outputs.digest('hex'),
  };
}

module.exports = { direction, regression, ewc };
