import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { capture } from '../helpers/output.ts';
import { tempDir } from '../helpers/process.ts';

/** Databases of a PowerDNS, their snapshots, and what Lightning Stream 1.0 printed about them. */
const golden = fileURLToPath(new URL('pdns-4.9-native/', import.meta.url));

async function output(args: readonly string[]): Promise<string> {
  await using dir = await tempDir();
  cpSync(`${golden}snapshots`, dir.join('storage'), { recursive: true });
  let lmdbs = '';
  for (const name of ['shard', 'main']) {
    writeFileSync(dir.join(name), gunzipSync(readFileSync(`${golden}${name}.mdb.gz`)));
    lmdbs += `  ${name}: {path: ${dir.join(name)}, options: {no_subdir: true}, schema_tracks_changes: true}\n`;
  }
  const config = dir.join('ls.yaml');
  writeFileSync(
    config,
    `lmdbs:\n${lmdbs}storage: {type: fs, options: {root_path: ${dir.join('storage')}}}\n`,
  );
  const io = capture();
  const code = await run(['-c', config, ...args], io);
  expect({ code, stderr: io.err() }).toEqual({ code: 0, stderr: '' });
  return io.out();
}

test.each([
  ['snapshots-list.txt', ['snapshots', 'list']],
  ['snapshots-list-l.txt', ['snapshots', 'list', '-l']],
  ['snapshots-list-t-p-main.txt', ['snapshots', 'list', '-t', '-p', 'main__']],
  ['stats.txt', ['stats']],
])('%s', async (file, args) => {
  // How many readers there are depends on who looks.
  const comparable = (text: string): string => text.replace(/NumReaders:\d+/g, 'NumReaders:N');
  expect(comparable(await output(args))).toBe(comparable(readFileSync(`${golden}text/${file}`, 'utf8')));
});
