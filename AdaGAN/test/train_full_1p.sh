#!/bin/bash
# Full training on one device (ModelZoo contract): 10 components, with coverage. Flags: --help.
exec bash "$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/train_1p.sh" "$(basename -- "$0")" "$@"
