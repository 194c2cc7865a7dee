import type { Clock } from './wait.ts';

/** How often a text that was said already is said again. */
const againMs = 5 * 60_000;
/** Texts that are remembered; where each attempt has another one (request ids), the oldest is forgotten. */
const maxTexts = 100;

/** Trouble that lasts: each distinct text is said once, then every 5 minutes with a count, until it is over. */
export class Repeats {
  readonly #clock: Clock;
  readonly #texts = new Map<string, { saidAtMs: number; unsaid: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** `say` gets the count of the times that nothing was said, with the present one; undefined the first time. */
  failed(text: string, say: (times: number | undefined) => void): void {
    const now = this.#clock.monotonicMs();
    const known = this.#texts.get(text);
    if (known === undefined) {
      const [oldest] = this.#texts.keys();
      if (oldest !== undefined && this.#texts.size >= maxTexts) this.#texts.delete(oldest);
      this.#texts.set(text, { saidAtMs: now, unsaid: 0 });
      say(undefined);
      return;
    }
    known.unsaid++;
    if (now - known.saidAtMs < againMs) return;
    say(known.unsaid);
    known.saidAtMs = now;
    known.unsaid = 0;
  }

  /** It works again: `say` is called when trouble was told of. */
  over(say: () => void): void {
    if (this.#texts.size === 0) return;
    this.#texts.clear();
    say();
  }
}
