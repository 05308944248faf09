#!/bin/bash
# Full training in eight processes, one per device (ModelZoo contract). Flags: --help.
exec bash "$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)/train_1p.sh" "$(basename -- "$0")" "$@"
