/**
 * Makes the manual pages of the pages of the reference, so that there is one text.
 *
 *   node build/manual.ts DIRECTORY    writes man1/lightningstream.1 and man5/lightningstream.yaml.5
 *
 * Only the Markdown is known that these pages have: headings, paragraphs, lists, tables, indented examples, comments.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { programVersion } from '../src/version.ts';

export interface ManualPage {
  /** `man1/lightningstream.1` */
  readonly file: string;
  readonly source: string;
  readonly name: string;
  readonly section: 1 | 5;
  readonly summary: string;
  readonly synopsis?: string;
  readonly seeAlso: string;
}

export const MANUAL_PAGES: readonly ManualPage[] = [
  {
    file: 'man1/lightningstream.1',
    source: 'docs/commands.md',
    name: 'lightningstream',
    section: 1,
    summary: 'replicate LMDB databases through a shared storage',
    synopsis: '.B lightningstream\n[flags] <command>',
    seeAlso: '.BR lightningstream.yaml (5)',
  },
  {
    file: 'man5/lightningstream.yaml.5',
    source: 'docs/configuration.md',
    name: 'lightningstream.yaml',
    section: 5,
    summary: 'configuration of lightningstream',
    seeAlso: '.BR lightningstream (1)',
  },
];

/** The page in man(7). */
export function manualPage(page: ManualPage, markdown: string): string {
  const head = [
    `.TH ${page.name.toUpperCase()} ${page.section} "" "lightningstream-ts ${programVersion().version}"`,
    '.SH NAME',
    `${escape(page.name)} \\- ${escape(page.summary)}`,
    ...(page.synopsis === undefined ? [] : ['.SH SYNOPSIS', page.synopsis]),
    '.SH DESCRIPTION',
  ];
  return `${[...head, ...body(markdown), '.SH SEE ALSO', page.seeAlso].join('\n')}\n`;
}

function body(markdown: string): readonly string[] {
  const blocks = markdown
    .replace(/^# .*\n/, '')
    .replace(/^<!--.*-->$/gm, '')
    .split(/\n{2,}/)
    .map((block) => block.replace(/^\n+|\n+$/g, ''))
    .filter((block) => block !== '');
  return blocks.flatMap((block) => {
    const lines = block.split('\n');
    const heading = /^(#+) (.*)$/.exec(block);
    if (heading !== null) {
      const level = heading[1]?.length === 2 ? 'SH' : 'SS';
      const text = escape(heading[2] ?? '');
      return [`.${level} ${level === 'SH' ? text.toUpperCase() : text}`];
    }
    if (block.startsWith('|')) return table(lines);
    if (block.startsWith('    ')) return ['.PP', '.nf', ...lines.map((line) => escape(line.slice(4))), '.fi'];
    if (/^[-*] /.test(block))
      return block
        .split(/^[-*] /m)
        .slice(1)
        .flatMap((item) => ['.IP \\(bu 2', inline(item)]);
    return ['.PP', inline(block)];
  });
}

/** A row becomes a term with what it means; the first row names the columns. */
function table(lines: readonly string[]): readonly string[] {
  const [head = [], , ...rows] = lines.map((line) =>
    line
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim()),
  );
  return rows.flatMap((cells) => {
    const [term = ''] = cells;
    const notes = cells
      .slice(1, -1)
      .map((cell, index) => ({ cell, name: head[index + 1] ?? '' }))
      .filter(({ cell }) => cell !== '')
      .map(({ cell, name }) => (name === 'default' && cell.startsWith('`') ? `default ${cell}` : cell));
    return [
      '.TP',
      inline(`${term}${notes.length === 0 ? '' : ` (${notes.join('; ')})`}`),
      inline(cells.at(-1) || '-'),
    ];
  });
}

/** Code bold, emphasis italic, links as their text. */
function inline(markdown: string): string {
  const text = markdown
    .replace(/\s*\n\s*/g, ' ')
    .replace(/\[([^\]]*)\]\([^)]*\)/g, '$1')
    .replaceAll('&#124;', '|');
  return escape(text)
    .replace(
      /`([^`]*)`|\*\*([^*]+)\*\*/g,
      (_all, code?: string, strong?: string) => `\\fB${code ?? strong ?? ''}\\fR`,
    )
    .replace(/(^|[\s(])_([^_]+)_(?=$|[\s).,;:])/g, '$1\\fI$2\\fR');
}

/** Nothing of it is a command of troff, and hyphens stay those that are typed. */
function escape(text: string): string {
  const plain = text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replaceAll('’', '\\(cq')
    .replaceAll('…', '...')
    .replaceAll('→', '\\(->');
  return /^[.']/.test(plain) ? `\\&${plain}` : plain;
}

if (import.meta.main) {
  const [directory] = process.argv.slice(2);
  if (directory === undefined) throw new Error('usage: node build/manual.ts DIRECTORY');
  for (const page of MANUAL_PAGES) {
    const file = join(directory, page.file);
    mkdirSync(dirname(file), { recursive: true });
    const source = join(import.meta.dirname, '..', page.source);
    writeFileSync(file, manualPage(page, readFileSync(source, 'utf8')));
  }
}
