#!/bin/bash
# Short training on one device (ModelZoo contract): 5 iterations, for its speed. Flags: --help.
exec bash "$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/train_1p.sh" "$(basename -- "$0")" "$@"
