import { closeSync, fstatSync, openSync } from 'node:fs';
import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { LogConfig, LogFormat, LogLevel } from '../../src/config/types.ts';
import { LightningStreamError } from '../../src/errors.ts';
import { isJournal } from '../../src/observability/journal.ts';
import { createLogger } from '../../src/observability/logger.ts';
import { tempDir } from '../helpers/process.ts';

const FORMATS: readonly LogFormat[] = ['human', 'logfmt', 'json'];
const LEVELS: readonly LogLevel[] = ['trace', 'debug', 'info', 'warning', 'error', 'fatal'];
const NOW = Date.parse('2026-11-22T04:16:07.123Z');

function setUp(config: Partial<LogConfig> = {}, options: { colors?: boolean; journal?: boolean } = {}) {
  let text = '';
  const logger = createLogger(
    { level: 'info', format: 'json', timestamp: 'full', ...config },
    { write: (chunk) => (text += chunk) },
    { now: () => NOW, ...options },
  );
  return { logger, text: () => text, json: () => JSON.parse(text) as Record<string, unknown> };
}

/** Reads logfmt as a shipper would: key=value or key="quoted with backslashes". */
function parseLogfmt(line: string): Map<string, string> {
  const pairs = new Map<string, string>();
  let rest = line;
  while (rest !== '') {
    const pair = /^([^\s="]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s"]*))(?: |$)/.exec(rest);
    if (pair === null) throw new Error(`not logfmt: ${rest}`);
    const [all, key = '', quoted, plain = ''] = pair;
    if (pairs.has(key)) throw new Error(`key twice: ${line}`);
    pairs.set(key, quoted === undefined ? plain : (JSON.parse(`"${quoted}"`) as string));
    rest = rest.slice(all.length);
  }
  return pairs;
}

describe('formats', () => {
  test('logfmt is what the reference prints', () => {
    const { logger, text } = setUp({ format: 'logfmt' });
    logger.child({ db: 'shard' }).info('Stored snapshot', {
      txnID: 22n,
      compression_ratio: '1:2.79',
      instance: 'golden-a',
      snapshot_name: 'shard__golden-a__20261122-041607-260151538__GX.pb.gz',
      snapshot_size: '7.6 KB',
      time_acquire: '0s',
    });
    // A line of the reference's log, shortened; its times have no fraction.
    expect(text().replace('.123Z', 'Z')).toBe(
      'time="2026-11-22T04:16:07Z" level=info msg="Stored snapshot" compression_ratio="1:2.79" db=shard ' +
        'instance=golden-a snapshot_name=shard__golden-a__20261122-041607-260151538__GX.pb.gz ' +
        'snapshot_size="7.6 KB" time_acquire=0s txnID=22\n',
    );
  });

  test('json has the keys and level names of the reference', () => {
    for (const level of LEVELS) {
      const { logger, json } = setUp({ level: 'trace' });
      logger[level]('m', { a: 1, b: true, c: null, d: [1n, 'x'], e: { f: 2 } });
      expect(json()).toEqual({
        level,
        msg: 'm',
        time: '2026-11-22T04:16:07.123Z',
        a: 1,
        b: true,
        c: null,
        d: [1, 'x'],
        e: { f: 2 },
      });
    }
  });

  test('human has prefix, fields and, on a terminal, colours', () => {
    const plain = setUp({ format: 'human', timestamp: 'short' });
    plain.logger.child({ db: 'main' }).warning('Careful', { count: 3, why: 'two words' });
    expect(plain.text()).toBe('04:16:07.123Z WARNING [main] Careful count=3 why="two words"\n');
    const colored = setUp({ format: 'human', timestamp: 'disable' }, { colors: true });
    colored.logger.error('Bad');
    expect(colored.text()).toBe('\u001b[31mERROR  \u001b[0m Bad\n');
  });

  test.each([
    ['human', 'short', /^04:16:07\.123Z INFO/],
    ['human', 'full', /^2026-11-22T04:16:07\.123Z INFO/],
    ['human', 'disable', /^INFO/],
    ['logfmt', 'short', /^time="2026-11-22T04:16:07\.123Z" level/],
    ['logfmt', 'full', /^time="2026-11-22T04:16:07\.123Z" level/],
    ['logfmt', 'disable', /^level=info msg=x$/],
    ['json', 'short', /"time":"2026-11-22T04:16:07\.123Z"/],
    ['json', 'disable', /^{"level":"info","msg":"x"}$/],
  ] as const)('%s with timestamp %s', (format, timestamp, pattern) => {
    const { logger, text } = setUp({ format, timestamp });
    logger.info('x');
    expect(text().trimEnd()).toMatch(pattern);
  });
});

