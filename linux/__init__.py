"""What Linux has: system calls, and what is common to all who make them. No policy, standard library only.

The only package that loads libc.
"""
