import { describe, expect, it } from 'vitest';
import { Repeats } from '../../src/sync/repeats.ts';

describe('Repeats', () => {
  function repeats(): {
    trouble: Repeats;
    said: string[];
    fail(text: string): void;
    advance(ms: number): void;
  } {
    let nowMs = 0;
    const trouble = new Repeats({ monotonicMs: () => nowMs, wallNano: () => 0n });
    const said: string[] = [];
    return {
      trouble,
      said,
      fail: (text) => trouble.failed(text, (times) => said.push(`${text} ${times ?? 'first'}`)),
      advance: (ms) => (nowMs += ms),
    };
  }

  it('says each text once, and after five minutes how often it came since', () => {
    const { said, fail, advance } = repeats();
    for (let second = 0; second <= 600; second++) {
      fail('a');
      if (second === 10) fail('b');
      advance(1000);
    }
    expect(said).toEqual(['a first', 'b first', 'a 300', 'a 300']);
  });

  it('tells of the end once, and only of trouble that was told of', () => {
    const { trouble, said, fail } = repeats();
    const over = (): void => void said.push('over');
    trouble.over(over);
    fail('a');
    trouble.over(over);
    trouble.over(over);
    fail('a');
    expect(said).toEqual(['a first', 'over', 'a first']);
  });

  it('remembers a limited number of texts', () => {
    const { said, fail } = repeats();
    for (let id = 0; id <= 100; id++) fail(`request ${id}`);
    fail('request 100');
    fail('request 0');
    expect(said).toHaveLength(102);
  });
});
