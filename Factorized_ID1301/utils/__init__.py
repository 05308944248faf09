"""Warps of images and coordinate planes, and the reference's drawing of landmarks."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