test('each line for the journal begins with its level, as sd-daemon(3) wants it', () => {
  for (const format of FORMATS) {
    const { logger, text } = setUp({ level: 'trace', format }, { journal: true });
    for (const level of LEVELS) logger[level]('two\nlines');
    const lines = text().trimEnd().split('\n');
    expect(lines.map((line) => line.slice(0, 3))).toEqual(['<7>', '<7>', '<6>', '<4>', '<3>', '<2>']);
    expect(lines.every((line) => line.includes('two'))).toBe(true);
  }
});

test('the journal is behind a descriptor when JOURNAL_STREAM names what is there', async () => {
  await using dir = await tempDir();
  const file = openSync(dir.join('log'), 'w');
  try {
    const { dev, ino } = fstatSync(file);
    expect(isJournal({ JOURNAL_STREAM: `${dev}:${ino}` }, file)).toBe(true);
    // Inherited by a process whose output goes elsewhere.
    expect(isJournal({ JOURNAL_STREAM: `${dev}:${ino + 1}` }, file)).toBe(false);
    expect(isJournal({ JOURNAL_STREAM: '' }, file)).toBe(false);
    expect(isJournal({}, file)).toBe(false);
  } finally {
    closeSync(file);
  }
  expect(isJournal({ JOURNAL_STREAM: '1:1' }, 999_999)).toBe(false);
});

test('a level lets itself and all above through', () => {
  for (const [at, level] of LEVELS.entries()) {
    const { logger, text } = setUp({ level });
    for (const each of LEVELS) logger[each](each);
    const printed = text()
      .trimEnd()
      .split('\n')
      .map((line) => (JSON.parse(line) as { msg: string }).msg);
    expect(printed).toEqual(LEVELS.slice(at));
  }
});

