import { symlinkSync, mkdirSync, writeFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError, expandEnvironment, loadConfig, parseConfig } from '../../src/config/index.ts';
import { isDatabaseName } from '../../src/snapshot/name.ts';
import { tempDir } from '../helpers/process.ts';

const MINIMAL = 'lmdbs: {main: {path: /nonexistent/main}}\n';

function complaints(text: string): readonly string[] {
  try {
    parseConfig(text, 'ls.yaml');
  } catch (error) {
    if (error instanceof ConfigError) return error.complaints;
    throw error;
  }
  return [];
}

describe('references to the environment', () => {
  const env = { A: 'x', LONG_NAME: 'y', '1': 'never set by a shell', EMPTY: '' };

  test.each([
    ['$A', 'x'],
    ['${A}', 'x'],
    ['a$A-b', 'ax-b'],
    ['$LONG_NAME$A', 'yx'],
    ['$LONG_NAMES', ''],
    ['$EMPTY|$UNSET|', '||'],
    ['$$A', 'A'],
    ['\\$A', '\\x'],
    ["'$A'", "'x'"],
    ['${A', 'A'],
    ['${}', ''],
    ['${UNSET:-default}', ''],
    ['$', '$'],
    ['$ A', '$ A'],
    ['5$', '5$'],
    ['$"', '$"'],
    ['$*$#$@$?$!$-', ''],
    ['${A}\n# ${A', 'x\n# A'],
  ])('%j → %j', (text, expanded) => {
    expect(expandEnvironment(text, env)).toBe(expanded);
  });

  test('a text without $ stays, a value is not expanded again', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.string(), (text, value) => {
        const plain = text.replaceAll('$', '');
        expect(expandEnvironment(plain, {})).toBe(plain);
        expect(expandEnvironment('<${V}>', { V: value })).toBe(`<${value}>`);
      }),
    );
  });
});

describe('checks', () => {
  test('what else a name of an LMDB must be is what readers of names recognise', () => {
    for (const name of [
      'main',
      'a-b',
      'a_b',
      '_a',
      'ä',
      '1',
      'a.b',
      'a__b',
      'a/b',
      'a_',
      '.',
      '_',
      'a___b',
    ]) {
      const found = complaints(`lmdbs: {"${name}": {path: /nonexistent}}`);
      expect([name, found.length === 0]).toEqual([name, isDatabaseName(name)]);
      expect(
        found.every((text) => text.startsWith(`ls.yaml:1:9: lmdbs.${name}: the name of an LMDB must not `)),
      ).toBe(true);
    }
  });

  test('two LMDBs in one place', async () => {
    await using dir = await tempDir();
    mkdirSync(dir.join('real'));
    symlinkSync(dir.join('real'), dir.join('link'));
    const pair = (a: string, b: string, options = '') =>
      complaints(`lmdbs:\n  a: {path: ${a}}\n  b: {path: ${b}${options}}\n`);
    const same = ['/link', '/real/', '/real/../link', '/./real'].map((path) =>
      pair(dir.join('real'), dir.path + path),
    );
    for (const found of same)
      expect(found).toEqual([expect.stringContaining('lmdbs: a and b are the same LMDB')]);
    expect(pair(dir.join('real'), dir.join('link', 'data.mdb'), ', options: {no_subdir: true}')).toHaveLength(
      1,
    );
    expect(pair(dir.join('real', 'new'), dir.join('link', 'new'))).toHaveLength(1);
    expect(pair(dir.join('real'), dir.join('link', 'x'))).toEqual([]);
  });

  test.each(['auto', 'off', '6'])('schema_guard: %s', (guard) => {
    const { config, effective } = parseConfig(`lmdbs: {m: {path: /m, schema_guard: ${guard}}}`, 'ls.yaml');
    expect(config.lmdbs.get('m')?.schemaGuard).toBe(guard === '6' ? 6 : guard);
    expect(effective()).toContain(`schema_guard: ${guard}\n`);
  });

  test.each(['on', '0', '-1', '1.5', 'six'])('not schema_guard: %s', (guard) => {
    expect(complaints(`lmdbs: {m: {path: /m, schema_guard: ${guard}}}`)).toEqual([
      `ls.yaml:1:37: lmdbs.m.schema_guard: must be auto, off or the number of a schema version, not ${guard}`,
    ]);
  });

  test('an empty section is accepted with a warning', () => {
    const { config, warnings } = parseConfig(`${MINIMAL}sweeper:\n`, 'ls.yaml');
    expect(config.sweeper.intervalMs).toBe(0);
    expect(warnings).toEqual([expect.stringMatching(/^sweeper: is empty/)]);
  });

  test('storage.root_path wins over the option', () => {
    const text = `${MINIMAL}storage: {type: fs, options: {root_path: /a}, root_path: /b}`;
    expect(parseConfig(text, 'ls.yaml').effective()).toContain('  options:\n    root_path: /b\n');
  });
});

