/** `make demo-powerdns`: what it shows, the commands that it offers, and that it leaves nothing behind. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { repositoryRoot, run, start, tempDir, until } from '../helpers/process.ts';
import { describeWithTools } from '../helpers/tools.ts';

const demo = { command: process.execPath, args: [join(repositoryRoot, 'build/demo-powerdns.ts')] };

/** The demo's temporary directory goes below `directory`. */
function environment(directory: string, extra: Readonly<Record<string, string>> = {}) {
  return { XDG_CACHE_HOME: process.env['XDG_CACHE_HOME'], TMPDIR: directory, ...extra };
}

/** Programs with a file below the directory among their arguments: MinIO, and each PowerDNS server and daemon. */
function processesIn(directory: string): readonly string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) => {
      try {
        const commandLine = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
        return commandLine.includes(`${directory}/`) ? [commandLine] : [];
      } catch {
        return [];
      }
    });
}

function expectNothingLeft(directory: string): void {
  expect(processesIn(directory)).toEqual([]);
  expect(readdirSync(directory)).toEqual([]);
  expect(readFileSync('/proc/mounts', 'utf8')).not.toContain(directory);
}

describeWithTools(['minio', 'pdns-4.9'], 'make demo-powerdns', () => {
  test('shows changes both ways, the keys and a deletion, and ends by itself', async () => {
    await using dir = await tempDir();
    const finished = await run({ ...demo, env: environment(dir.path, { DEMO_SECONDS: '1' }) });
    expect(finished.stderr).toBe('');
    expect(finished.code).toBe(0);
    const answers = [...finished.stdout.matchAll(/^ {2}✓ +\d+ ms {2}(.+)$/gm)].map(([, answer]) => answer);
    expect(answers).toEqual([
      'ns2 answers: www.example.org A 192.0.2.10',
      'ns1 answers: www.example.org A 192.0.2.20',
      expect.stringMatching(/^ns2 has the same key: example\.org DNSKEY 257 3 13 /),
      'ns1 answers: www.example.org NXDOMAIN',
    ]);
    expect(finished.stdout).toContain('the answer of ns2: fully validated\n');
    expect(finished.stdout).not.toContain('Ctrl-C');
    expectNothingLeft(dir.path);
  });

  test('stays up to be played with until Ctrl-C', async () => {
    await using dir = await tempDir();
    await using playing = await start({ ...demo, env: environment(dir.path) });
    await playing.waitForOutput(/until you press Ctrl-C/, { timeoutMs: 60_000 });
    expect(processesIn(dir.path)).toHaveLength(5);

    const shown = playing.stdout();
    const cwd = /^Try it +cd (\/.+)$/m.exec(shown)?.[1] ?? '';
    const commands = [...shown.matchAll(/^ +(\.\/ns\d .+)$/gm)].map(([, command = '']) => command);
    const [add = '', askSecond = '', change = '', askFirst = ''] = commands;
    const shell = (command: string) =>
      run({ command: 'sh', args: ['-c', command], cwd, env: environment(dir.path) });
    const answers = (command: string, data: string) =>
      until(async () => (await shell(command)).stdout.includes(data), { what: `${command}: ${data}` });
    expect((await shell(add)).code).toBe(0);
    await answers(askSecond, '192.0.2.30');
    expect(await shell(change)).toMatchObject({ code: 0, stdout: '' });
    await answers(askFirst, '192.0.2.31');
    const pages = [...shown.matchAll(/(?<=status )http:\S+/g)].map(([address]) => address);
    expect(pages).toHaveLength(2);
    for (const address of pages) expect(await (await fetch(address)).text()).toContain('<html');

    playing.kill('SIGINT');
    expect(await playing.exited).toMatchObject({ code: 0, stderr: '' });
    expectNothingLeft(dir.path);
  });
});

test('make demo-powerdns says in one line what it lacks', async () => {
  await using dir = await tempDir();
  const { code, stdout, stderr } = await run({
    ...demo,
    env: environment(dir.path, { XDG_CACHE_HOME: dir.join('cache') }),
  });
  expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
  expect(stderr.trim()).toMatch(/^The demo failed: minio: .+$/);
  expectNothingLeft(dir.path);
});