describe('values', () => {
  test('bigints are decimal, exact beyond 2^53', () => {
    const { logger, json } = setUp();
    logger.info('x', { small: 12n, big: 18446744073709551615n });
    expect(json()).toMatchObject({ small: 12, big: '18446744073709551615' });
  });

  test('a field never replaces what each line has', () => {
    for (const format of FORMATS) {
      const { logger, text } = setUp({ format });
      logger.info('real', { level: 'fatal', msg: 'false', time: 'never' });
      expect(text()).toMatch(/real/);
      expect(text()).toMatch(/fields\.level\W+fatal/);
    }
    const { logger, json } = setUp();
    logger.info('real', { level: 'fatal', msg: 'false' });
    expect(json()).toMatchObject({ level: 'info', msg: 'real', 'fields.msg': 'false' });
  });

  test('children add fields, the call has the last word, undefined is left out', () => {
    const { logger, json } = setUp();
    logger.child({ db: 'main', a: 1, b: 1 }).child({ b: 2, c: 2 }).info('x', { c: 3, d: undefined });
    expect(json()).toMatchObject({ db: 'main', a: 1, b: 2, c: 3 });
    expect(json()).not.toHaveProperty('d');
  });

  test('an own error gives message, code and its facts; a foreign one no stack below debug', () => {
    const own = new LightningStreamError('NOT_FOUND', 'no such\nobject', {
      fields: { object: 'o', operation: 'load' },
    });
    const bug = Object.assign(new TypeError('x is not a function'), { code: 'ERR_X' });
    const quiet = setUp();
    quiet.logger.error('failed', { error: own });
    expect(quiet.json()).toMatchObject({
      error: 'no such object (NOT_FOUND)',
      object: 'o',
      operation: 'load',
    });
    const info = setUp();
    info.logger.error('failed', { error: bug });
    expect(info.json()).toMatchObject({ error: 'x is not a function (ERR_X)' });
    expect(info.text()).not.toMatch(/observability-logger/);
    const debug = setUp({ level: 'debug' });
    debug.logger.error('failed', { error: bug });
    expect(debug.json()['error_stack']).toMatch(/observability-logger/);
    const ownAtDebug = setUp({ level: 'debug' });
    ownAtDebug.logger.error('failed', { error: own });
    expect(ownAtDebug.text()).not.toMatch(/observability-logger/);
  });

  test('what JSON cannot hold is printed all the same', () => {
    const cycle: Record<string, unknown> = {
      n: NaN,
      when: new Date('nonsense'),
      bytes: Uint8Array.of(1, 255),
    };
    cycle['self'] = cycle;
    for (const format of FORMATS) {
      const { logger, text } = setUp({ format });
      logger.info('x', { cycle, call: () => 1, sign: Symbol('s'), map: new Map([['k', new Set([1n])]]) });
      expect(text()).toMatch(/01ff/);
      expect(text().match(/\n/g)).toHaveLength(1);
    }
  });
});

describe('one line per event', () => {
  // Everything that some reader takes for the end of a line, or a terminal for a command.
  const nasty = [
    '\n',
    '\r\n',
    '\u2028',
    '\u2029',
    '\u0085',
    '\u001b[2J',
    '\u0000',
    '\u007f',
    '"',
    '\\',
    '=',
    ' ',
    '\u202e',
  ];
  const text = fc
    .array(fc.oneof(fc.constantFrom(...nasty), fc.string({ unit: 'binary' })))
    .map((parts) => parts.join(''));

  test('whatever it holds', () => {
    fc.assert(
      fc.property(text, text, text, fc.constantFrom(...FORMATS), (message, key, value, format) => {
        const printed = setUp({ format });
        printed.logger
          .child({ db: value })
          .info(message, { [key]: value, error: new Error(value), list: [value] });
        const line = printed.text();
        expect(line.endsWith('\n')).toBe(true);
        // oxlint-disable-next-line no-control-regex -- control characters are what must not be there
        expect(line.slice(0, -1)).not.toMatch(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202e]/);
      }),
    );
  });

  test('and comes back as it was', () => {
    fc.assert(
      fc.property(
        text.map((t) => t.toWellFormed()),
        (value) => {
          // Nothing that looks like a secret: these are masked.
          fc.pre(!/:\/\/|Bearer|Authorization|[?&]|=/i.test(value));
          const json = setUp();
          json.logger.info(value, { value });
          expect(json.json()).toMatchObject({ msg: value, value });
          const logfmt = setUp({ format: 'logfmt' });
          logfmt.logger.info(value, { value });
          const pairs = parseLogfmt(logfmt.text().slice(0, -1));
          expect(pairs.get('msg')).toBe(value);
          expect(pairs.get('value')).toBe(value);
        },
      ),
    );
  });
});

