import type { Argument, Command, Option } from 'commander';

/** A flag as the reference and completion show it. */
export interface Flag {
  /** `-c` */
  readonly short: string | undefined;
  /** `--config` */
  readonly long: string;
  /** What stands for its value, `<file>`; undefined for one without. */
  readonly value: string | undefined;
  /** The words its value may be; empty when there are others. */
  readonly choices: readonly string[];
  readonly repeatable: boolean;
  readonly required: boolean;
  readonly description: string;
  /** As text; undefined when there is none. */
  readonly default: string | undefined;
}

/** What stands after a command without a flag. */
export interface Operand {
  /** `<name>`, `[command]` */
  readonly term: string;
  readonly choices: readonly string[];
  readonly description: string;
}

export interface CommandDefinition {
  /** Its words, the program's name not among them: `snapshots list`; empty for the program itself. */
  readonly path: string;
  /** One line. */
  readonly summary: string;
  /** Paragraphs of plain text, the first of which may be the summary. */
  readonly description: string;
  readonly flags: readonly Flag[];
  readonly operands: readonly Operand[];
  /** Names of the commands below it. */
  readonly children: readonly { readonly name: string; readonly summary: string }[];
}

/** The program itself and all its commands, each before those below it: from what parses them and prints help. */
export function commandDefinitions(program: Command): readonly CommandDefinition[] {
  const all: CommandDefinition[] = [];
  const walk = (command: Command, path: string): void => {
    const help = command.createHelp();
    const children = help.visibleCommands(command);
    all.push({
      path,
      summary: summary(command),
      description: command.description(),
      flags: help.visibleOptions(command).map(flag),
      operands: command.registeredArguments.map(operand),
      children: children.map((child) => ({ name: child.name(), summary: summary(child) })),
    });
    for (const child of children) walk(child, path === '' ? child.name() : `${path} ${child.name()}`);
  };
  walk(program, '');
  return all;
}

function summary(command: Command): string {
  return command.summary() || command.description();
}

function flag(option: Option): Flag {
  const { defaultValue: value, defaultValueDescription } = option as {
    defaultValue: unknown;
    defaultValueDescription?: string;
  };
  const shown = defaultValueDescription ?? (typeof value === 'string' && value !== '' ? value : undefined);
  return {
    short: option.short,
    long: option.long ?? '',
    value: /[<[].*$/.exec(option.flags)?.[0],
    choices: option.argChoices ?? [],
    repeatable: Array.isArray(value),
    required: option.mandatory,
    description: option.description,
    default: shown,
  };
}

function operand(argument: Argument): Operand {
  const name = `${argument.name()}${argument.variadic ? '...' : ''}`;
  return {
    term: argument.required ? `<${name}>` : `[${name}]`,
    choices: argument.argChoices ?? [],
    description: argument.description,
  };
}
