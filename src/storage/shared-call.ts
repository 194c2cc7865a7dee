/** A request under way. */
interface Current<T> {
  readonly result: Promise<T>;
  readonly controller: AbortController;
  waiting: number;
}

/** One request for all who ask while it is under way. It is ended when the last of them has left. */
export class SharedCall<T> {
  readonly #run: (signal: AbortSignal, isCurrent: () => boolean) => Promise<T>;
  #current: Current<T> | undefined;

  /** `isCurrent` turns false when {@link forget} was called since `run` was. */
  constructor(run: (signal: AbortSignal, isCurrent: () => boolean) => Promise<T>) {
    this.#run = run;
  }

  /** Rejects as the request does, or with the signal's reason. */
  async join(signal: AbortSignal): Promise<T> {
    signal.throwIfAborted();
    const call = (this.#current ??= this.#begin());
    call.waiting++;
    try {
      return await unlessAborted(call.result, signal);
    } finally {
      // With the last one nobody may join any more: it is over, or ended here.
      if (--call.waiting === 0) {
        if (this.#current === call) this.#current = undefined;
        call.controller.abort();
      }
    }
  }

  /** The next one to join begins a new request; those who wait still get the result of the old one. */
  forget(): void {
    this.#current = undefined;
  }

  #begin(): Current<T> {
    const controller = new AbortController();
    const result = this.#run(controller.signal, () => this.#current === call);
    const call: Current<T> = { result, controller, waiting: 0 };
    return call;
  }
}

/** Rejects with the signal's reason as soon as it is aborted; the promise goes on. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason as Error);
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
