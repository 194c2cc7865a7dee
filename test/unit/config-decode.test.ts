import { describe, expect, test } from 'vitest';
import {
  bool,
  ConfigError,
  type Decoder,
  decodeOptions,
  duration,
  float,
  int,
  key,
  list,
  map,
  object,
  oneOf,
  Place,
  size,
  Source,
  str,
  toYaml,
} from '../../src/config/decode.ts';
import { parseConfig } from '../../src/config/index.ts';

/** What a decoder makes of a whole text. */
function decode<T>(text: string, decoder: Decoder<T>): T {
  const source = Source.parse(text, 'f.yaml');
  const result = decoder.read(source.root === null ? [] : [source.root], new Place(source, '', null));
  source.throwComplaints();
  return result;
}

function complaints(action: () => unknown): readonly string[] {
  try {
    action();
  } catch (error) {
    if (error instanceof ConfigError) return error.complaints;
    throw error;
  }
  return expect.fail('nothing was wrong');
}

const tree = object({
  name: key('name', str({ required: true })),
  count: key('count', int({ default: 7, min: 1, max: 9 })),
  ratio: key('ratio', float()),
  every: key('every', duration({ default: 1000 })),
  room: key('room', size()),
  on: key('on', bool({ default: true })),
  kind: key('kind', oneOf(['red', 'blue'], { default: 'red' })),
  inner: key('inner', object({ a: key('a', int({ default: 1 })), b: key('b', int({ default: 2 })) })),
  items: key('items', list(int())),
  byName: key('by_name', map(object({ x: key('x', int({ default: 5 })) }))),
});

describe('decoding', () => {
  test('absent keys have their defaults', () => {
    expect(decode('name: n', tree)).toEqual({
      name: 'n',
      count: 7,
      ratio: 0,
      every: 1000,
      room: 0,
      on: true,
      kind: 'red',
      inner: { a: 1, b: 2 },
      items: [],
      byName: new Map(),
    });
  });

  test('null is the zero of the type, deep into sections', () => {
    const value = decode('name: n\non: ~\nevery:\ninner: null\nitems:\nby_name: {k: }', tree);
    expect(value).toMatchObject({
      on: false,
      every: 0,
      inner: { a: 0, b: 0 },
      items: [],
      byName: new Map([['k', { x: 0 }]]),
    });
  });

  test('numbers of YAML 1.1', () => {
    const numbers = 'items: [1, -3, +4, 010, 0o10, 0x1F, 0b11, 1_000, 1.9, -1.9, 2e2, 089]';
    expect(decode(`name: n\n${numbers}`, tree).items).toEqual([1, -3, 4, 8, 8, 31, 3, 1000, 1, -1, 200, 89]);
  });

  test('texts may look like anything', () => {
    const texts = list(str());
    const written = 'l: [1, 1.50, yes, 2024-01-01, "~", \'null\', !!str 010, "", ~]';
    expect(decode(written, object({ l: key('l', texts) })).l).toEqual([
      '1',
      '1.50',
      'yes',
      '2024-01-01',
      '~',
      'null',
      '010',
      '',
      '',
    ]);
    expect(decode('l:\n- |\n  x\n', object({ l: key('l', texts) })).l).toEqual(['x\n']);
  });

  test('every complaint, in the order of the file, with place and key', () => {
    const text = [
      'count: 10',
      'ratio: "1"',
      'every: 1d',
      'room: 1Gb',
      'on: 1',
      'kind: green',
      'inner:',
      '  c: 1',
      '  a: x',
      'items: [1, two, [3]]',
      'by_name:',
      '  first: {x: one}',
      '  second: 5',
      'count: 2',
      'nmae: n',
    ].join('\n');
    expect(complaints(() => decode(text, tree))).toEqual([
      'f.yaml:1:1: name: must be set',
      'f.yaml:1:8: count: must be at most 9, not 10',
      'f.yaml:2:8: ratio: must be a number, unquoted, not "1"',
      'f.yaml:3:8: every: must be a duration like 300ms, 5s or 1h30m, not 1d',
      'f.yaml:4:7: room: must be in bytes (KB, MB, GB …; b would be bits), not 1Gb',
      'f.yaml:5:5: on: must be true or false, unquoted, not 1',
      'f.yaml:6:7: kind: must be one of (red, blue), not green',
      'f.yaml:8:3: inner.c: unknown key: known here are a, b',
      'f.yaml:9:6: inner.a: must be a whole number, unquoted, not x',
      'f.yaml:10:12: items[1]: must be a whole number, unquoted, not two',
      'f.yaml:10:17: items[2]: must be a whole number, unquoted, not a list',
      'f.yaml:12:14: by_name.first.x: must be a whole number, unquoted, not one',
      'f.yaml:13:11: by_name.second: must be a section of "key: value" lines, not a single value',
      'f.yaml:14:1: count: duplicate key, already set in line 1',
      'f.yaml:15:1: nmae: unknown key: did you mean name?',
    ]);
  });

  test('a check of a whole section waits until its keys are right', () => {
    const pair = object(
      { a: key('a', int()), b: key('b', int()) },
      { check: ({ a, b }, complain) => a > b && complain('b', 'must not be less than a') },
    );
    expect(complaints(() => decode('a: 2\nb: 1', pair))).toEqual(['f.yaml:2:4: b: must not be less than a']);
    expect(complaints(() => decode('a: 2\nb: x', pair))).toHaveLength(1);
    expect(decode('a: 1\nb: 1', pair)).toEqual({ a: 1, b: 1 });
  });

  test.each([
    ['a: *nowhere', 'alias'],
    ['a: &x [*x]', 'contains itself'],
    ['a: "open', 'closing quote'],
    ['a: !secret hunter2', 'tags'],
    ['a: !!binary aGVsbG8=', 'tags'],
    ['a:\n\t- b', 'tab'],
    ['a: b: c', 'cannot stand here'],
    ['a: [1', 'a closing character is missing'],
    ['a: `x`', 'not valid YAML'],
    ['? [x]\n: 1', 'single word'],
    ['<<: 5', 'merge key'],
  ])('%j is refused with its line', (text, wording) => {
    const found = complaints(() => decode(text, object({ a: key('a', list(str())) })));
    expect(found[0]).toMatch(/^f\.yaml:[12]:\d+: /);
    expect(found[0]).toContain(wording);
    expect(found.join()).not.toContain('hunter2');
  });
});

