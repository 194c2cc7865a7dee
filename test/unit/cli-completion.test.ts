import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { beforeAll, describe, expect, test } from 'vitest';
import { completionScript, type Shell, SHELLS } from '../../src/cli/completion.ts';
import { commandDefinitions } from '../../src/cli/definitions.ts';
import { createProgram } from '../../src/cli/program.ts';
import { run } from '../../src/cli/run.ts';
import { capture } from '../helpers/output.ts';
import { tempDir, type TempDir } from '../helpers/process.ts';

async function script(shell: string, ...flags: string[]): Promise<string> {
  const io = capture();
  expect(await run(['completion', shell, ...flags], io)).toBe(0);
  return io.out();
}

test('an unknown shell is told, with those there are', async () => {
  const io = capture();
  expect(await run(['completion', 'tcsh'], io)).toBe(2);
  expect(io.err()).toMatch(/^lightningstream: .*'tcsh'.*bash, zsh, fish.*\n$/);
});

describe('bash', () => {
  let bash: string;
  beforeAll(async () => {
    bash = await script('bash');
  });

  /** What bash offers for this line, whose last word is the one to be completed. */
  async function offers(dir: TempDir, ...words: string[]): Promise<readonly string[]> {
    writeFileSync(dir.join('completion.bash'), bash);
    const ask = `
      source ./completion.bash || exit 1
      complete -p lightningstream >/dev/null || exit 1
      COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
      _lightningstream
      printf '%s\\n' "\${COMPREPLY[@]}"`;
    const { status, stdout, stderr } = spawnSync(
      'bash',
      ['--norc', '-euc', ask, 'bash', 'lightningstream', ...words],
      {
        cwd: dir.path,
        encoding: 'utf8',
      },
    );
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    return stdout.split('\n').filter(Boolean);
  }

  test('commands, flags, words and files', async () => {
    await using dir = await tempDir();
    mkdirSync(dir.join('some folder'));
    writeFileSync(dir.join('some file.yaml'), '');
    expect(await offers(dir, 's')).toEqual(['sync', 'snapshots', 'stats']);
    expect(await offers(dir, 'snapshots', 'p')).toEqual(['put']);
    expect(await offers(dir, 'experimental', '')).toEqual(
      expect.arrayContaining(['migrate-timestamps', 'pdns-v5-fix-duplicate-domains']),
    );
    expect(await offers(dir, 'snapshots', 'list', '--lo')).toEqual([
      '--long',
      '--log-level',
      '--log-format',
      '--log-timestamp',
      '--log-config',
    ]);
    expect(await offers(dir, 'sync', '--only')).toEqual(['--only-once', '--only-db']);
    expect(await offers(dir, 'receive', '--only')).toEqual(['--only-once']);
    expect(await offers(dir, 'stats', '--log-format', '')).toEqual(['human', 'logfmt', 'json']);
    // As bash splits `--log-format=l`.
    expect(await offers(dir, '--log-format', '=', 'l')).toEqual(['logfmt']);
    expect(await offers(dir, 'completion', '')).toEqual([...SHELLS]);
    expect(await offers(dir, '-c', 'some')).toEqual(
      expect.arrayContaining(['some file.yaml', 'some folder']),
    );
    expect(await offers(dir, 'snapshots', 'put', 'some f')).toHaveLength(2);
  });

  test('the values of flags are no commands', async () => {
    await using dir = await tempDir();
    expect(await offers(dir, '-c', 'sync', 'snapshots', '-i', 'list', 'd')).toEqual(['dump']);
    expect(await offers(dir, '--instance', '=', 'sync', 'snap')).toEqual(['snapshots']);
    expect(await offers(dir, 'sync', '--only-db', 'x', '--wait')).toEqual(['--wait-for-marker-file']);
    expect(await offers(dir, 'sync', '--only-db', '')).toEqual([]);
  });
});

describe.each(SHELLS)('%s', (shell: Shell) => {
  const nothing = (): Promise<void> => Promise.resolve();
  const commands = commandDefinitions(createProgram({ plain: nothing, configured: nothing }));

  test('knows every command and flag', async () => {
    const known = await script(shell);
    for (const { children, flags } of commands) {
      for (const { name } of children) expect(known).toContain(name);
      for (const { long } of flags) expect(known).toContain(shell === 'fish' ? `-l ${long.slice(2)}` : long);
    }
    const described = known.includes('two-way') || known.includes('publish local changes');
    expect(described).toBe(shell !== 'bash');
    expect(await script(shell, '--no-descriptions')).not.toContain('publish local changes');
  });

  // bash is everywhere; the others where they are installed.
  const exists = spawnSync(shell, ['--version']).status === 0;
  test.skipIf(!exists)(`is a script that ${shell} understands [${shell}]`, async () => {
    await using dir = await tempDir();
    writeFileSync(dir.join('script'), await script(shell));
    const { status, stderr } = spawnSync(shell, ['-n', dir.join('script')], { encoding: 'utf8' });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  });

  test('text with quotes stays text', () => {
    const evil = 'it\'s $(touch /x) `y` [z]: \\ "q"';
    const made = completionScript(
      shell,
      [
        {
          path: '',
          summary: '',
          description: '',
          operands: [],
          flags: [
            {
              short: '-a',
              long: '--aa',
              value: '<v>',
              choices: [],
              repeatable: false,
              required: false,
              description: evil,
              default: undefined,
            },
          ],
          children: [{ name: 'sub', summary: evil }],
        },
      ],
      true,
    );
    if (shell === 'bash') expect(made).not.toContain('touch');
    else expect(made.replace(/'(?:[^'\\]|\\.|'\\'')*'/g, '')).not.toContain('touch');
  });
});
