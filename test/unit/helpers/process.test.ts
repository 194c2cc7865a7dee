import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { expect, test } from 'vitest';
import { freePort, run, start, tempDir, until } from '../../helpers/process.ts';

test('until gives what the condition gave, and names it when the deadline passes', async () => {
  let looks = 0;
  expect(
    await until(() => (++looks === 3 ? 'there' : undefined), { what: 'three looks', intervalMs: 1 }),
  ).toBe('there');
  const never = until(() => Promise.reject(new Error('no route')), {
    what: 'a miracle',
    timeoutMs: 30,
    intervalMs: 1,
  });
  await expect(never).rejects.toThrow('not within 30 ms: a miracle: no route');
});

test('a temporary directory is gone after its scope, full or not', async () => {
  let path: string;
  {
    await using dir = await tempDir();
    path = dir.path;
    await writeFile(dir.join('file'), 'x');
  }
  expect(existsSync(path)).toBe(false);
});

test('a child that leaves its scope is dead; one that ignores SIGTERM is reported', async () => {
  let pid: number;
  {
    await using sleeper = await start({ command: 'sleep', args: ['1000'] });
    pid = sleeper.pid;
    process.kill(pid, 0);
  }
  expect(() => process.kill(pid, 0)).toThrow('ESRCH');
  await using deaf = await start({
    command: 'sh',
    args: ['-c', 'trap "" TERM; echo ready; while :; do sleep 0.05; done'],
  });
  await deaf.waitForOutput(/ready/);
  await expect(deaf.stop({ timeoutMs: 100 })).rejects.toThrow('did not end within 100 ms of SIGTERM');
});

test('a child sees nothing of our environment but the basics, and its output is kept', async () => {
  process.env['SECRET_OF_THE_DEVELOPER'] = 'x';
  const finished = await run({
    command: 'sh',
    args: ['-c', 'echo "$A-$SECRET_OF_THE_DEVELOPER"; echo bad >&2; exit 3'],
    env: { A: 'b' },
  });
  expect(finished).toEqual({ code: 3, signal: null, stdout: 'b-\n', stderr: 'bad\n' });
  await using ended = await start({ command: 'sh', args: ['-c', 'echo bad luck'] });
  await expect(ended.waitForOutput(/good luck/)).rejects.toThrow(/it ended without output[^]*bad luck/);
});

test('a free port can be listened on', async () => {
  const port = await freePort();
  const server = createServer();
  await new Promise<void>((resolve, reject) =>
    server.once('error', reject).listen(port, '127.0.0.1', resolve),
  );
  server.close();
  expect(port).toBeGreaterThan(1023);
});
