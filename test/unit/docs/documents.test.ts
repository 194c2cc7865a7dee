/** What all documents have in common: their configurations load, their command lines parse, their links lead somewhere. */
import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import type { Command } from 'commander';
import { describe, expect, test } from 'vitest';
import { refuseMissingFeatures } from '../../../src/cli/not-built.ts';
import { createProgram } from '../../../src/cli/program.ts';
import { decodeOptions } from '../../../src/config/decode.ts';
import { expandEnvironment, parseConfig } from '../../../src/config/index.ts';
import { storageOptions } from '../../../src/storage/open.ts';
import { repositoryRoot } from '../../helpers/process.ts';

const documents = globSync(['*.md', 'docs/**/*.md'], { cwd: repositoryRoot }).sort();
const text = (document: string): string => readFileSync(join(repositoryRoot, document), 'utf8');

interface Block {
  /** `docs/x.md:12`, the line of its first line. */
  readonly name: string;
  /** The word behind the fence; empty for indented ones. */
  readonly language: string;
  readonly content: string;
}

/** Fenced and indented blocks of a page. */
function blocksOf(document: string): readonly Block[] {
  const blocks: Block[] = [];
  let fence: { readonly language: string; readonly line: number; lines: string[] } | undefined;
  for (const [index, line] of text(document).split('\n').entries()) {
    const mark = /^ *```(.*)$/.exec(line);
    if (mark === null) {
      if (fence !== undefined) fence.lines.push(line);
      else if (/^ {4,}\S/.test(line))
        blocks.push({ name: `${document}:${index + 1}`, language: '', content: line.trim() });
      continue;
    }
    if (fence === undefined) {
      fence = { language: mark[1] ?? '', line: index + 2, lines: [] };
      continue;
    }
    const { language, line: first, lines } = fence;
    blocks.push({ name: `${document}:${first}`, language, content: `${lines.join('\n')}\n` });
    fence = undefined;
  }
  expect(fence, `${document}: a fence without its end`).toBeUndefined();
  return blocks;
}

const blocks = documents.flatMap(blocksOf);

describe('configurations', () => {
  const isCompose = ({ content }: Block): boolean => /^services:/m.test(content);
  const configurations = blocks.filter((block) => /^ya?ml$/.test(block.language) && !isCompose(block));
  /** What the pages say that is set. */
  const env = {
    CREDENTIALS_DIRECTORY: '/run/credentials/lightningstream@main.service',
    INSTANCE_ID: 'ns1',
    S3_ACCESS_KEY: 'key',
    S3_SECRET_KEY: 'secret',
    S3_ENDPOINT: 'http://minio:9000',
    S3_BUCKET: 'powerdns',
    S3_REGION: 'us-east-1',
  };

  test('there are some on each page that should have one', () => {
    const pages = new Set(configurations.map(({ name }) => name.split(':')[0]));
    for (const page of [
      'README.md',
      'docs/powerdns.md',
      'docs/aws.md',
      'docs/minio.md',
      'docs/cloudflare-r2.md',
    ])
      expect(pages).toContain(page);
  });

  test.each(configurations)('that at $name is accepted without a warning', ({ name, content }) => {
    // A part of a configuration, such as its storage, has to be put beside some LMDB.
    const rest = /^lmdbs:/m.test(content) ? '' : 'lmdbs: {main: {path: /var/lib/app}}\n';
    const { config, warnings } = parseConfig(expandEnvironment(content + rest, env), name);
    expect(warnings).toEqual([]);
    expect(content).toMatch(/^[a-z]\w+:/m);
    const { type, options } = config.storage;
    expect(['', 'fs', 's3']).toContain(type);
    if (type === 'fs') decodeOptions(options, storageOptions.fs);
    if (type === 's3') decodeOptions(options, storageOptions.s3);
    refuseMissingFeatures(config, name);
  });

  test.each(blocks.filter(({ language }) => language === 'json'))(
    'the JSON at $name is JSON',
    ({ content }) => {
      // One object, or one in each line.
      const texts = content.startsWith('{\n') ? [content] : content.trim().split('\n');
      for (const each of texts) expect(JSON.parse(each)).toBeTypeOf('object');
    },
  );
});

/** A place where a page shows how the program is called. */
interface Call {
  readonly name: string;
  readonly line: string;
}

describe('command lines', () => {
  /** Of blocks, of units, and in the running text. */
  const calls: readonly Call[] = documents.flatMap((document) => {
    const inBlocks = blocksOf(document)
      .filter(({ language }) => !['yaml', 'json', 'js', 'ts', 'text'].includes(language))
      .flatMap(({ name, content }) => content.split('\n').map((line) => ({ name, line })));
    const inText = [...text(document).matchAll(/`((?:[\w/]*\/)?lightningstream [^`\n]+)`/g)].map((match) => ({
      name: `${document}:${text(document).slice(0, match.index).split('\n').length}`,
      line: match[1] ?? '',
    }));
    return [...inBlocks, ...inText].filter(
      // `[flags]` and `<name>` stand for something in the reference of commands.
      ({ line }) => argumentsOf(line) !== undefined && !/ \[flags\]| <\w/.test(line),
    );
  });

  test('the README has the two that a newcomer needs', () => {
    const ofReadme = calls
      .filter(({ name }) => name.startsWith('README.md:'))
      .map(({ line }) => argumentsOf(line));
    expect(ofReadme).toContainEqual(['-c', 'lightningstream.yaml', 'config', 'check']);
    expect(ofReadme).toContainEqual(['-c', 'lightningstream.yaml', 'sync']);
  });

  test('they are found wherever they may stand', () => {
    expect(argumentsOf('    lightningstream -c x.yaml sync    # goes on')).toEqual(['-c', 'x.yaml', 'sync']);
    expect(argumentsOf("ns1# /usr/bin/lightningstream snapshots list -p 'a b' | sort")).toEqual([
      'snapshots',
      'list',
      '-p',
      'a b',
    ]);
    expect(argumentsOf('ExecStart=/usr/bin/lightningstream -c /etc/%i.yaml sync')).toEqual([
      '-c',
      '/etc/%i.yaml',
      'sync',
    ]);
    expect(argumentsOf('source <(lightningstream completion bash)')).toEqual(['completion', 'bash']);
    for (const other of [
      'apt install lightningstream-ts',
      'cd lightningstream',
      'man lightningstream',
      'ls /etc/lightningstream/',
    ])
      expect([other, argumentsOf(other)]).toEqual([other, undefined]);
  });

  test.each(calls)('that at $name parses: $line', async ({ line }) => {
    expect(await parses(argumentsOf(line) ?? [])).toBe('');
  });

  test('one that does not is noticed', async () => {
    expect(await parses(['synk'])).toMatch('unknown command');
    expect(await parses(['sync', '--onlyonce'])).toMatch('unknown option');
    expect(await parses(['snapshots', 'get'])).toMatch('missing required argument');
    expect(await parses([])).toBe('no command');
  });
});

