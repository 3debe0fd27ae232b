"""Operators with several implementations each: readable reference, CPU path, Triton kernel; chosen in `dispatch`."""
