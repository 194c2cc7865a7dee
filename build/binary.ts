/**
 * Makes the single binary: the program as one file, with the Node.js that runs it and the native addon inside.
 *
 *   node build/binary.ts [x64|arm64]
 *
 * Into dist/binary (dist/binary/arm64 for another architecture than this machine's): `lightningstream`, the addon that is in it as
 * `lightningstream.node`, and `bundle.json`, which says of which modules it is (for the SBOM). Does nothing when they are of the same
 * ingredients already. docs/architecture.md says how it works.
 */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { brotliCompressSync } from 'node:zlib';
import sea from '@yao-pkg/pkg/lib-es5/sea.js';
import { build } from 'esbuild';
import { ADDON_ASSETS } from '../src/native/addon.ts';
import { ARCHITECTURES, type Architecture, crossAddon, crossNode, emulatorOf, stripOf } from './cross.ts';

const root = join(import.meta.dirname, '..');
const arch = architecture(process.argv[2] ?? process.arch);
const isCross = arch !== process.arch;
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };

/** Those of the checkout's program; nothing else reaches Node.js, not even by NODE_OPTIONS. */
const nodeFlags = /^node_flags=(\S+)$/m.exec(readFileSync(join(root, 'bin/lightningstream'), 'utf8'))?.[1];
if (nodeFlags === undefined) throw new Error('bin/lightningstream: no node_flags');

const work = join(root, '.cache', 'binary', arch);
const output = join(root, 'dist', 'binary', isCross ? arch : '');
mkdirSync(work, { recursive: true });
mkdirSync(output, { recursive: true });

const addon = join(work, 'lightningstream.node');
strip(isCross ? crossAddon(root, arch) : join(root, 'native/addon/lightningstream.node'), addon);
const node = isCross ? crossNode(root, arch) : process.execPath;
const { bundle, modules } = await bundled();

const ingredients = createHash('sha256');
for (const part of [node, import.meta.filename, join(root, 'package-lock.json'), addon])
  ingredients.update(readFileSync(part));
const digest = ingredients.update(nodeFlags).update(bundle).digest('hex');
const stamp = join(work, 'digest');
if (!isMade()) await make();

function architecture(name: string): Architecture {
  const known = ARCHITECTURES.find((one) => one === name);
  if (known === undefined) {
    console.error(`binary.ts: no such architecture: ${name} (known: ${ARCHITECTURES.join(', ')})`);
    process.exit(2);
  }
  return known;
}

function isMade(): boolean {
  const files = ['lightningstream', 'lightningstream.node', 'bundle.json'].map((name) => join(output, name));
  return (
    files.every((file) => existsSync(file)) && existsSync(stamp) && readFileSync(stamp, 'utf8') === digest
  );
}

/** The program and what it imports as one script. Its lazy imports stay so: a module runs when it is first asked for. */
async function bundled(): Promise<{ readonly bundle: Buffer; readonly modules: string }> {
  const built = await build({
    entryPoints: [join(root, 'src/main.ts')],
    absWorkingDir: root,
    bundle: true,
    write: false,
    metafile: true,
    platform: 'node',
    format: 'cjs',
    target: `node${process.versions.node}`,
    mainFields: ['module', 'main'],
    minify: true,
    // For the stack traces of --debug.
    keepNames: true,
    legalComments: 'none',
    define: { LIGHTNINGSTREAM_VERSION: JSON.stringify({ version, commit: commit() }) },
    // What uses it is not reached in the single binary.
    logOverride: { 'empty-import-meta': 'silent' },
    logLevel: 'warning',
  });
  const [file] = built.outputFiles;
  if (file === undefined) throw new Error('esbuild made nothing');
  return { bundle: Buffer.from(file.contents), modules: JSON.stringify(built.metafile) };
}

/** The commit as `make build` knows it; undefined outside of a git checkout. */
function commit(): string | undefined {
  if (!existsSync(join(root, '.git'))) return undefined;
  try {
    const arguments_ = ['describe', '--always', '--dirty', '--exclude=*'];
    return execFileSync('git', arguments_, {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return undefined;
  }
}

/** Without debug information and symbols. To be done before the injection: afterwards it breaks the binary. */
function strip(from: string, to: string): void {
  execFileSync(stripOf(arch), ['--strip-all', '-o', to, from], { stdio: ['ignore', 'inherit', 'inherit'] });
  chmodSync(to, 0o755);
}

async function make(): Promise<void> {
  rmSync(stamp, { force: true });
  const stripped = join(work, 'node');
  strip(node, stripped);
  writeFileSync(join(work, 'lightningstream.cjs'), bundle);
  const made = join(work, 'lightningstream');
  const content = readFileSync(addon);
  const asset = (name: string, data: Uint8Array | string): string => {
    writeFileSync(join(work, name), data);
    return join(work, name);
  };
  const seaConfig = {
    // As seen from pkg's own directory below TMPDIR: it ends up in the binary, which must not depend on where the checkout lies.
    main: '../lightningstream.cjs',
    disableExperimentalSEAWarning: true,
    useSnapshot: false,
    useCodeCache: true,
    execArgv: [nodeFlags],
    execArgvExtension: 'none',
    assets: {
      [ADDON_ASSETS.content]: asset('addon.br', brotliCompressSync(content)),
      [ADDON_ASSETS.digest]: asset('addon.sha256', createHash('sha256').update(content).digest('hex')),
    },
  };
  process.env['TMPDIR'] = work;
  delete process.env['NODE_OPTIONS'];
  // What lays out the part to be injected, the compiled script in it. Hash tables are part of that: a fixed seed for equal results.
  const generator = join(work, 'generator');
  const command = [...(isCross ? emulatorOf(arch) : []), stripped, '--random-seed=1'];
  writeFileSync(generator, `#!/bin/sh\nexec ${command.map((word) => `'${word}'`).join(' ')} "$@"\n`, {
    mode: 0o755,
  });
  // pkg would run the Node.js that it gets, without flags; but this process's own, of the same version, when it does not know the
  // architecture. Only its messages name that.
  process.execPath = generator;
  await sea.default(join(work, 'lightningstream.cjs'), {
    nodePath: stripped,
    useLocalNode: true,
    seaConfig,
    targets: [
      { nodeRange: `node${process.versions.node}`, platform: 'linux', arch: `gnu-${arch}`, output: made },
    ],
  });
  chmodSync(made, 0o755);
  // By renaming: a running program keeps the file that it has mapped.
  copyFileSync(addon, `${addon}.new`);
  renameSync(`${addon}.new`, join(output, 'lightningstream.node'));
  renameSync(made, join(output, 'lightningstream'));
  writeFileSync(join(output, 'bundle.json'), modules);
  writeFileSync(stamp, digest);
}
