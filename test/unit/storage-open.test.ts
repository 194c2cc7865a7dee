import { readdir, stat } from 'node:fs/promises';
import { expect, test } from 'vitest';
import type { StorageConfig } from '../../src/config/types.ts';
import { openStorage } from '../../src/storage/open.ts';
import { flock } from '../helpers/flock.ts';
import { recordLog } from '../helpers/log-recorder.ts';
import { tempDir } from '../helpers/process.ts';

const cleanup = {
  enabled: false,
  intervalMs: 300_000,
  mustKeepIntervalMs: 600_000,
  removeOldInstancesIntervalMs: 604_800_000,
};
function open(type: string, options?: unknown): ReturnType<typeof openStorage> {
  const config: StorageConfig = { type, options, cleanup };
  return openStorage(config, {
    tryLock: flock,
    logger: recordLog().logger,
    addSecrets: () => undefined,
    env: {},
  });
}

test('fs opens at its root_path', async () => {
  await using directory = await tempDir();
  const storage = await open('fs', { root_path: directory.join('objects') });
  expect(storage.type).toBe('fs');
  expect(storage.location).toBe(directory.join('objects'));
  expect((await stat(directory.join('objects'))).isDirectory()).toBe(true);
  await storage.close();
});

test('memory takes no options', async () => {
  expect((await open('memory')).type).toBe('memory');
  expect((await open('memory', {})).type).toBe('memory');
  await expect(open('memory', { root_path: '/x' })).rejects.toMatchObject({
    code: 'CONFIG',
    message: expect.stringContaining('storage.options.root_path: unknown key') as string,
  });
});

test.each([
  ['', undefined, 'storage.type: must be set to one of: fs, memory, s3'],
  ['ftp', undefined, 'storage.type: must be one of fs, memory, s3: "ftp"'],
  ['FS', { root_path: '/x' }, 'storage.type: must be one of fs, memory, s3: "FS"'],
  ['constructor', undefined, 'storage.type: must be one of fs, memory, s3: "constructor"'],
  ['azure', {}, 'storage.type: azure is not built into this version; there is fs, memory, s3'],
])('type %j is refused in one line', async (type, options, message) => {
  await expect(open(type, options)).rejects.toMatchObject({ code: 'CONFIG', message });
});

test.each([
  ['no options', undefined],
  ['no root_path', {}],
  ['an empty root_path', { root_path: '' }],
  ['a null root_path', { root_path: null }],
])('fs with %s is refused, naming the key', async (_title, options) => {
  await expect(open('fs', options)).rejects.toMatchObject({
    code: 'CONFIG',
    message: expect.stringMatching(/^[^\n]*storage\.options\.root_path: must be set$/) as string,
  });
});

test('an unknown option is refused, naming the key, before anything is created', async () => {
  await using directory = await tempDir();
  const options = { root_path: directory.join('objects'), foo: 1 };
  await expect(open('fs', options)).rejects.toMatchObject({
    code: 'CONFIG',
    message: expect.stringContaining('storage.options.foo: unknown key') as string,
  });
  expect(await readdir(directory.path)).toEqual([]);
});

test('options that are no section are refused', async () => {
  await expect(open('fs', ['root_path'])).rejects.toMatchObject({ code: 'CONFIG' });
});
