import { afterAll, beforeAll, expect, vi } from 'vitest';
import { UpdateMarkerStorage } from '../../src/storage/update-marker.ts';
import { type S3Server, startMinio, startVersitygw } from '../helpers/s3-server.ts';
import { type Backend, storageConformance } from '../helpers/storage-conformance.ts';
import { describeWithTools } from '../helpers/tools.ts';
import { newBucket, openS3, openUploads, optionsFor } from './storage-s3-helpers.ts';

vi.setConfig({ hookTimeout: 90_000 });

for (const [tool, startServer] of [
  ['minio', startMinio],
  ['versitygw', startVersitygw],
] as const) {
  describeWithTools([tool], `S3 storage on ${tool}`, () => {
    let server: S3Server;
    beforeAll(async () => {
      server = await startServer();
    });
    afterAll(() => server[Symbol.asyncDispose]());

    async function open(globalPrefix: string, hasMarker: boolean): Promise<Backend> {
      const bucket = await newBucket(server);
      const opened = await openS3({ ...optionsFor(server, bucket), global_prefix: globalPrefix });
      return {
        storage: hasMarker
          ? new UpdateMarkerStorage(opened.storage, {
              globalPrefix,
              forceListIntervalMs: 300_000,
              logger: opened.log.logger,
            })
          : opened.storage,
        async expectNothingHidden() {
          expect(await openUploads(server, bucket)).toEqual([]);
        },
        [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
      };
    }

    const traits = { flatMemory: true, manyObjects: 1100, timeoutMs: 120_000 };
    storageConformance(tool, () => open('', false), traits);
    storageConformance(`${tool}, global prefix, update marker`, () => open('pre/fix/', true), traits);
  });
}
