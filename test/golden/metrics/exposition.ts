/**
 * A strict reader of Prometheus' text format 0.0.4, written from its documentation
 * (prometheus.io/docs/instrumenting/exposition_formats), not from the library that writes our page. Throws on anything a
 * scraper may refuse.
 */
export interface Family {
  readonly name: string;
  readonly type: string;
  readonly help: string;
  readonly samples: readonly Sample[];
}

export interface Sample {
  readonly name: string;
  readonly labels: ReadonlyMap<string, string>;
  readonly value: number;
}

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/;
const SUFFIXES: Readonly<Record<string, readonly string[]>> = {
  counter: [''],
  gauge: [''],
  histogram: ['_bucket', '_sum', '_count'],
  summary: ['', '_sum', '_count'],
};

export function parseExposition(text: string): ReadonlyMap<string, Family> {
  if (!text.endsWith('\n')) throw new Error('the last line must end with a line feed');
  const families = new Map<string, { name: string; type: string; help: string; samples: Sample[] }>();
  let current: { name: string; type: string; help: string; samples: Sample[] } | undefined;
  const seen = new Set<string>();

  for (const line of text.split('\n')) {
    if (line === '') continue;
    const comment = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line);
    if (comment !== null) {
      const [, kind, name = '', rest = ''] = comment;
      if (!NAME.test(name)) throw new Error(`bad name: ${line}`);
      if (kind === 'HELP') {
        if (families.has(name)) throw new Error(`twice: ${line}`);
        current = { name, type: '', help: rest, samples: [] };
        families.set(name, current);
      } else {
        if (current?.name !== name || current.type !== '') throw new Error(`TYPE out of place: ${line}`);
        if (!(rest in SUFFIXES)) throw new Error(`unknown type: ${line}`);
        current.type = rest;
      }
      continue;
    }
    if (line.startsWith('#')) throw new Error(`unexpected comment: ${line}`);
    const sample = parseSample(line);
    const family = current;
    if (family === undefined) throw new Error(`no family: ${line}`);
    if (!(SUFFIXES[family.type] ?? []).some((suffix) => sample.name === family.name + suffix)) {
      throw new Error(`not of ${family.name}: ${line}`);
    }
    const key = identity(sample.name, sample.labels);
    if (seen.has(key)) throw new Error(`sample twice: ${line}`);
    seen.add(key);
    if (family.type === 'counter' && !(sample.value >= 0)) throw new Error(`counter below zero: ${line}`);
    family.samples.push(sample);
  }
  for (const family of families.values()) {
    if (family.samples.length === 0) throw new Error(`no sample: ${family.name}`);
    if (family.type === 'histogram') checkHistogram(family);
  }
  return families;
}

/** The same text for the same name and labels, whatever their order. */
export function identity(name: string, labels: ReadonlyMap<string, string>): string {
  return `${name}{${[...labels]
    .map((label) => JSON.stringify(label))
    .sort()
    .join()}}`;
}

function parseSample(line: string): Sample {
  const head = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
  if (head === null) throw new Error(`bad sample: ${line}`);
  const [, name = '', labelText = '', valueText = ''] = head;
  const labels = new Map<string, string>();
  let rest = labelText;
  while (rest !== '') {
    const label = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\n"])*)"(?:,|$)/.exec(rest);
    if (label === null) throw new Error(`bad labels: ${line}`);
    const [all, key = '', value = ''] = label;
    if (labels.has(key)) throw new Error(`label twice: ${line}`);
    labels.set(key, value.replace(/\\(.)/g, (_, c: string) => (c === 'n' ? '\n' : c)));
    rest = rest.slice(all.length);
  }
  return { name, labels, value: parseValue(valueText) };
}

function parseValue(text: string): number {
  if (text === '+Inf') return Infinity;
  if (text === '-Inf') return -Infinity;
  if (/^nan$/i.test(text)) return NaN;
  if (!/^[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?$/i.test(text)) throw new Error(`bad value: ${text}`);
  return Number(text);
}

function checkHistogram(family: Family): void {
  const series = new Map<string, Sample[]>();
  for (const sample of family.samples) {
    const key = identity('', new Map([...sample.labels].filter(([name]) => name !== 'le')));
    series.set(key, [...(series.get(key) ?? []), sample]);
  }
  for (const [key, samples] of series) {
    const buckets = samples.filter(({ name }) => name.endsWith('_bucket'));
    const bounds = buckets.map(({ labels }) => parseValue(labels.get('le') ?? ''));
    const counts = buckets.map(({ value }) => value);
    const count = samples.find(({ name }) => name.endsWith('_count'))?.value;
    const rising = (values: readonly number[]): boolean =>
      values.every((value, at) => at === 0 || value >= (values[at - 1] ?? NaN));
    if (!rising(bounds) || !rising(counts) || bounds.at(-1) !== Infinity || counts.at(-1) !== count) {
      throw new Error(`histogram ${family.name}${key} is not consistent`);
    }
    if (!samples.some(({ name }) => name.endsWith('_sum'))) throw new Error(`no sum: ${family.name}${key}`);
  }
}
