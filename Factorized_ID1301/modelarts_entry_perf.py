"""Start file of a ModelArts job: as modelarts_entry_acc.py, with test/train_performance_1p.sh."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import sys

import modelarts_entry_acc
from modelarts_entry_acc import npu_session


def main(argv=None):
    """Runs the short script between the copies; returns its exit code."""
    return modelarts_entry_acc.main(argv, "train_performance_1p.sh")


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
