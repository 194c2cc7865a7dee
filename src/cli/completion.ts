import type { CommandDefinition, Flag, Operand } from './definitions.ts';

/** Shells that {@link completionScript} knows. */
export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

const PROGRAM = 'lightningstream';

/** A script that teaches a shell the commands, flags and their values; `descriptions` where the shell shows such. */
export function completionScript(
  shell: Shell,
  commands: readonly CommandDefinition[],
  descriptions: boolean,
): string {
  const known = descriptions ? commands : commands.map(withoutDescriptions);
  return { bash, zsh, fish }[shell](known);
}

function withoutDescriptions(command: CommandDefinition): CommandDefinition {
  return {
    ...command,
    flags: command.flags.map((flag) => ({ ...flag, description: '' })),
    children: command.children.map(({ name }) => ({ name, summary: '' })),
  };
}

/** The program's own flags stand after each command, too. */
function allFlags(command: CommandDefinition, commands: readonly CommandDefinition[]): readonly Flag[] {
  const globals = commands[0]?.flags ?? [];
  const own = command.flags.map(({ long }) => long);
  return command.path === ''
    ? command.flags
    : [...command.flags, ...globals.filter(({ long }) => !own.includes(long))];
}

function names({ short, long }: Flag): readonly string[] {
  return short === undefined ? [long] : [short, long];
}

/** What a value may be: words, file names, or anything. */
function kind({ choices, term }: { choices: readonly string[]; term: string }): 'words' | 'file' | 'any' {
  if (choices.length > 0) return 'words';
  return /file|directory/.test(term) ? 'file' : 'any';
}

function valueKind(flag: Flag): ReturnType<typeof kind> {
  return kind({ choices: flag.choices, term: flag.value ?? '' });
}

/** In single quotes, for all three shells; fish knows `\'` in them, the others do not. */
function quote(text: string, shell: Shell): string {
  return shell === 'fish'
    ? `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`
    : `'${text.replaceAll("'", "'\\''")}'`;
}

// ---- bash ----------------------------------------------------------------------------------------------------------------------

function bash(commands: readonly CommandDefinition[]): string {
  const patterns = (command: CommandDefinition, flags: readonly Flag[]): string =>
    flags
      .flatMap(names)
      .map((name) => quote(`${command.path}:${name}`, 'bash'))
      .join('|');
  const valued = commands.flatMap((command) => {
    const flags = allFlags(command, commands).filter(({ value }) => value !== undefined);
    return flags.length === 0 ? [] : [patterns(command, flags)];
  });
  const values = commands.flatMap((command) =>
    allFlags(command, commands)
      .filter((flag) => flag.value !== undefined && valueKind(flag) !== 'any')
      .map(
        (flag) => `    ${patterns(command, [flag])}) ${bashReply(valueKind(flag), flag.choices)} return ;;`,
      ),
  );
  const places = commands.map((command) => {
    const flags = allFlags(command, commands).flatMap(names).join(' ');
    const children = command.children.map(({ name }) => name);
    const operand = command.operands[0];
    const reply =
      children.length > 0
        ? bashReply('words', children)
        : operand === undefined
          ? ''
          : bashReply(kind(operand), operand.choices);
    return `    ${quote(command.path, 'bash')}) flags=${quote(flags, 'bash')}; if [[ $cur != -* ]]; then ${reply || ':;'} fi ;;`;
  });
  const paths = commands.filter(({ path }) => path !== '').map(({ path }) => quote(path, 'bash'));
  return `# bash completion for ${PROGRAM}, made by: ${PROGRAM} completion bash

_${PROGRAM}() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]} path= flags= word next i skip=
  COMPREPLY=()
  # bash takes "--flag=value" for three words.
  if [[ $cur == = ]]; then cur=
  elif [[ $prev == = && COMP_CWORD -ge 2 ]]; then prev=\${COMP_WORDS[COMP_CWORD-2]}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    if [[ $word == = ]]; then skip=1; continue; fi
    if [[ -n $skip ]]; then skip=; continue; fi
    case $path:$word in
      ${valued.join('|\\\n      ')}) [[ \${COMP_WORDS[i+1]} == = ]] || skip=1 ;;
      *:-*) ;;
      *)
        next=\${path:+$path }$word
        case $next in
          ${paths.join('|')}) path=$next ;;
        esac ;;
    esac
  done
  case $path:$prev in
${values.join('\n')}
    ${valued.join('|\\\n    ')}) return ;;
  esac
  case $path in
${places.join('\n')}
  esac
  if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "$flags" -- "$cur")); fi
}

complete -F _${PROGRAM} ${PROGRAM}
`;
}

function bashReply(what: ReturnType<typeof kind>, words: readonly string[]): string {
  if (what === 'words') return `COMPREPLY=($(compgen -W ${quote(words.join(' '), 'bash')} -- "$cur"));`;
  if (what === 'any') return '';
  return 'compopt -o filenames 2>/dev/null || :; mapfile -t COMPREPLY < <(compgen -f -- "$cur");';
}

// ---- zsh -----------------------------------------------------------------------------------------------------------------------

