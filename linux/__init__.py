"""Wraps the system calls and kernel tables that all other packages share. No policy, standard library only.

The only package that loads libc.
"""
