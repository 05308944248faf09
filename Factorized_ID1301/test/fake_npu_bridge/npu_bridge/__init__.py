"""Strict recording stand-in for Huawei's npu_bridge, for tests on machines without an NPU.

Every session is checked as the Ascend adapter would want it, recorded, and then run on the CPU.
FAKE_NPU_RECORD names the JSON file to write; FAKE_NPU_ERA=2021 refuses options of later adapters.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
from npu_bridge import _session

_session.install()