/** What Lightning Stream 1.0 printed for the same texts: merge keys apply where they stand and go deep. */
describe('merge keys', () => {
  const lmdbs = (text: string) => {
    const { config } = parseConfig(text, 'f.yaml');
    return Object.fromEntries(
      [...config.lmdbs].map(([name, { path, options }]) => [name, { path, options }]),
    );
  };
  const main = 'lmdbs:\n  main: &m\n    path: /main\n    options: {create: true, max_dbs: 7}\n  shard:\n';

  test('own keys after the merge win, sections grow together', () => {
    const text = `${main}    <<: *m\n    path: /shard\n    options: {no_subdir: true}\n`;
    expect(lmdbs(text)).toMatchObject({
      main: { path: '/main', options: { create: true, noSubdir: false, maxDbs: 7 } },
      shard: { path: '/shard', options: { create: true, noSubdir: true, maxDbs: 7 } },
    });
  });

  test('own keys before the merge lose', () => {
    const text = `${main}    path: /shard\n    options: {no_subdir: true, max_dbs: 3}\n    <<: *m\n`;
    expect(lmdbs(text)).toMatchObject({
      shard: { path: '/main', options: { create: true, noSubdir: true, maxDbs: 7 } },
    });
  });

  test('of a list of sections the first wins', () => {
    const text = 'l: {<<: [{a: 1}, {a: 2, b: 3}], c: 4}';
    const section = object({ a: key('a', int()), b: key('b', int()), c: key('c', int()) });
    expect(decode(text, object({ l: key('l', section) })).l).toEqual({ a: 1, b: 3, c: 4 });
  });
});

describe('options that are decoded later', () => {
  const spec = object({
    rootPath: key('root_path', str({ required: true })),
    secret: key('secret_key', str({ secret: true })),
  });
  const options = (text: string) =>
    parseConfig(`lmdbs: {m: {path: /m}}\nstorage:\n  type: fs\n  options:\n${text}`, 'ls.yaml').config.storage
      .options;

  test('keep their place in the file', () => {
    expect(
      complaints(() =>
        decodeOptions(options('    root_path: [a]\n    fo: 1\n    secret_key: {hunter: 2}\n'), spec),
      ),
    ).toEqual([
      'ls.yaml:5:16: storage.options.root_path: must be a text, not a list',
      'ls.yaml:6:5: storage.options.fo: unknown key: known here are root_path, secret_key',
      'ls.yaml:7:17: storage.options.secret_key: must be a text, not a section',
    ]);
    expect(decodeOptions(options('    root_path: /x\n'), spec)).toEqual({ rootPath: '/x', secret: '' });
  });

  test('may be plain data, or nothing', () => {
    expect(decodeOptions({ root_path: '/x', secret_key: '~' }, spec)).toEqual({
      rootPath: '/x',
      secret: '~',
    });
    expect(complaints(() => decodeOptions(undefined, spec))).toEqual([
      'options: storage.options.root_path: must be set',
    ]);
  });

  test('a decoded secret is masked when it is printed', () => {
    expect(toYaml(spec.encode({ rootPath: '/x', secret: 'hunter2' }))).toBe(
      'root_path: /x\nsecret_key: "***"\n',
    );
    expect(toYaml(spec.encode({ rootPath: '/x', secret: '' }))).toBe('root_path: /x\nsecret_key: ""\n');
  });
});
