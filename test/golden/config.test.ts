import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { parse } from 'yaml';
import { ConfigError, loadConfig, parseConfig } from '../../src/config/index.ts';
import { isSecretKey } from '../../src/config/secrets.ts';
import { run } from '../../src/cli/run.ts';
import { capture } from '../helpers/output.ts';

/** Observed with PowerDNS Lightning Stream 1.0, which printed its effective configuration with these files. */
interface GoldenCase {
  readonly description: string;
  readonly env: Readonly<Record<string, string>>;
  /** After the configuration was printed; `dump` of nothing stands for "no further work". */
  readonly args: readonly string[];
  readonly exit: number;
  readonly stderr?: readonly string[];
  readonly warnings?: readonly string[];
  /** YAML; absent when the configuration was refused. */
  readonly effective?: string;
  /** The reference crashed. */
  readonly should_be?: string;
}

const directory = fileURLToPath(new URL('config/', import.meta.url));
const cases = Object.entries(
  JSON.parse(readFileSync(`${directory}expected.json`, 'utf8')) as Record<string, GoldenCase>,
).map(([name, golden]) => ({ name, golden, file: `${directory}${name}.yaml` }));
const accepted = cases.filter(
  ({ golden }) => golden.effective !== undefined || golden.should_be !== undefined,
);
const refused = cases.filter((item) => !accepted.includes(item));

/** The flags of the observation. */
const overrides = { log: { level: 'info', format: 'json' } } as const;

test('all cases are there', () => {
  expect(cases.length).toBe(234);
  expect(refused.length).toBeGreaterThan(80);
});

describe('accepted', () => {
  test.each(accepted)('$name: $golden.description', ({ golden, file }) => {
    const loaded = loadConfig({ file, env: golden.env, overrides });
    expect(loaded.warnings.length).toBe(golden.warnings?.length ?? 0);
    for (const warning of loaded.warnings) expect(warning).toContain('storage.root_path is deprecated');
    if (golden.effective !== undefined) {
      expect(comparable(loaded.effective())).toEqual(ours(leaves(golden.effective)));
    }
    expectReadable(loaded.effective(), loaded.config);
  });

  test('a deprecated root_path works without options as well', () => {
    const { golden, file } =
      accepted.find(({ name }) => name === 'root-path-deprecated-no-options') ?? expect.fail();
    const printed = leaves(loadConfig({ file, env: golden.env }).effective());
    expect(printed.get('storage.options.root_path')).toBe('/nonexistent-ls-golden/x');
  });
});

describe('refused', () => {
  test.each(refused)('$name: $golden.description', ({ golden, file }) => {
    const found = complaintsOf(() => loadConfig({ file, env: golden.env, overrides }));
    const expected = (golden.stderr ?? []).flatMap(fromReference);
    expect(expected.length).toBeGreaterThan(0);
    expect(found.map(({ text }) => text)).toHaveLength(expected.length);
    for (const [index, { lines, key, wording, given }] of expected.entries()) {
      const complaint = found[index] ?? expect.fail();
      if (lines !== undefined) expect(lines).toContain(complaint.line);
      if (key !== undefined) expect(complaint.key).toMatch(key);
      expect(complaint.text).toMatch(wording);
      if (given !== undefined) expect(complaint.text).toContain(given);
      // The line that we name is about the key that we name.
      if (
        complaint.line !== undefined &&
        key !== undefined &&
        complaint.key !== 'lmdbs' &&
        !wording.test('must be set')
      ) {
        const written = readFileSync(file, 'utf8').split('\n')[complaint.line - 1] ?? '';
        const about = [complaint.key?.split('.').at(-1), '- path: /x'];
        expect(about.some((text) => text !== undefined && written.includes(text))).toBe(true);
      }
    }
  });
});

