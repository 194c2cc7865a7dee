/**
 * Runs every check and test, shows their output as it comes, and closes with one line `N passed, N failed[, N skipped]`.
 *
 * A check (format, lint, types) that fails counts as one failure, and so does a runner that dies without naming a failed test.
 * With CI set a skipped test is a failure as well: what a machine cannot run must not look tested.
 *
 *   --quick     checks, Rust's tests, the vitest project `unit`
 *   --binary    what is tested of the sync path end to end, with the single binary instead of the checkout
 *   --packages  the vitest project `packages` only
 *   --soak      the vitest project `soak` only
 */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';

interface Tally {
  passed: number;
  readonly failed: string[];
  readonly skipped: string[];
}

interface VitestReport {
  readonly testResults: readonly {
    readonly name: string;
    readonly status: string;
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[];
  }[];
}

const root = join(import.meta.dirname, '..');
process.chdir(root);
// Tools that look for a `node` find the one we pinned.
process.env['PATH'] = `${dirname(process.execPath)}:${process.env['PATH'] ?? ''}`;

const tally: Tally = { passed: 0, failed: [], skipped: [] };
const flags = new Set(process.argv.slice(2));
const startedMs = performance.now();

/** What the daemon does and what only a daemon meets. The rest of `e2e` looks at one command, or at this repository. */
const SYNC_PATH = [
  'bad-lmdb',
  'bad-storage',
  'cleaner',
  'convergence',
  'dump',
  'lifecycle',
  'merge-lock',
  'powerdns',
  'shadow',
  'signals',
  'storage-s3',
  'sweeper',
].map((name) => `test/e2e/${name}.test.ts`);

const alone = ['packages', 'soak'].find((project) => flags.has(`--${project}`));
if (alone !== undefined) {
  await vitest([alone]);
} else if (flags.has('--binary')) {
  await singleBinary();
} else {
  await check('cargo fmt', ['cargo', 'fmt', '--all', '--check']);
  await check(
    'prettier',
    node('node_modules/prettier/bin/prettier.cjs', '--check', '--log-level', 'warn', '.'),
  );
  await check('tsc', node('node_modules/typescript/bin/tsc', '--noEmit', '-p', 'tsconfig.json'));
  await check('oxlint', node('node_modules/oxlint/bin/oxlint', '--type-aware', '--deny-warnings'));
  await check('clippy', [
    'cargo',
    'clippy',
    '--workspace',
    '--all-targets',
    '--locked',
    '--quiet',
    '--',
    '-D',
    'warnings',
  ]);
  await cargoTest();
  await vitest(flags.has('--quick') ? ['unit'] : ['unit', 'golden', 'e2e', 'packages']);
  if (!flags.has('--quick')) await singleBinary();
}

if (tally.passed + tally.failed.length === 0) tally.failed.push('no test ran');
if (process.env['CI']) tally.failed.push(...tally.skipped.map((name) => `skipped: ${name}`));

process.stdout.write(`\nfinished in ${((performance.now() - startedMs) / 1000).toFixed(0)} s\n`);
list('skipped', tally.skipped);
list('failed', tally.failed);
const skipped = tally.skipped.length > 0 ? `, ${tally.skipped.length} skipped` : '';
process.stdout.write(`${tally.passed} passed, ${tally.failed.length} failed${skipped}\n`);
process.exitCode = tally.failed.length > 0 ? 1 : 0;

function list(title: string, names: readonly string[]): void {
  if (names.length > 0) process.stdout.write(`${title}:\n${names.map((name) => `  ${name}\n`).join('')}`);
}

function node(...args: readonly string[]): readonly string[] {
  return [process.execPath, ...args];
}

async function check(name: string, command: readonly string[]): Promise<void> {
  const { code } = await run(name, command);
  if (code !== 0) tally.failed.push(name);
}

async function cargoTest(): Promise<void> {
  const command = ['cargo', 'test', '--workspace', '--locked', '--no-fail-fast'];
  const { code, output } = await run('cargo test', command);
  let failed = 0;
  let results = 0;
  for (const line of output.split('\n')) {
    if (line.startsWith('test result: ')) results += 1;
    const test = /^test (.+?)(?: - should panic)? \.\.\. (ok|FAILED|ignored)/.exec(line);
    if (test === null) continue;
    const name = `${test[1] ?? ''} (Rust)`;
    if (test[2] === 'ok') tally.passed += 1;
    else if (test[2] === 'ignored') tally.skipped.push(name);
    else {
      failed += 1;
      tally.failed.push(name);
    }
  }
  if (code !== 0 && failed === 0) tally.failed.push('cargo test: did not build, or a test process died');
  else if (results === 0) tally.failed.push('cargo test: no test ran');
}

async function singleBinary(): Promise<void> {
  process.env['LIGHTNINGSTREAM_PROGRAM'] = join(root, 'dist/binary/lightningstream');
  await vitest(['e2e'], SYNC_PATH, 'single binary: ');
  delete process.env['LIGHTNINGSTREAM_PROGRAM'];
}

async function vitest(
  projects: readonly string[],
  files: readonly string[] = [],
  prefix = '',
): Promise<void> {
  const reportPath = join(root, '.cache', 'vitest.json');
  mkdirSync(dirname(reportPath), { recursive: true });
  rmSync(reportPath, { force: true });
  const { code } = await run(
    `${prefix}vitest`,
    node(
      'node_modules/vitest/vitest.mjs',
      'run',
      ...files,
      ...projects.map((name) => `--project=${name}`),
      '--reporter=default',
      '--reporter=json',
      `--outputFile.json=${reportPath}`,
    ),
  );
  const failedBefore = tally.failed.length;
  let tests = 0;
  for (const file of readReport(reportPath).testResults) {
    const path = `${prefix}${file.name.replace(`${root}/`, '')}`;
    for (const test of file.assertionResults) {
      tests += 1;
      const name = `${path}: ${test.fullName}`;
      if (test.status === 'passed') tally.passed += 1;
      else if (test.status === 'failed') tally.failed.push(name);
      else tally.skipped.push(name);
    }
    // A file that could not be loaded, or whose hooks failed, has no failed test to show for it.
    if (file.status === 'failed' && !file.assertionResults.some((test) => test.status === 'failed')) {
      tally.failed.push(path);
    }
  }
  if (tests === 0) tally.failed.push('vitest: no test ran');
  else if (code !== 0 && tally.failed.length === failedBefore)
    tally.failed.push('vitest: an error outside of the tests');
}

function readReport(path: string): VitestReport {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as VitestReport;
  } catch {
    return { testResults: [] };
  }
}

function run(name: string, command: readonly string[]): Promise<{ code: number; output: string }> {
  const begunMs = performance.now();
  process.stdout.write(`\n── ${name}\n`);
  const [file = '', ...args] = command;
  return new Promise((resolve) => {
    const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const chunks: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => {
      chunks.push(chunk);
      process.stdout.write(chunk);
    });
    child.on('error', (error) => {
      process.stdout.write(`${name}: ${error.message}\n`);
      resolve({ code: 127, output: '' });
    });
    child.on('close', (code, signal) => {
      const status = code ?? 128 + (signal === null ? 0 : constants.signals[signal]);
      process.stdout.write(
        `── ${name}: ${status === 0 ? 'ok' : `FAILED (${status})`}, ${((performance.now() - begunMs) / 1000).toFixed(1)} s\n`,
      );
      resolve({ code: status, output: Buffer.concat(chunks).toString() });
    });
  });
}