describe('secrets', () => {
  const key =
    '-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\nCCqGSM49AwEHBG0wawIBAQQg\n-----END PRIVATE KEY-----\n';
  const planted = ['hunter-22/+$', 'wJalrXUtnFEMI/K7MDENG+bPxRfiCY', 'pä"ss\\wort', key];
  /** What must not be seen: the secret, and what of it survives quoting, URLs and line ends. */
  const traces = [
    ...planted,
    'hunter-22',
    'wJalrXUtnFEMI',
    'ss\\\\wort',
    'MIGHAgEAMBMGByqGSM49AgEG',
    'CCqGSM49AwEHBG0wawIBAQQg',
    Buffer.from('hunter-22/+$').toString('base64'),
    'AKIAPLANTED',
    'sigPLANTED',
    'urlPLANTED',
    'namedPLANTED',
    'bearerPLANTED',
  ];

  test('appear nowhere in any format, level or place', () => {
    for (const format of FORMATS) {
      const { logger, text } = setUp({ format, level: 'trace' });
      logger.addSecrets([...planted, '']);
      for (const secret of planted) {
        const wrapped = [
          secret,
          `before ${secret} after`,
          `https://s3.example/b?k=${encodeURIComponent(secret)}`,
          JSON.stringify({ secret }),
          `Basic ${Buffer.from(secret).toString('base64')}`,
        ];
        for (const value of wrapped) {
          for (const level of LEVELS) logger[level](value);
          logger.child({ [value]: 1, bound: value }).info('x', {
            value,
            list: [value, { deep: [value] }],
            map: new Map([[value, new Set([value])]]),
            error: new Error(value),
            own: new LightningStreamError('X', value, { fields: { object: value }, cause: new Error(value) }),
          });
        }
      }
      logger.info('GET https://user:urlPLANTED@host/path failed', {
        url: 's3://urlPLANTED@host:9000/',
        signed: 'https://h/o?X-Amz-Credential=AKIAPLANTED%2F2026&X-Amz-Signature=sigPLANTED&x=1',
        sas: 'https://h/o?sv=1&sig=sigPLANTED',
        connection: 'DefaultEndpointsProtocol=https;AccountKey=namedPLANTED;EndpointSuffix=x',
        header: 'Authorization: Bearer bearerPLANTED',
        token: 'Bearer bearerPLANTED',
      });
      for (const name of [
        'secret_key',
        'secretKey',
        'password',
        'access-key',
        'accountKey',
        'session_token',
        'private_key',
        'connection_string',
      ]) {
        logger.info('x', {
          [name]: 'namedPLANTED',
          nested: { options: { [name]: { inner: 'namedPLANTED' } } },
        });
      }
      for (const trace of traces) expect(text().includes(trace) ? `${format}: ${trace}` : '').toBe('');
      expect(text()).toContain('https://***@host/path');
      expect(text()).toContain('***');
    }
  });

  test('one that begins another leaves no rest', () => {
    const { logger } = setUp();
    logger.addSecrets(['abcd']);
    logger.addSecrets(['abcd-efgh']);
    expect(logger.mask('is abcd-efgh, abcd')).toBe('is ***, ***');
  });

  test('a very short one is masked as a value and does not mark the text', () => {
    const { logger } = setUp();
    logger.addSecrets(['ab']);
    expect(logger.mask('ab')).toBe('***');
    expect(logger.mask('about')).toBe('about');
  });

  test('what is no secret stays', () => {
    const { logger } = setUp();
    logger.addSecrets(['hunter22']);
    for (const text of [
      'http://127.0.0.1:9000/bucket/main__a__20261122-041607-260151538__GX.pb.gz',
      'key 6162 of DBI records_v5',
      'mail a@b.example',
      'https://h/path?x=1@2',
    ]) {
      expect(logger.mask(text)).toBe(text);
    }
  });
});

test('flush waits until a slow stream took everything, and a broken one does no harm', async () => {
  const slow = new PassThrough({ highWaterMark: 1 });
  const logger = createLogger({ level: 'info', format: 'json', timestamp: 'full' }, slow);
  logger.info('first');
  let flushed = false;
  const done = logger.flush().then(() => (flushed = true));
  await new Promise((resolve) => setImmediate(resolve));
  expect(flushed).toBe(false);
  slow.resume();
  await done;

  const broken = new PassThrough();
  const other = createLogger({ level: 'info', format: 'json', timestamp: 'full' }, broken);
  broken.destroy(Object.assign(new Error('write EPIPE'), { code: 'EPIPE' }));
  other.info('into the void');
  await other.flush();
});
