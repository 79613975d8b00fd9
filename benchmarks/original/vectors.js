// Vectors and trajectories that the tasks share.
'use strict';

function mulberry32(seed) {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
const gaussian = (random) => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
const normal = (dim, random) => Array.from({ length: dim }, () => gaussian(random));
const dot = (a, b) => { let sum = 0; for (let i = 0; i < a.length; i++) sum += a[i] * b[i]; return sum; };
const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
const unit = (v) => { const norm = Math.sqrt(dot(v, v)); return v.map((x) => x / norm); };
const plus = (a, b, scale) => a.map((x, i) => x + scale * b[i]);
const near = (centre, spread, random) => unit(plus(centre, unit(normal(centre.length, random)), spread));
const mean = (values) => values.reduce((sum, v) => sum + v, 0) / values.length;

function trajectory(engine, query, steps, quality, attention) {
  const id = engine.beginTrajectory(query);
  for (const [activation, reward] of steps) engine.addTrajectoryStep(id, activation, attention, reward);
  engine.endTrajectory(id, quality);
}

module.exports = { mulberry32, normal, dot, cosine, unit, plus, near, mean, trajectory };
