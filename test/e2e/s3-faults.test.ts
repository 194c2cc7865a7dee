/**
 * An S3 server that refuses: wrong keys, no bucket, no permission, another region. The daemon stays up, says once what is wrong and what to
 * do about it, turns unhealthy, and goes on by itself with nothing lost.
 */
import { CreateBucketCommand, DeleteBucketCommand } from '@aws-sdk/client-s3';
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  bucketPolicy,
  mc,
  minioUser,
  type S3Server,
  startMinio,
  startVersitygw,
} from '../helpers/s3-server.ts';
import { describeWithTools } from '../helpers/tools.ts';
import { DBI } from './helpers.ts';
import {
  complaints,
  expectComplaints,
  expectNoKeys,
  expectPlain,
  FIRST,
  LIST,
  LOAD,
  net,
  STORE,
  unhealthy,
  withOptions,
} from './s3-faults-helpers.ts';
import { newBucket, plainClient } from './storage-s3-helpers.ts';

let minio: S3Server;

describeWithTools(['minio', 'mc'], 'S3 that refuses', () => {
  beforeAll(async () => {
    minio = await startMinio();
  }, 90_000);
  afterAll(async () => {
    await minio?.[Symbol.asyncDispose]();
  });

  test('keys that are wrong at the start are replaced in their files', async () => {
    const bucket = await newBucket(minio);
    const user = await minioUser(minio, bucketPolicy(bucket));
    await using all = await net(minio, bucket);
    const { a, b, keys } = all;
    await b.app.put(DBI, 'before', 'b');
    await b.start();
    await keys.write({ accessKey: 'nobody-at-all', secretKey: 'no-secret-of-anybody' });
    await a.app.put(DBI, 'local', 'a');
    await a.start(withOptions(keys.options));
    await unhealthy(a, 'list', /InvalidAccessKeyId/);
    const unknown = {
      msg: FIRST,
      level: 'error',
      operation: 'list',
      bucket,
      http_status: 403,
      s3_code: 'InvalidAccessKeyId',
      error:
        /does not know the access key, or it is disabled; check access_key_file and secret_key_file \(HTTP 403, InvalidAcc/,
    };
    expectComplaints(a, unknown);

    await keys.write({ accessKey: user.accessKey, secretKey: 'wrong-secret-of-the-user' });
    await unhealthy(a, 'list', /SignatureDoesNotMatch/);
    const wrong = {
      msg: FIRST,
      http_status: 403,
      error: /the secret key is wrong; check access_key_file and/,
    };
    expectComplaints(a, unknown, wrong);

    await keys.write(user);
    await a.has('before', 'b');
    await b.has('local', 'a');
    await all.agree('after');
    expectComplaints(a, unknown, wrong);
    await expectNoKeys(a, keys.all);
    await a.stop();
  });

  test('keys that are revoked while it runs are replaced in their files', async () => {
    const bucket = await newBucket(minio);
    const first = await minioUser(minio, bucketPolicy(bucket));
    const second = await minioUser(minio, bucketPolicy(bucket));
    await using all = await net(minio, bucket);
    const { a, b, keys } = all;
    await keys.write(first);
    await a.start(withOptions(keys.options));
    await b.start();
    await all.agree('one');

    // The same user with a new secret.
    await first.changeSecret();
    await unhealthy(a, 'list', /SignatureDoesNotMatch/);
    await keys.write(first);
    await all.agree('two');
    const changed = { msg: LIST, error: /the secret key is wrong/ };
    expectComplaints(a, changed);

    // A user that goes away; meanwhile both write.
    await first.remove();
    await unhealthy(a, 'list', /InvalidAccessKeyId/);
    await a.app.put(DBI, 'meanwhile', 'a');
    await b.app.put(DBI, 'elsewhere', 'b');
    await unhealthy(a, 'store', /InvalidAccessKeyId/);
    await keys.write(second);
    await b.has('meanwhile', 'a');
    await a.has('elsewhere', 'b');
    await all.agree('three');
    const gone = /does not know the access key, or it is disabled; check access_key_file and secret_key_file/;
    expectComplaints(a, changed, { msg: LIST, error: gone }, { msg: STORE, error: gone });
    await expectNoKeys(a, keys.all);
    await a.stop();
  });

  test('a bucket that is not there yet, and goes away later', async () => {
    const bucket = `${await newBucket(minio)}-later`;
    const client = plainClient(minio);
    await using all = await net(minio, bucket);
    const { a, b } = all;
    const absent = {
      http_status: 404,
      s3_code: 'NoSuchBucket',
      error:
        /the bucket does not exist; create it, set storage.options.create_bucket, or correct storage.options.bucket/,
    };
    await a.app.put(DBI, 'local', 'a');
    const once = await a.run({ args: ['sync', '--only-once'] });
    expect(once.code).toBe(1);
    expect(complaints(a, once.stderr)).toMatchObject([{ msg: 'Sync failed', s3_code: 'NoSuchBucket' }]);
    expectPlain(once.stderr);

    await a.start();
    await b.start();
    await unhealthy(a, 'list', /NoSuchBucket/);
    expectComplaints(a, { msg: FIRST, ...absent });
    await client.send(new CreateBucketCommand({ Bucket: bucket }));
    await b.has('local', 'a');
    await all.agree('one');

    await mc(minio, 'rb', '--force', `s3/${bucket}`);
    await unhealthy(a, 'list', /NoSuchBucket/);
    await a.app.put(DBI, 'meanwhile', 'a');
    await unhealthy(a, 'store', /NoSuchBucket/);
    await client.send(new CreateBucketCommand({ Bucket: bucket }));
    await b.has('meanwhile', 'a');
    await all.agree('two');
    expectComplaints(a, { msg: FIRST, ...absent }, { msg: LIST, ...absent }, { msg: STORE, ...absent });
    await a.stop();
    client.destroy();
  });

  test('a bucket that the daemon may create', async () => {
    const bucket = await newBucket(minio);
    const client = plainClient(minio);
    await client.send(new DeleteBucketCommand({ Bucket: bucket }));
    client.destroy();
    await using all = await net(minio, bucket, { create_bucket: true });
    const { a, b } = all;
    await Promise.all([a.start(), b.start()]);
    await all.agree('one');
    expectComplaints(a);
    expectComplaints(b);
  });

  test('no permission to list, at the start; then none to load, store or delete', async () => {
    const bucket = await newBucket(minio);
    const user = await minioUser(minio, bucketPolicy(bucket, ['s3:ListBucket']));
    await using all = await net(minio, bucket);
    const { a, b, keys } = all;
    const denied = { bucket, http_status: 403, s3_code: 'AccessDenied' };
    await b.app.put(DBI, 'before', 'b');
    await b.start();
    await b.logged('Stored snapshot');
    await keys.write(user);
    await a.start(withOptions(keys.options));
    await unhealthy(a, 'list', /AccessDenied/);
    const listing = {
      msg: FIRST,
      ...denied,
      operation: 'list',
      error: /no permission .* need s3:ListBucket/,
    };
    expectComplaints(a, listing);

    await user.setPolicy(bucketPolicy(bucket, ['s3:GetObject']));
    await unhealthy(a, 'load', /AccessDenied/);
    const object: unknown = expect.stringMatching(/^main__b__/);
    const loading = { msg: LOAD, ...denied, operation: 'load', object, error: /they need s3:GetObject/ };
    expectComplaints(a, listing, loading);

    await user.setPolicy(bucketPolicy(bucket, ['s3:PutObject']));
    await a.has('before', 'b');
    await a.app.put(DBI, 'local', 'a');
    await unhealthy(a, 'store', /AccessDenied/);
    // What others store still arrives.
    await b.app.put(DBI, 'elsewhere', 'b');
    await a.has('elsewhere', 'b');
    const own: unknown = expect.stringMatching(/^main__a__/);
    const storing = {
      msg: STORE,
      ...denied,
      operation: 'store',
      object: own,
      error: /they need s3:PutObject/,
    };
    expectComplaints(a, listing, loading, storing);

    await user.setPolicy(bucketPolicy(bucket, ['s3:DeleteObject']));
    await b.has('local', 'a');
    await all.agree('after');
    expectComplaints(a, listing, loading, storing);
    const { stdout } = await a.run({ args: ['snapshots', 'list'] });
    const [name = ''] = stdout.trim().split('\n');
    const removal = await a.run({ args: ['snapshots', 'remove', name], ...withOptions(keys.options) });
    expect(removal.code).toBe(1);
    expect(removal.stderr.trim().split('\n')).toEqual([
      expect.stringMatching(
        /cannot delete "main__.*they need s3:DeleteObject \(HTTP 403, AccessDenied\): bucket "b-/,
      ),
    ]);
    expect(removal.stderr).toContain(name);
    await a.stop();
  });

  test('an update marker that may not be written: the others are told when it may', async () => {
    const bucket = await newBucket(minio);
    const marker = `arn:aws:s3:::${bucket}/update-marker`;
    const user = await minioUser(minio, bucketPolicy(bucket));
    await using all = await net(user, bucket, { use_update_marker: true });
    const { a, b } = all;
    await Promise.all([a.start(), b.start()]);
    await all.agree('one');
    await user.setPolicy([
      ...bucketPolicy(bucket),
      { Effect: 'Deny', Action: ['s3:PutObject'], Resource: [marker] },
    ]);
    await a.app.put(DBI, 'meanwhile', 'a');
    await unhealthy(a, 'store', /AccessDenied/);
    const own: unknown = expect.stringMatching(/^main__a__/);
    const untold = {
      msg: STORE,
      operation: 'store',
      object: own,
      http_status: 403,
      s3_code: 'AccessDenied',
      error: /done, but other instances are not told of it: .*"update-marker": .*need s3:PutObject/,
    };
    expectComplaints(a, untold);
    expect(await b.app.get(DBI, 'meanwhile')).toBeUndefined();
    await user.setPolicy(bucketPolicy(bucket));
    await b.has('meanwhile', 'a');
    await all.agree('two');
    expectComplaints(a, untold);
  });

  test('region auto, and a wrong one', async () => {
    const bucket = await newBucket(minio);
    await using all = await net(minio, bucket, { region: 'auto' });
    await Promise.all([all.a.start(), all.b.start()]);
    await all.agree('one');

    await using far = await startMinio({ env: { MINIO_SITE_REGION: 'eu-west-3' } });
    await using wrong = await net(far, 'any', { region: 'us-west-1', create_bucket: true });
    const { a } = wrong;
    await a.start();
    await unhealthy(a, 'list', /region/);
    expectComplaints(a, {
      msg: FIRST,
      error: /the bucket is not in region us-west-1: it is eu-west-3; correct storage.options.region or/,
    });
    await a.stop();
    await Promise.all([
      a.start(withOptions({ region: 'eu-west-3' })),
      wrong.b.start(withOptions({ region: 'eu-west-3' })),
    ]);
    await wrong.agree('one');
  });
});

describeWithTools(['versitygw'], 'Another S3 server that refuses', () => {
  test('an access key that it does not know is replaced in its file', async () => {
    await using server = await startVersitygw();
    await using all = await net(server, await newBucket(server));
    const { a, b, keys } = all;
    await keys.write({ accessKey: 'nobody-at-all', secretKey: 'no-secret-of-anybody' });
    await a.start(withOptions(keys.options));
    await unhealthy(a, 'list', /does not know the access key/);
    const unknown = {
      msg: FIRST,
      error: /does not know the access key, or it is disabled; check access_key_file/,
    };
    expectComplaints(a, unknown);
    await keys.write(server);
    await b.start();
    await all.agree('one');
    expectComplaints(a, unknown);
  });
});
