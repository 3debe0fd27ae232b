"""Pure geometry on batched tensors: rotation, pose, camera, align, points. No modules, no I/O."""
