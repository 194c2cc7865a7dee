import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { isMap, isScalar, parseDocument, type Node } from 'yaml';
import { toYaml } from '../../src/config/decode.ts';
import { parseConfig } from '../../src/config/index.ts';
import { s3Options } from '../../src/storage/s3/options.ts';
import { repositoryRoot } from '../helpers/process.ts';

/** Every key of the decoder's tables with its default, as `--log-config` prints it. */
function decoderKeys(): Map<string, string> {
  const file = 'lmdbs: {NAME: {path: x, dbi_options: {DBI: {override_create_flags: MDB_DUPSORT}}}}';
  const keys = new Map<string, string>();
  const walk = (node: Node | null, path: string): void => {
    if (isMap(node) && node.items.length > 0)
      for (const { key, value } of node.items as { key: Node; value: Node | null }[])
        walk(value, `${path}${path === '' ? '' : '.'}${isScalar(key) ? String(key.value) : ''}`);
    else keys.set(path, isScalar(node) ? (node.source ?? '') : '{}');
  };
  const walkText = (yaml: string, path: string): void =>
    walk(parseDocument(yaml, { schema: 'failsafe' }).contents, path);
  walkText(toYaml(s3Options.encode(s3Options.absent)), 'storage.options');
  walkText(parseConfig(file, 'ls.yaml').effective(), '');
  for (const [key, value] of keys) if (value === '') keys.set(key, '""');
  // What was set above has no default, and what must be set none that matters.
  for (const key of [
    'lmdbs.NAME.path',
    'lmdbs.NAME.dbi_options.DBI.override_create_flags',
    'storage.options.bucket',
  ])
    keys.set(key, '');
  return keys;
}

/** What another backend and the deprecated spelling add. */
const ELSEWHERE = ['storage.options.root_path', 'storage.root_path'];

test('docs/configuration.md has each key with its default, and no other', () => {
  const page = readFileSync(join(repositoryRoot, 'docs/configuration.md'), 'utf8');
  const rows = [...page.matchAll(/^\| `([^`]+)` \| [^|]+ \| (?:`([^`]+)`|_required_)? ?\| [^|]+ \|$/gm)];
  expect(rows.length).toBe(page.split('\n').filter((line) => line.startsWith('| `')).length);
  const documented = new Map(rows.map(([, key = '', value = '']) => [key, value]));
  expect(documented.size).toBe(rows.length);
  for (const key of ELSEWHERE) expect(documented.delete(key)).toBe(true);
  expect(Object.fromEntries(documented)).toEqual(Object.fromEntries(decoderKeys()));
});
