"""Frames at the door: native columns become Arrow going in, Arrow becomes native coming out.

Each frame library has one module with the same functions; only that module imports the library.
Columns are attached by position, never by merge: rows, order and index stay as they were.
"""
