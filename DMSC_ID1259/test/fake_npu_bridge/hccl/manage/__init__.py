"""Where hccl keeps its rank functions."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
