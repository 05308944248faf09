"""Stand-in for Huawei's hccl package, the collective communication library."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
