"""Types of flags, log lines, progress bars, and arrays in batches of one size."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import sys
import time

import numpy as np
from tqdm import tqdm

BAR_WIDTH = 80


def flag_type(convert, accepts, text):
    """argparse type that converts and accepts only some values, described by `text`."""
    def parse(value):
        number = convert(value)
        if not accepts(number):
            raise ValueError(value)
        return number
    parse.__name__ = text
    return parse


POSITIVE_INT = flag_type(int, lambda number: number > 0, "integer above 0")
COUNT = flag_type(int, lambda number: number >= 0, "integer of at least 0")
POSITIVE = flag_type(float, lambda number: 0 < number < np.inf, "number above 0")
NUMBER = flag_type(float, np.isfinite, "finite number")
DECAY = flag_type(float, lambda number: 0 <= number < 1, "number of at least 0 and below 1")


def log(text):
    """One line on standard output, in the reference's form `<date> <time> - <text>`."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    print(f"{stamp},{int(now % 1 * 1000):03d} - {text}", flush=True)


def progress(name, total, done, shown):
    """tqdm bar on standard error, as the reference's; outside a terminal one line at its end."""
    return tqdm(total=total, initial=done, desc=name, ncols=BAR_WIDTH, smoothing=0,
                disable=not shown, mininterval=0.1 if sys.stderr.isatty() else np.inf)


def in_batches(function, batch_size, rows):
    """Applies `function`, which takes batch_size rows, to an array of any length above 0.

    The last batch is filled up with copies of its first row and the surplus dropped, so that
    every call has the same shape (the NPU compiles a graph per shape).
    """
    results = []
    for start in range(0, len(rows), batch_size):
        piece = rows[start:start + batch_size]
        missing = batch_size - len(piece)
        padded = np.concatenate([piece, np.repeat(piece[:1], missing, axis=0)])
        results.append(function(padded)[:batch_size - missing])
    return np.concatenate(results)
