#!/bin/bash
# Full training on one device (ModelZoo contract): 200 epochs. Flags: --help.
exec bash "$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/train_1p.sh" "$(basename -- "$0")" "$@"
