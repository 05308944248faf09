"""Where npu_bridge keeps its operations and estimators."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