describe('through the command line', () => {
  const check = (file: string) => ['-c', file, '--log-config', '--log-format', 'json', '--log-level', 'info'];

  test.each(cases)('$name: $golden.description', async ({ golden, file }) => {
    const io = capture(golden.env);
    const code = await run(check(file), io);
    if (golden.effective === undefined && golden.should_be === undefined) {
      expect({ code, stdout: io.out() }).toEqual({ code: 1, stdout: '' });
      const lines = io.err().trimEnd().split('\n');
      expect(lines.every((line) => line.startsWith(`lightningstream: ${file}`))).toBe(true);
    } else {
      expect(code).toBe(0);
      expect(io.out()).toBe(loadConfig({ file, env: golden.env, overrides }).effective());
    }
  });

  // A process each: the arguments, the environment and the exit code are the real ones. A dozen are enough for that.
  test.each(cases.filter((_, index) => index % 20 === 0))('as a process: $name', ({ golden, file }) => {
    const result = spawnSync(
      process.execPath,
      [fileURLToPath(new URL('../../src/main.ts', import.meta.url)), ...check(file)],
      { env: golden.env, encoding: 'utf8' },
    );
    const good = golden.effective !== undefined || golden.should_be !== undefined;
    expect({ code: result.status, printed: result.stdout !== '' }).toEqual({
      code: good ? 0 : 1,
      printed: good,
    });
    expect(result.stderr).not.toMatch(/\bat .*:\d+:\d+\)?$/m);
  });

  const withStorage = cases.filter(({ golden }) => golden.args[0] === 'snapshots');

  test.each(withStorage)('$golden.args: $name', async ({ golden, file }) => {
    // No keys of whoever runs the tests, and no question to an instance of AWS.
    for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) vi.stubEnv(name, undefined);
    vi.stubEnv('AWS_EC2_METADATA_DISABLED', 'true');
    vi.stubEnv('HOME', '/nonexistent');
    onTestFinished(() => void vi.unstubAllEnvs());
    const io = capture(golden.env);
    const code = await run(['-c', file, ...golden.args], io);
    expect({ code, stdout: io.out() }).toEqual({ code: golden.exit, stdout: '' });
    if (golden.exit === 0) return;
    expect(io.err()).toMatch(/^lightningstream: .+\n$/);
    expect(io.err()).toMatch(storageProblem(golden.stderr?.find((line) => line.startsWith('Error: ')) ?? ''));
  });
});

// ---- comparison ----

/** `a.b.c` → text; an empty section is a leaf. */
function leaves(yaml: string): Map<string, string> {
  const result = new Map<string, string>();
  const walk = (value: unknown, path: string): void => {
    if (typeof value === 'object' && value !== null && Object.keys(value).length > 0) {
      for (const [key, item] of Object.entries(value)) walk(item, path === '' ? key : `${path}.${key}`);
    } else {
      result.set(path, typeof value === 'string' ? value : JSON.stringify(value));
    }
  };
  walk(parse(yaml, { schema: 'failsafe' }), '');
  return result;
}

/** Keys that the reference does not have. */
const OWN_KEYS = /^(spool_dir|lmdbs\.[^.]+\.schema_guard)$/;

function comparable(effective: string): Map<string, string> {
  const result = leaves(effective);
  for (const key of result.keys()) if (OWN_KEYS.test(key)) result.delete(key);
  return result;
}

/** What the reference printed, as we print it. */
function ours(reference: Map<string, string>): Map<string, string> {
  const result = new Map<string, string>();
  for (const [key, value] of reference) {
    const name = key.split('.').at(-1) ?? '';
    if (key === 'storage.root_path') continue;
    else if (/\.options\.(dir|file)_mask$/.test(key)) {
      // In decimal there; 0 means that the default is used.
      const mode = Number(value) === 0 ? (name === 'dir_mask' ? 0o775 : 0o664) : Number(value);
      result.set(key, `0${mode.toString(8)}`);
    } else if (key.endsWith('.options.max_dbs') && value === '0') result.set(key, '64');
    else if (key.endsWith('.override_create_flags') && value === 'null') {
      // We leave it away, and so its section is empty.
      result.set(key.replace(/\.override_create_flags$/, ''), '{}');
    } else if (/^health\..*\.interval$/.test(key) && ['0s', '500ms'].includes(value)) {
      // Raised there as well, but only after it was printed.
      result.set(key, '1s');
    } else if (key === 'log.timestamp' && value === '') result.set(key, 'short');
    else if (key.startsWith('storage.options.') && isSecretKey(name)) result.set(key, '***');
    else result.set(key, value);
  }
  return result;
}

/** What we print is a configuration that means the same. */
function expectReadable(effective: string, config: unknown): void {
  const again = parseConfig(effective, 'effective.yaml');
  expect(again.warnings).toEqual([]);
  expect(again.effective()).toBe(effective);
  expect(withoutOptions(again.config)).toEqual(withoutOptions(config));
}

function withoutOptions(config: unknown): unknown {
  const { storage, ...rest } = config as { storage: { options: unknown } };
  return { ...rest, storage: { ...storage, options: undefined } };
}

interface Complaint {
  readonly text: string;
  readonly line: number | undefined;
  readonly key: string | undefined;
}