/** What follows the program's name in a line of shell or of a unit; undefined when the line does not call it. */
function argumentsOf(line: string): readonly string[] | undefined {
  const found = /(?:^|[\s(=])(?:[\w./~-]*\/)?lightningstream((?: .*)?)$/.exec(line);
  if (found === null || /^\s*#/.test(line)) return undefined;
  // A file or package of that name is an argument of another command.
  const before = line.slice(0, found.index).trim();
  const isCommand =
    /^$|^\$$|#$|--$|=$|<$|[|;&]$|^ExecStart\w*$/.test(before) ||
    /^(sudo|exec|time|runuser|systemd-run|docker|podman)\b/.test(before);
  if (!isCommand || !/^ +\S/.test(found[1] ?? '')) return undefined;
  const words: string[] = [];
  for (const [word, , , end] of (found[1] ?? '').matchAll(
    /((?:'[^']*'|"[^"]*"|[^\s'"|;&<>#()]+)+)|([|;&<>#)])/g,
  )) {
    if (end !== undefined || /^[|;&<>#)]$/.test(word)) break;
    words.push(word.replace(/'([^']*)'|"([^"]*)"/g, '$1$2'));
  }
  return words;
}

/** Why the program would refuse these arguments; empty when it would not. */
async function parses(argv: readonly string[]): Promise<string> {
  let calls = 0;
  const called = (): Promise<void> => {
    calls += 1;
    return Promise.resolve();
  };
  const program = createProgram({ plain: called, configured: called });
  const quiet = (command: Command): void => {
    command.exitOverride().configureOutput({ writeOut: () => undefined, writeErr: () => undefined });
    for (const child of command.commands) quiet(child);
  };
  quiet(program);
  try {
    const { operands, unknown } = program.parseOptions([...argv]);
    if (operands.length + unknown.length === 0)
      return program.opts()['logConfig'] === true ? '' : 'no command';
    await program.parseAsync([...argv], { from: 'user' });
    return calls === 1 ? '' : 'no command';
  } catch (error) {
    const { code, message } = error as Error & { readonly code?: string };
    return code === 'commander.helpDisplayed' ? '' : message;
  }
}

describe('links', () => {
  /** As GitHub makes them of headings. */
  const anchors = (document: string): ReadonlySet<string> =>
    new Set(
      [
        ...text(document)
          .replace(/^```[^]*?^```/gm, '')
          .matchAll(/^#+ (.*)$/gm),
      ].map(([, heading = '']) =>
        heading
          .toLowerCase()
          .replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
          .replace(/[^\p{L}\p{N} _-]/gu, '')
          .replaceAll(' ', '-'),
      ),
    );

  test.each(documents)('those in %s lead somewhere', (document) => {
    const prose = text(document).replace(/^```[^]*?^```/gm, '');
    const links = [...prose.matchAll(/\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]*))?\)/g)];
    const broken = links
      .filter(([, target = '', anchor]) => {
        const path = join(dirname(document), target);
        const page = target === '' ? document : path;
        if (!existsSync(join(repositoryRoot, page))) return true;
        return anchor !== undefined && !anchors(page).has(anchor);
      })
      .map(([link]) => link);
    expect(broken).toEqual([]);
  });

  test('the README leads to every document', () => {
    const targets = new Set(
      [...text('README.md').matchAll(/\]\(([^)#]+)[^)]*\)/g)].map(([, target]) => target),
    );
    const pages = documents.filter((document) => document !== 'README.md');
    expect(pages.filter((page) => !targets.has(relative('.', page)))).toEqual([]);
  });
});
