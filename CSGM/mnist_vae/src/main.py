"""The seed's second entry, ModelArts' start file: runs src/main.py, the one implementation."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import runpy
import sys

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "src")

if __name__ == "__main__":
    sys.path[0] = os.path.normpath(SOURCE)  # instead of this folder, whose main would be found
    runpy.run_path(os.path.join(sys.path[0], "main.py"), run_name="__main__")