describe('loading', () => {
  test('what cannot be read', async () => {
    await using dir = await tempDir();
    const load = (file: string) => () => loadConfig({ file, env: {} });
    expect(load(dir.join('no.yaml'))).toThrow(`${dir.join('no.yaml')}: no such file`);
    expect(load(dir.path)).toThrow(`${dir.path}: is a directory`);
    writeFileSync(dir.join('file'), '');
    expect(load(dir.join('file', 'x'))).toThrow('ENOTDIR');
  });

  test('flags win over the file, which must be right without them', async () => {
    await using dir = await tempDir();
    const file = dir.join('ls.yaml');
    writeFileSync(file, `${MINIMAL}instance: $NAME\nlog: {level: Error, timestamp: full}\n`);
    const overrides = { instance: 'b', log: { level: 'debug' } } as const;
    const { config } = loadConfig({ file, env: { NAME: 'a' }, overrides });
    expect(config.instance).toBe('b');
    expect(config.log).toEqual({ level: 'debug', format: 'human', timestamp: 'full' });
    expect(loadConfig({ file, env: { NAME: 'a' } }).config).toMatchObject({
      instance: 'a',
      log: { level: 'error' },
    });
    writeFileSync(file, `${MINIMAL}log: {level: loud}\n`);
    expect(() => loadConfig({ file, env: {}, overrides })).toThrow('log.level');
  });
});

describe('secrets', () => {
  const planted = [
    'hunter2',
    'correct horse',
    'battery/staple',
    'Tr0ub4dor&3',
    'xkcd-936',
    'k3y',
    't0ken',
    'sas-sig',
  ];
  const text = `${MINIMAL}storage:
  type: s3
  options:
    access_key: hunter2
    secret_key: "correct horse"
    secret: &s battery/staple
    password: *s
    account_key: "Tr0ub4dor&3"
    session_token: xkcd-936
    secrets_refresh_interval: 15s
    secret_key_file: /etc/name-of-a-file
    use_shared_key: true
    tls:
      key: k3y
      key_file: /etc/another-name
    nested: [{client_secret: t0ken}]
    credentials: {a: hunter2, b: [hunter2]}
    endpoint_url: "https://user:hunter2@example.org/path?x=1&sig=sas-sig"
`;

  test('are not printed, the names of their files are', () => {
    const { effective } = parseConfig(text, 'ls.yaml');
    for (const secret of planted) expect(effective()).not.toContain(secret);
    expect(effective()).toContain('/etc/name-of-a-file');
    expect(effective()).toContain('/etc/another-name');
    expect(effective()).toContain('secrets_refresh_interval: 15s');
    expect(effective()).toContain('use_shared_key: true');
    expect(effective()).toContain('https://***@example.org/path?x=1&sig=***');
  });

  test('are known, to be masked elsewhere', () => {
    const { secrets } = parseConfig(text, 'ls.yaml');
    expect(new Set(secrets)).toEqual(new Set(planted.filter((secret) => secret !== 'sas-sig')));
  });

  test('do not show in complaints, wherever the file is wrong', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: text.length - 1 }),
        fc.constantFrom('', '"', ': ', '[', '{', '\t', '*', '!x ', '- '),
        (at, typo) => {
          const broken = text.slice(0, at) + typo + text.slice(at + 1);
          // What becomes a key is named; the planted values stand as such or are lost.
          for (const complaint of complaints(broken)) {
            for (const secret of planted) expect(complaint).not.toContain(secret);
          }
        },
      ),
      { numRuns: 300 },
    );
  });
});
