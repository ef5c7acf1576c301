"""Memory, compiling and the allocator: how models run, not what they compute."""