function complaintsOf(action: () => unknown): readonly Complaint[] {
  try {
    action();
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return error.complaints.map((complaint) => {
      const match = /\.yaml(?::(\d+):\d+)?: (?:([\w.]+): )?(.*)$/s.exec(complaint) ?? expect.fail(complaint);
      return {
        text: match[3] ?? '',
        line: match[1] === undefined ? undefined : Number(match[1]),
        key: match[2],
      };
    });
  }
  return expect.fail('was accepted');
}

interface Expectation {
  readonly lines?: readonly number[];
  readonly key?: RegExp;
  readonly wording: RegExp;
  readonly given?: string;
}

/** What a message of the reference demands of ours. */
function fromReference(message: string): readonly Expectation[] {
  const several = /yaml: unmarshal errors:\n([\s\S]*)$/.exec(message);
  if (several !== null) return (several[1] ?? '').split('\n').map(unmarshalError);
  const syntax = /: yaml: line (\d+): /.exec(message);
  if (syntax !== null) {
    // Where a parser notices that something is missing differs by a line.
    const line = Number(syntax[1]);
    return [{ lines: [line - 1, line], wording: /tab|quote|missing/ }];
  }
  const size = /parsing "(.*?)": (.*)$/.exec(message);
  if (size !== null) {
    const wording = /bits/.test(size[2] ?? '')
      ? /bits/
      : /range/.test(size[2] ?? '')
        ? /less than/
        : /must be a size/;
    return [{ key: /^lmdbs\.main\.options\.map_size$/, wording, given: size[1] ?? '' }];
  }
  if (/invalid persistent DBI flag/.test(message)) {
    return [{ key: /^lmdbs\.main\.dbi_options\.d\.override_create_flags$/, wording: /must be flags/ }];
  }
  const config = /^Config file error: (.*)$/.exec(message)?.[1] ?? expect.fail(message);
  if (config === 'no LMDBs configured') return [{ key: /^lmdbs$/, wording: /at least one LMDB/ }];
  if (config.endsWith('no path configured')) return [{ key: /^lmdbs\.main\.path$/, wording: /must be set/ }];
  const [, key = '', text = ''] = /^([\w.]+): (.*)$/.exec(config) ?? expect.fail(message);
  const path = key.replace(/^lmdb\./, 'lmdbs.main.').replaceAll('.', '\\.');
  const octal = /\((\d+)\) instead of octal \((\d+)\)/.exec(text);
  return [
    {
      key: new RegExp(`^${path}$`),
      wording: /cannot be used/.test(text) ? /cannot be used together/ : /must be/,
      ...(octal === null ? {} : { given: `decimal ${octal[1]}, octal ${octal[2]};` }),
    },
  ];
}

function unmarshalError(text: string): Expectation {
  const [, lineText, what = ''] = /^ *line (\d+): (.*)$/.exec(text) ?? expect.fail(text);
  const line = Number(lineText);
  const unknown = /^field (\S+) not found/.exec(what);
  if (unknown !== null)
    return { lines: [line], key: new RegExp(`(^|\\.)${unknown[1]}$`), wording: /^unknown key/ };
  const duplicate = /^(?:field|key) "?(\w+)"? already set/.exec(what);
  if (duplicate !== null) {
    // Of a map's entry it names the value's line, we the key's.
    const lines = what.endsWith(' in map') ? [line - 1, line] : [line];
    return { lines, key: new RegExp(`(^|\\.)${duplicate[1]}$`), wording: /^duplicate key/ };
  }
  const given = /`(.*)`/.exec(what)?.[1];
  return {
    lines: [line],
    wording: /^must be/,
    ...(given === undefined || /section|config\.Config|Options/.test(what) ? {} : { given }),
  };
}

function storageProblem(message: string): RegExp {
  // Here the default chain of AWS takes over, and finds nothing: see `withStorage`.
  if (/credentials are required/.test(message)) return /no credentials: set access_key and secret_key/;
  if (/bucket is required/.test(message)) return /:\d+:\d+: storage\.options\.bucket: must be set/;
  if (/unsupported scheme for S3/.test(message))
    return /:\d+:\d+: storage\.options\.endpoint_url: must begin with http:/;
  if (/secrets_refresh_interval/.test(message))
    return /:\d+:\d+: storage\.options\.secrets_refresh_interval: must be at least 1s/;
  if (/unmarshal errors/.test(message)) return /:\d+:\d+: storage\.options\.foo: unknown key/;
  if (/not found or registered/.test(message)) return /storage\.type: .*"?ftp/;
  if (/no storage\.type/.test(message)) return /storage\.type: must be set/;
  if (/root_path must be set/.test(message)) return /storage\.options\.root_path: must be set/;
  return expect.fail(message);
}
