"""The machine that llvid runs on, and its files."""
