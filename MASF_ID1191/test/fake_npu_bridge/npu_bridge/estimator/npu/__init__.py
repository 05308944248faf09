"""Where npu_bridge keeps optimizers and helpers."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
