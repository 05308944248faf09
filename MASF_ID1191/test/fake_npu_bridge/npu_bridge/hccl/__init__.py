"""Where npu_bridge keeps the collective operations."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
