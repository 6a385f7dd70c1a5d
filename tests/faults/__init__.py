"""The fault matrix: fifty pods, one fault at a time, and how long every call that is not about it takes."""
