import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { repositoryRoot, run, type TempDir, tempDir } from '../helpers/process.ts';

/** Databases of PowerDNS, snapshots of them, and what Lightning Stream 1.0 printed about both. */
interface Recording {
  readonly title: string;
  readonly directory: string;
  /** Data files by the name that PowerDNS gives them. */
  readonly files: Readonly<Record<string, string>>;
  readonly snapshots: readonly string[];
  readonly texts: string;
}

const recordings: readonly Recording[] = [
  {
    title: 'PowerDNS 4.9, native',
    directory: path('pdns-4.9-native'),
    files: { 'pdns.lmdb': 'main.mdb.gz', 'pdns.lmdb-0': 'shard.mdb.gz' },
    snapshots: ['snapshots'],
    texts: 'text',
  },
  {
    title: 'PowerDNS 4.7, shadow mode, first run',
    directory: path('pdns-4.7-shadow'),
    files: { 'pdns.lmdb': 'after1-main.mdb.gz', 'pdns.lmdb-0': 'after1-shard.mdb.gz' },
    snapshots: ['snapshots-1'],
    texts: 'text-1',
  },
  {
    title: 'PowerDNS 4.7, shadow mode, second run',
    directory: path('pdns-4.7-shadow'),
    files: { 'pdns.lmdb': 'after2-main.mdb.gz', 'pdns.lmdb-0': 'after2-shard.mdb.gz' },
    snapshots: ['snapshots-1', 'snapshots-2'],
    texts: 'text-2',
  },
];

function path(name: string): string {
  return fileURLToPath(new URL(name, import.meta.url));
}

/** The program's standard output on a copy of the recorded databases and storage. */
async function output(recording: Recording, dir: TempDir, args: readonly string[]): Promise<string> {
  const { code, stdout, stderr } = await run({
    args: ['-c', join(recording.directory, 'ls-config.yaml'), ...args],
    env: { LMDB_DIR: dir.path, STORAGE_PATH: dir.join('storage'), CACHE_DIRECTORY: dir.join('cache') },
  });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return stdout;
}

function lay(recording: Recording, dir: TempDir): void {
  for (const [name, file] of Object.entries(recording.files))
    writeFileSync(dir.join(name), gunzipSync(readFileSync(join(recording.directory, file))));
  mkdirSync(dir.join('storage'));
  for (const snapshots of recording.snapshots)
    cpSync(join(recording.directory, snapshots), dir.join('storage'), { recursive: true });
}

/** The flags that each recorded text was made with. */
function argsOf(file: string, mainSnapshot: string): readonly string[] {
  const snapshot = /^snapshots-dump-(debug|text)-(.*)\.txt\.gz$/.exec(file);
  if (snapshot !== null) return ['snapshots', 'dump', '-f', snapshot[1] ?? '', snapshot[2] ?? ''];
  const dbi = /^snapshots-dump-d-(.*)\.txt$/.exec(file)?.[1];
  if (dbi !== undefined) return ['snapshots', 'dump', '-d', dbi, mainSnapshot];
  return {
    'dump.txt.gz': ['dump'],
    'dump-H-n-main.txt.gz': ['dump', '-H', '-n', 'main'],
    'snapshots-list.txt': ['snapshots', 'list'],
    'snapshots-list-l.txt': ['snapshots', 'list', '-l'],
    'snapshots-list-t-p-main.txt': ['snapshots', 'list', '-t', '-p', 'main__'],
    'stats.txt': ['stats'],
  }[file] as readonly string[];
}

/** What depends on the machine, its clock, and who else looks. */
function comparable(text: string): string {
  const masked = text.replace(/, -?[0-9hms]+ ago;/g, ', N ago;').replace(/NumReaders:\d+/g, 'NumReaders:N');
  // A time more than 30 days ahead is not shown as one, so not where the clock is that far behind the recording's.
  const recorded = Date.UTC(2026, 10, 22);
  return Date.now() > recorded - 29 * 86_400_000 ? masked : masked.replace(/ \(\d{4}-[^ ]*Z\)$/gm, '');
}

test('docs/json.md shows what is printed', async () => {
  await using dir = await tempDir();
  const recording = recordings[0] as Recording;
  lay(recording, dir);
  const name = 'main__golden-a__20261122-041607-260130474__GX.pb.gz';
  const printed = await Promise.all(
    [['dump'], ['stats'], ['snapshots', 'list'], ['snapshots', 'dump', name]].map((args) =>
      output(recording, dir, [...args, '--json']),
    ),
  );
  const page = readFileSync(join(repositoryRoot, 'docs/json.md'), 'utf8');
  const shown = [...page.matchAll(/^```json\n(.*?)\n```$/gms)].flatMap((block) =>
    (block[1] ?? '').split('\n').filter((line) => !line.startsWith('{"databases"')),
  );
  // Names, and of what grows the beginning.
  const likeThePage = (line: string) =>
    line
      .replaceAll(dir.join('pdns.lmdb'), '/var/lib/powerdns/pdns.lmdb')
      .replaceAll('golden-a', 'ns1')
      .replaceAll('"vm"', '"ns1.example"')
      .replace(/"readers":\d+/, '"readers":1')
      .replace(/("dbis":\[\{.*?\}),.*/, '$1]}');
  const lines = new Set(printed.join('').split('\n').map(likeThePage));
  // Of its DBIs the page shows the smallest.
  for (const line of (await output(recording, dir, ['verify', '--json'])).trim().split('\n')) {
    const result = JSON.parse(line) as { dbis: readonly { dbi: string }[] };
    lines.add(JSON.stringify({ ...result, dbis: result.dbis.filter(({ dbi }) => dbi === 'pdns') }));
  }
  expect(shown.filter((line) => !lines.has(line))).toEqual([]);
  expect(shown).toHaveLength(8);
});

describe.each(recordings)('$title', (recording) => {
  const texts = join(recording.directory, recording.texts);
  const files = readdirSync(texts);
  const mainSnapshot = recording.snapshots
    .flatMap((directory) => readdirSync(join(recording.directory, directory)))
    .filter((name) => name.startsWith('main__'))
    .toSorted()
    .at(0);

  test.each(files)('%s', async (file) => {
    await using dir = await tempDir();
    lay(recording, dir);
    const before = readdirSync(dir.path);
    const recorded = readFileSync(join(texts, file));
    const expected = (file.endsWith('.gz') ? gunzipSync(recorded) : recorded).toString();
    const text = await output(recording, dir, argsOf(file, mainSnapshot ?? ''));
    expect(comparable(text)).toBe(comparable(expected));
    // Looking leaves nothing behind, a lock file least of all.
    expect(readdirSync(dir.path).filter((name) => name !== 'cache')).toEqual(before);
  });
});