function zsh(commands: readonly CommandDefinition[]): string {
  const functionName = (path: string): string => ['', PROGRAM, ...path.split(' ').filter(Boolean)].join('_');
  const functions = commands.map((command) => {
    const specs = allFlags(command, commands).map(zshFlag);
    const rest = command.operands.map(
      (operand) => `:${zshText(operand.term)}:${zshAction(kind(operand), operand.choices)}`,
    );
    const steps =
      command.children.length > 0
        ? ["'1: :->command'", "'*:: :->rest'"]
        : rest.map((text) => quote(text, 'zsh'));
    const lines = [
      `${functionName(command.path)}() {`,
      ...(command.children.length > 0
        ? ['  local curcontext=$curcontext state line', '  typeset -A opt_args']
        : []),
      `  _arguments ${command.children.length > 0 ? '-C ' : ''}-s \\`,
      ...[...specs, ...steps].map((spec, index, all) => `    ${spec}${index < all.length - 1 ? ' \\' : ''}`),
    ];
    if (command.children.length > 0) {
      lines.push(
        '  case $state in',
        '    command)',
        '      local -a commands=(',
        ...command.children.map(
          ({ name, summary }) => `        ${quote(summary === '' ? name : `${name}:${summary}`, 'zsh')}`,
        ),
        '      )',
        '      _describe command commands ;;',
        '    rest)',
        '      case $line[1] in',
        ...command.children.map(
          ({ name }) => `        ${name}) ${functionName(`${command.path} ${name}`)} ;;`,
        ),
        '      esac ;;',
        '  esac',
      );
    }
    return [...lines, '}'].join('\n');
  });
  return `#compdef ${PROGRAM}
# zsh completion for ${PROGRAM}, made by: ${PROGRAM} completion zsh

${functions.join('\n\n')}

# In a directory of fpath this file is the function; else it is sourced.
if [[ $funcstack[1] == _${PROGRAM} ]]; then
  _${PROGRAM} "$@"
else
  compdef _${PROGRAM} ${PROGRAM}
fi
`;
}

function zshFlag(flag: Flag): string {
  const both = names(flag);
  const text = flag.description === '' ? '' : `[${zshText(flag.description)}]`;
  const value =
    flag.value === undefined ? '' : `:${zshText(flag.value)}:${zshAction(valueKind(flag), flag.choices)}`;
  const tail = quote(`${text}${value}`, 'zsh');
  // "+": the value may follow at once or as a word of its own; "=": also after an equals sign.
  const marks = flag.value === undefined ? ['', ''] : ['+', '='];
  if (flag.repeatable)
    return both.map((name) => `${quote('*', 'zsh')}${name}${marks[1] ?? ''}${tail}`).join(' ');
  if (both.length === 1) return `${flag.long}${marks[1] ?? ''}${tail}`;
  return `${quote(`(${both.join(' ')})`, 'zsh')}{${flag.short ?? ''}${marks[0] ?? ''},${flag.long}${marks[1] ?? ''}}${tail}`;
}

function zshText(text: string): string {
  return text.replace(/[\\[\]:]/g, '\\$&');
}

function zshAction(what: ReturnType<typeof kind>, words: readonly string[]): string {
  return what === 'words' ? `(${words.join(' ')})` : what === 'file' ? '_files' : ' ';
}

// ---- fish ----------------------------------------------------------------------------------------------------------------------

function fish(commands: readonly CommandDefinition[]): string {
  const valued = commands.flatMap((command) =>
    allFlags(command, commands)
      .filter(({ value }) => value !== undefined)
      .flatMap(names)
      .map((name) => quote(`${command.path}:${name}`, 'fish')),
  );
  const paths = commands.filter(({ path }) => path !== '').map(({ path }) => quote(path, 'fish'));
  const at = (path: string): string => `-n ${quote(`__${PROGRAM}_at ${quote(path, 'fish')}`, 'fish')}`;
  const lines = commands.flatMap((command) => [
    ...command.children.map(
      ({ name, summary }) => `complete -c ${PROGRAM} ${at(command.path)} -a ${name}${fishText(summary)}`,
    ),
    ...command.operands.slice(0, 1).flatMap((operand) => fishOperand(operand, at(command.path))),
    ...command.flags.map((flag) => {
      const condition = command.path === '' ? '' : ` ${at(command.path)}`;
      const short = flag.short === undefined ? '' : ` -s ${flag.short.slice(1)}`;
      const value = flag.value === undefined ? '' : fishValue(valueKind(flag), flag.choices);
      return `complete -c ${PROGRAM}${condition}${short} -l ${flag.long.slice(2)}${value}${fishText(flag.description)}`;
    }),
  ]);
  return `# fish completion for ${PROGRAM}, made by: ${PROGRAM} completion fish

# The command that the line is at: "snapshots list".
function __${PROGRAM}_at
    set -l path ''
    set -l skip no
    for word in (commandline -opc)[2..]
        if test $skip = yes
            set skip no
            continue
        end
        switch "$path:$word"
            case ${valued.join(' ')}
                set skip yes
            case '*:-*'
            case '*'
                set -l next (string trim -- "$path $word")
                if contains -- $next ${paths.join(' ')}
                    set path $next
                end
        end
    end
    test "$path" = "$argv[1]"
end

complete -c ${PROGRAM} -f
${lines.join('\n')}
`;
}

function fishText(text: string): string {
  return text === '' ? '' : ` -d ${quote(text, 'fish')}`;
}

function fishValue(what: ReturnType<typeof kind>, words: readonly string[]): string {
  if (what === 'words') return ` -x -a ${quote(words.join(' '), 'fish')}`;
  return what === 'file' ? ' -r -F' : ' -x';
}

function fishOperand(operand: Operand, condition: string): readonly string[] {
  const what = kind(operand);
  if (what === 'any') return [];
  return [
    `complete -c ${PROGRAM} ${condition}${what === 'file' ? ' -F' : ` -a ${quote(operand.choices.join(' '), 'fish')}`}`,
  ];
}
