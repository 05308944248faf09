"""Which tests of the tools run under which Python."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import sys

# requirements-test.txt has tf2onnx and onnxruntime for Python 3.7 only: tf2onnx asks for an older
# protobuf than TensorFlow 2.x. Both TensorFlows read the same .pb, which the models' tests check.
collect_ignore = ["test_exports.py"] if sys.version_info >= (3, 8) else []
