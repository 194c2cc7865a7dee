/**
 * The newest result of `read`. A call that is still under way is waited for again instead of being repeated, so a reader that
 * hangs costs one call. After `deadlineMs` the last known result serves; a failed read forgets it.
 */
export interface Latest<T> {
  get(deadlineMs: number): Promise<T | undefined>;
}

export function latest<T>(read: () => Promise<T>): Latest<T> {
  let known: T | undefined;
  let pending: Promise<T | undefined> | undefined;

  async function refresh(): Promise<T | undefined> {
    try {
      known = await read();
    } catch {
      // Closed, gone or not readable: no figures. Whoever owns it reports the failure.
      known = undefined;
    }
    return known;
  }

  return {
    get(deadlineMs) {
      pending ??= refresh().finally(() => {
        pending = undefined;
      });
      const running = pending;
      return new Promise((resolve) => {
        const timer = setTimeout(() => resolve(known), deadlineMs);
        void running.then((result) => {
          clearTimeout(timer);
          resolve(result);
        });
      });
    },
  };
}
