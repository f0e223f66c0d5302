// Reads the Prometheus text format as strictly as its specification allows, and asks a server for it.

import assert from "node:assert/strict";

import { expectStatus } from "./harness.mjs";

const SAMPLE = /^([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)$/;
const LABEL = /([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"/g;

/** The families of an exposition: name -> {type, help, samples: [{name, labels, value}]}. */
export function parse(text) {
  assert.ok(text.endsWith("\n"), "the last line ends like all others");
  const families = new Map();
  const seen = new Set();
  let family;
  for (const line of text.slice(0, -1).split("\n")) {
    const [, word, name, rest] = /^# (HELP|TYPE) ([a-z_]+) (.+)$/.exec(line) ?? [];
    if (word === "HELP") {
      assert.ok(!families.has(name), `${name} comes twice`);
      family = { help: rest, samples: [] };
      families.set(name, family);
    } else if (word === "TYPE") {
      assert.equal(families.get(name), family, `TYPE of ${name} right behind its HELP`);
      assert.match(rest, /^(counter|gauge|histogram)$/);
      family.type = rest;
      assert.equal(rest === "counter", name.endsWith("_total"), `${name} is a ${rest}`);
    } else {
      const [, sample, labelled = "", number] = SAMPLE.exec(line) ?? assert.fail(`no sample: ${line}`);
      const labels = Object.fromEntries([...labelled.matchAll(LABEL)].map(([, label, value]) => [label, value]));
      const own = [...families.keys()].at(-1);
      const suffixes = family.type === "histogram" ? ["_bucket", "_sum", "_count"] : [""];
      assert.ok(suffixes.some((suffix) => sample === own + suffix), `${sample} stands in the family ${own}`);
      assert.ok(!seen.has(`${sample}{${labelled}}`), `${line} comes twice`);
      seen.add(`${sample}{${labelled}}`);
      const value = Number(number);
      assert.ok(Number.isFinite(value) && value >= 0, line);
      family.samples.push({ name: sample, labels, value });
    }
  }
  for (const [name, { type, samples }] of families) if (type === "histogram") checkHistogram(name, samples);
  return families;
}

/** Buckets ascend, are cumulative, and the last holds all. */
function checkHistogram(name, samples) {
  let before = { bound: -Infinity, value: 0 };
  for (const { name: part, labels, value } of samples) {
    if (part === `${name}_bucket`) {
      const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
      assert.ok(bound > before.bound && value >= before.value, `${name} le=${labels.le}`);
      before = { bound, value };
    } else if (part === `${name}_count`) {
      assert.deepEqual(before, { bound: Infinity, value }, `${name} ends with +Inf, which holds all`);
      before = { bound: -Infinity, value: 0 };
    }
  }
}

/** The metrics of a server at this moment. */
export class Metrics {
  constructor(families) {
    this.families = families;
  }

  static async of(server) {
    return new Metrics(parse(expectStatus(await server.api("/metrics"), 200)));
  }

  /** The value of the one sample with these labels, or nothing. */
  find(name, labels = {}) {
    const family = this.families.get(name.replace(/_(bucket|sum|count)$/, "")) ?? this.families.get(name);
    const fits = (sample) => sample.name === name && Object.entries(labels).every(([label, value]) => sample.labels[label] === value);
    const found = family?.samples.filter(fits) ?? [];
    assert.ok(found.length <= 1, `${name} ${JSON.stringify(labels)} is ${found.length} samples`);
    return found[0]?.value;
  }

  /** The same of a sample that must be there. */
  get(name, labels) {
    const value = this.find(name, labels);
    assert.notEqual(value, undefined, `${name} ${JSON.stringify(labels ?? {})} is not there`);
    return value;
  }
}
