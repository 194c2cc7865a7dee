/** What the packages are made of, as far as it can be seen without making them (test/packages does). */
import { globSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { decodeOptions } from '../../src/config/decode.ts';
import { expandEnvironment, parseConfig } from '../../src/config/index.ts';
import { storageOptions } from '../../src/storage/open.ts';
import { repositoryRoot } from '../helpers/process.ts';

const read = (path: string): string => readFileSync(join(repositoryRoot, path), 'utf8');

test('all that names a version names that of package.json', () => {
  const { version } = JSON.parse(read('package.json')) as { readonly version: string };
  expect(/^lightningstream-ts \((.*?)\)/.exec(read('debian/changelog'))?.[1]).toBe(version.replace('-', '~'));
  expect(/^\[workspace\.package\]\nversion = "(.*)"$/m.exec(read('Cargo.toml'))?.[1]).toBe(version);
});

describe('configurations that are installed', () => {
  const env = {
    S3_ACCESS_KEY: 'the access key',
    // What would mean something in YAML, were it not for the quotes.
    S3_SECRET_KEY: '@the: "secret" #key',
    CREDENTIALS_DIRECTORY: '/run/credentials/lightningstream@main.service',
  };
  const examples = globSync('examples/*.yaml', { cwd: repositoryRoot }).sort();

  function options(text: string) {
    const { config, warnings } = parseConfig(expandEnvironment(text, env), 'main.yaml');
    expect(warnings).toEqual([]);
    return config;
  }

  test.each(examples)('%s is accepted without a warning', (path) => {
    const { storage } = options(read(path));
    if (storage.type === 'fs') decodeOptions(storage.options, storageOptions.fs);
    else expect(decodeOptions(storage.options, storageOptions.s3).secretKey).toBe(env.S3_SECRET_KEY);
  });

  test('what is commented out in main.yaml may be used as well', () => {
    const text = read('examples/main.yaml');
    const keys = text.match(/^ *#\w+:/gm) ?? [];
    // The instance, region, create_bucket, the files of keys, cleanup and sweeper.
    expect(keys.length).toBe(7);
    const config = options(text.replace(/^( *)#(?=\w+:)/gm, '$1'));
    expect(config.instance).toBe('ns1');
    expect(config.storage.cleanup.enabled).toBe(true);
    expect(config.sweeper.enabled).toBe(true);
    const s3 = decodeOptions(config.storage.options, storageOptions.s3);
    expect(s3.accessKeyFile).toBe('/run/credentials/lightningstream@main.service/access_key');
    expect(s3.createBucket).toBe(true);
  });

  test('main.yaml and pdns.conf agree on the databases', () => {
    const { lmdbs } = options(read('examples/main.yaml'));
    const setting = (name: string): string | undefined =>
      new RegExp(`^${name}=(.*)$`, 'm').exec(read('examples/pdns.conf'))?.[1];
    const file = setting('lmdb-filename');
    expect(setting('lmdb-shards')).toBe('1');
    expect([...lmdbs].map(([name, { path }]) => [name, path])).toEqual([
      ['main', file],
      ['shard', `${file}-0`],
    ]);
    for (const { schemaTracksChanges, options: of } of lmdbs.values()) {
      expect(schemaTracksChanges).toBe(true);
      expect(of.noSubdir).toBe(true);
      expect(of.mapSizeBytes).toBe(Number(setting('lmdb-map-size')) * 1024 ** 2);
    }
  });
});
