/**
 * Fills the generated parts of the pages of the reference from what the program parses with: the decoder's tables and the commands.
 *
 *   node build/reference.ts           rewrites docs/configuration.md and docs/commands.md
 *
 * A part is what stands between `<!-- keys: … -->` or `<!-- command: … -->` and `<!-- end -->`; everything else is written by hand.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isScalar } from 'yaml';
import { type CommandDefinition, commandDefinitions } from '../src/cli/definitions.ts';
import { createProgram } from '../src/cli/program.ts';
import type { Decoder } from '../src/config/decode.ts';
import { configTable } from '../src/config/index.ts';
import { storageOptions } from '../src/storage/open.ts';

/** Pages with generated parts. */
export const PAGES = ['docs/configuration.md', 'docs/commands.md'] as const;

/** A key that holds a value. */
export interface ConfigKey {
  /** `lmdbs.NAME.path` */
  readonly path: string;
  readonly type: string;
  /** As `--log-config` prints it; undefined when the key must be set, or is not set unless it is. */
  readonly default: string | undefined;
  readonly required: boolean;
  readonly text: string;
}

/** All keys of the file; those of `storage.options` begin with their storage's type, `s3:storage.options.bucket`. */
export function configKeys(): readonly ConfigKey[] {
  const keys: ConfigKey[] = [];
  const walk = (decoder: Decoder<unknown>, path: string, text: string): void => {
    const { inside } = decoder;
    if (inside === undefined) {
      const node = decoder.encode(decoder.absent) as unknown;
      const shown = isScalar(node) ? String(node.value) : node === undefined ? undefined : '{}';
      const required = decoder.required === true;
      const value = required ? undefined : shown === '' ? '""' : shown;
      keys.push({ path, type: decoder.type, default: value, required, text });
    } else if ('fields' in inside) {
      for (const field of Object.values(inside.fields))
        walk(field.decoder, join2(path, field.key), field.text);
    } else {
      walk(inside.each, join2(path, inside.name), text);
    }
  };
  walk(configTable, '', '');
  for (const [type, decoder] of Object.entries(storageOptions)) walk(decoder, `${type}:storage.options`, '');
  return keys;
}

function join2(path: string, name: string): string {
  return path === '' ? name : `${path}.${name}`;
}

/** All commands. */
export function commands(): readonly CommandDefinition[] {
  const nothing = (): Promise<void> => Promise.resolve();
  return commandDefinitions(createProgram({ plain: nothing, configured: nothing }));
}

/** The page with its generated parts made anew. @throws Error for a part that names what there is not */
export function fill(page: string): string {
  return page.replace(
    /^<!-- (keys|command): (.*) -->\n[^]*?^<!-- end -->$/gm,
    (_all, kind: string, names: string) =>
      `<!-- ${kind}: ${names} -->\n${kind === 'keys' ? keyTable(names.split(' ')) : commandPart(names)}<!-- end -->`,
  );
}

/** Rows for these keys, and for those below them; a key that is named itself stands there. */
function keyTable(names: readonly string[]): string {
  const all = configKeys();
  const rows = names.flatMap((name) => {
    const found = all.filter(({ path }) => path === name || path.startsWith(`${name}.`));
    if (found.length === 0) throw new Error(`there is no key ${name}`);
    return found;
  });
  const lines = [...new Set(rows)].map(({ path, type, default: value, required, text }) => {
    const shown = required ? '_required_' : value === undefined ? '' : `\`${value}\``;
    return `| \`${path.replace(/^\w+:/, '')}\` | ${type} | ${shown} | ${text} |\n`;
  });
  return `| key | type | default | meaning |\n|---|---|---|---|\n${lines.join('')}`;
}

function commandPart(name: string): string {
  const command = commands().find(({ path }) => path === (name === 'lightningstream' ? '' : name));
  if (command === undefined) throw new Error(`there is no command ${name}`);
  const { path, description, flags, operands, children } = command;
  const words = [
    'lightningstream',
    ...(path === '' ? [] : [path]),
    ...(flags.length > 0 ? ['[flags]'] : []),
    ...(children.length > 0 ? ['<command>'] : []),
    ...operands.map(({ term }) => term),
  ];
  const parts = [`    ${words.join(' ')}`, ...description.split('\n\n').map(sentence)];
  const rows = [
    ...operands.map((operand) => [`\`${operand.term}\``, meaning(operand.description, operand.choices)]),
    ...flags
      .filter(({ long }) => path === '' || long !== '--help')
      .map((flag) => {
        const names = [...(flag.short === undefined ? [] : [flag.short]), flag.long].join(', ');
        const rest = [
          ...(flag.required ? ['_required_'] : []),
          ...(flag.repeatable && !flag.description.includes('repeatable') ? ['repeatable'] : []),
          ...(flag.default === undefined ? [] : [`default: \`${flag.default}\``]),
        ];
        const notes = rest.length === 0 ? '' : ` (${rest.join(', ')})`;
        return [
          `\`${names}${flag.value === undefined ? '' : ` ${flag.value}`}\``,
          `${meaning(flag.description, flag.choices)}${notes}`,
        ];
      }),
  ];
  if (rows.length > 0)
    parts.push(
      `| | |\n|---|---|\n${rows.map(([term = '', text = '']) => `| ${term} | ${text} |`).join('\n')}`,
    );
  return `${parts.join('\n\n')}\n`;
}

function meaning(text: string, choices: readonly string[]): string {
  return choices.length === 0 ? text : `${text}: ${choices.map((word) => `\`${word}\``).join(', ')}`;
}

function sentence(text: string): string {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

if (import.meta.main) {
  for (const page of PAGES) {
    const file = join(import.meta.dirname, '..', page);
    writeFileSync(file, fill(readFileSync(file, 'utf8')));
  }
}
